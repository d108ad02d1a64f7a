# make demo    set everything up and ask the demo's questions; ARGS='--ask "…"' asks your own
# make test    set everything up and run the tests (Mosquitto and PostgreSQL are installed by apt where that is possible)
# make check   ruff and mypy
# make chaos   kill, cut, delay and corrupt real processes for at most 15 minutes; CHAOS_SEED=N repeats a run
# make fuzz    a million inputs and more for everything that reads bytes from outside
# make soak    an hour's requests in five minutes: does anything grow?
# make bench   the benchmarks, each against a peer in the same run
# make clean   remove what the others made

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test check chaos fuzz soak bench format mosquitto postgresql clean

demo: $(VENV)/.demo
	@$(BIN)/mqttcollab demo $(ARGS)

test: $(VENV)/.dev mosquitto postgresql
	$(BIN)/python -m pytest -m "not chaos and not soak" $(ARGS)

chaos: $(VENV)/.dev mosquitto
	$(BIN)/python -m pytest -m chaos tests/chaos $(ARGS)

fuzz: $(VENV)/.dev
	@$(BIN)/pip install -q -e '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py $(ARGS)

soak: $(VENV)/.dev mosquitto
	$(BIN)/python -m pytest -m soak -s tests/test_soak.py $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench mosquitto
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name it with make PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The small model is worth minutes of compiling, but the other devices must not depend on a compiler.
$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Setting up $(VENV). The first time llama.cpp is built from source, which takes some minutes."
	@$(BIN)/pip install -q -e '.[demo]' || { \
		echo "llama.cpp was not built (is there a C++ compiler? e.g. apt-get install build-essential):" \
			"the phone has no model in this demo; everything else runs."; \
		$(BIN)/pip install -q -e '.[cli,broker,embed,devices]'; }
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "Setting up $(VENV). The first time llama.cpp is built from source, which takes some minutes."
	@$(BIN)/pip install -q -e '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(VENV)/.dev
	@$(BIN)/pip install -q -e '.[bench]'
	@touch $@

mosquitto:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; \
	if command -v mosquitto mosquitto_sub mosquitto_passwd openssl >/dev/null; then exit 0; fi; \
	install="apt-get install -y -q mosquitto mosquitto-clients openssl"; \
	if ! command -v apt-get >/dev/null; then root=; \
	elif [ "$$(id -u)" = 0 ]; then root=env; \
	elif sudo -n true 2>/dev/null; then root=sudo; fi; \
	if [ -z "$$root" ] || ! { $$root apt-get update -q && $$root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 $$install; } >/dev/null; then \
		echo "Mosquitto is not installed, and the tests need it: install mosquitto, mosquitto-clients and openssl" \
			"(Debian, Ubuntu: $$install)."; exit 1; fi

# Its tests are skipped with a reason where it is missing. No server of the system's own is started.
postgresql:
	@if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then root=; \
	elif [ "$$(id -u)" = 0 ]; then root=env; \
	elif sudo -n true 2>/dev/null; then root=sudo; fi; \
	if [ -z "$$root" ] || ! { $$root apt-get update -q && $$root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -y -q postgresql; } >/dev/null; then \
		echo "PostgreSQL is not installed: the tests of the shared journal are skipped (Debian, Ubuntu: apt-get install postgresql)."; fi

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
