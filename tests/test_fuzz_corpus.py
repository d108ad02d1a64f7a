"""What the fuzzer has found to reach furthest is tried again here, without the fuzzer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.live import close_world
from fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@pytest.fixture(autouse=True)
def _world() -> Iterator[None]:
    yield
    close_world()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_kept_input_is_a_value_or_an_error_of_ours(name: str) -> None:
    kept = sorted((CORPUS / name).iterdir())
    assert kept
    for path in kept:
        TARGETS[name].run(path.read_bytes())


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_so_is_every_seed(name: str) -> None:
    for data in TARGETS[name].seeds():
        TARGETS[name].run(data)


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < 300_000 + 4096 * len(TARGETS)  # its folders too
