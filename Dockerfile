# The image of docker-compose.yml: the command line, the orchestrator, the devices and the small model.

# llama-cpp-python is built from source (4 to 7 minutes): the compilers stay in this stage.
FROM python:3.11-slim AS builder
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential cmake git \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
# Not for the processor that happens to build: the image may run on an older one.
ENV CMAKE_ARGS=-DGGML_NATIVE=OFF
# First, in a layer of its own, so that a change of our code does not build it again.
RUN pip install --no-cache-dir "llama-cpp-python>=0.3.7"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY mqttcollab mqttcollab
RUN pip install --no-cache-dir ".[demo,postgres,journal]"

FROM python:3.11-slim
# The OpenMP runtime of llama.cpp.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 mqttcollab && install -d -o mqttcollab /data
COPY --from=builder /venv /venv
WORKDIR /app
COPY devices devices
# devices/ is no part of the package: found from here.
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1
USER mqttcollab
CMD ["mqttcollab", "--help"]
