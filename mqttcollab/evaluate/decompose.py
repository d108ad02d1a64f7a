"""How near decompositions come to people's: the number of steps, and which step refers to which."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mqttcollab.errors import ConfigError
from mqttcollab.evaluate.files import read_rows, text_of
from mqttcollab.evaluate.scoring import bootstrap
from mqttcollab.plans.decompose import ClauseDecomposer, Decomposition
from mqttcollab.plans.model import ModelDecomposer
from mqttcollab.plans.structure import LEAST_EXAMPLES, Structure, StructureModel, structure_of
from mqttcollab.runtimes.embedders import load_embedder

Example = tuple[str, list[str]]
Splitter = Callable[[Sequence[str]], list[Structure]]

_FOLDS = 5
_MODEL_TIMEOUT_S = 120.0
_ONE_STEP = Structure(1)


def read_examples(path: Path) -> list[Example]:
    """Return the questions of a file and their decompositions.

    Raises:
        ConfigError: the file can't be read, or a row is wrong; says which line.
    """
    examples: list[Example] = []
    for number, row in read_rows(path):
        question, steps = text_of(path, number, row, "question"), row.get("decomposition")
        if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
            raise ConfigError(f"{path}, line {number}: 'decomposition' is missing or no list of texts")
        examples.append((question, steps))
    return examples


def evaluate(
    train: Path,
    test: Path | None = None,
    *,
    model: Path | None = None,
    sample: int = 50,
    save: Path | None = None,
) -> dict[str, Any]:
    """Train the orchestrator's structure model and rate its decomposer and the baselines.

    `step_count_error` is the mean absolute difference in the number of steps; `reference_f1` is over the references
    (step i needs step j), steps taken to be the same by their position, counted over all questions together.

    Args:
        train: the decompositions to learn from; questions that are in `test` are left out.
        test: those to rate with; None cross-validates over `train`.
        model: a GGUF file; its plans of a sample are rated too, as the baselines `model` and, on the same sample,
            `ours_on_sample`.
        sample: how many questions that takes at most; each takes the model seconds.
        save: write the structure model there that learned from all of `train` that was not rated with.

    Raises:
        ConfigError: a file can't be read or written, or has too few rows.
        RuntimeFailure: the model can't be loaded.
    """
    learned = read_examples(train)
    if test is None:
        least = LEAST_EXAMPLES * _FOLDS // (_FOLDS - 1) + 1
        if len(learned) < least:
            raise ConfigError(f"{train} has {len(learned)} rows; without --test {least} are needed")
        rated, found = _cross_validated(learned)
    else:
        rated = read_examples(test)
        scored = {_same(question) for question, _ in rated}
        learned = [example for example in learned if _same(example[0]) not in scored]
        if len(learned) < LEAST_EXAMPLES:
            raise ConfigError(
                f"{train} has {len(learned)} questions that aren't in {test}; {LEAST_EXAMPLES} are needed"
            )
        found = {name: split([q for q, _ in rated]) for name, split in splitters(learned).items()}
    gold = [structure_of(steps) for _, steps in rated]
    figures = {name: rate(structures, gold) for name, structures in found.items()}
    if model is not None:
        figures |= _with_model(model, rated, found["ours"], learned if test else [], max(1, sample))
    if save is not None:
        StructureModel.train(learned).save(save)
    return {"ours": figures.pop("ours"), "baselines": figures, "oracle": rate(gold, gold), "n": len(rated)}


def rate(found: Sequence[Structure], gold: Sequence[Structure]) -> dict[str, Any]:
    """Return `step_count_error`, `reference_f1` and their 95% bootstrap intervals under `ci95`."""
    pairs = list(zip(found, gold, strict=True))
    errors = np.array([abs(a.count - b.count) for a, b in pairs], float)
    right = np.array([len(a.edges & b.edges) for a, b in pairs], float)
    total = np.array([len(a.edges) + len(b.edges) for a, b in pairs], float)

    def over(rows: NDArray[np.intp]) -> dict[str, float]:
        f1 = 2 * right[rows].sum() / max(1.0, total[rows].sum())
        return {"step_count_error": float(errors[rows].mean()), "reference_f1": float(f1)}

    everything = np.arange(len(gold))
    return {**over(everything), "ci95": bootstrap(over, everything)}


def splitters(train: Sequence[Example]) -> dict[str, Splitter]:
    """Return what is compared, by name: the orchestrator's decomposer as `ours`, and the baselines."""
    known = [structure_of(steps) for _, steps in train]
    ours, untrained = ClauseDecomposer(structure=StructureModel.train(train)), ClauseDecomposer()
    mode, random = _commonest(known), np.random.default_rng(0)
    by_opener: dict[str, list[Structure]] = {}
    for (question, _), structure in zip(train, known, strict=True):
        by_opener.setdefault(_opener(question), []).append(structure)
    modes = {opener: _commonest(structures) for opener, structures in by_opener.items()}
    return {
        "ours": lambda questions: [_structure(ours.split(q)) for q in questions],
        "untrained": lambda questions: [_structure(untrained.split(q)) for q in questions],
        "one_per_sentence": lambda questions: [Structure(_sentences(q)) for q in questions],
        "one_step": lambda questions: [_ONE_STEP for _ in questions],
        "mode": lambda questions: [mode for _ in questions],
        "opener_mode": lambda questions: [modes.get(_opener(q), mode) for q in questions],
        "random": lambda questions: [known[int(random.integers(len(known)))] for _ in questions],
        "1-NN": _nearest([question for question, _ in train], known),
    }


def _cross_validated(examples: Sequence[Example]) -> tuple[list[Example], dict[str, list[Structure]]]:
    # All rows of one question are in one fold.
    names = {name: i for i, name in enumerate(dict.fromkeys(_same(question) for question, _ in examples))}
    folds = np.random.default_rng(0).permutation(len(names)) % _FOLDS
    fold_of = [int(folds[names[_same(question)]]) for question, _ in examples]
    found: dict[str, list[Structure]] = {}
    rated: list[Example] = []
    for fold in range(_FOLDS):
        part = [example for example, own in zip(examples, fold_of, strict=True) if own == fold]
        rated += part
        rest = [example for example, own in zip(examples, fold_of, strict=True) if own != fold]
        for name, split in splitters(rest).items():
            found.setdefault(name, []).extend(split([question for question, _ in part]))
    return rated, found


def _with_model(
    path: Path, rated: Sequence[Example], ours: Sequence[Structure], learned: Sequence[Example], sample: int
) -> dict[str, Any]:
    """Return the figures of a language model's plans; where one is invalid, the fallback's counts."""
    chosen = np.random.default_rng(0).permutation(len(rated))[:sample]
    structure = StructureModel.train(learned) if learned else None
    plans = asyncio.run(_plans(path, [rated[i][0] for i in chosen], ClauseDecomposer(structure=structure)))
    gold = [structure_of(rated[i][1]) for i in chosen]
    refused = sum("(without " in plan.reason for plan in plans) / len(plans)
    return {
        "model": {**rate([_structure(plan) for plan in plans], gold), "n": len(gold), "refused": refused},
        "ours_on_sample": {**rate([ours[i] for i in chosen], gold), "n": len(gold)},
    }


async def _plans(path: Path, questions: Sequence[str], fallback: ClauseDecomposer) -> list[Decomposition]:
    from mqttcollab.runtimes.llama import LlamaRuntime

    runtime = LlamaRuntime(path)
    try:
        await runtime.load()
        decomposer = ModelDecomposer(runtime, fallback, timeout_s=_MODEL_TIMEOUT_S)
        return [await decomposer.decompose(question) for question in questions]
    finally:
        await runtime.close()


def _nearest(known: Sequence[str], structures: Sequence[Structure]) -> Splitter:
    embedder = load_embedder("wordllama")
    rows = embedder.embed(known)

    def split(questions: Sequence[str]) -> list[Structure]:
        parts = np.array_split(embedder.embed(questions), -(-len(questions) // 500))
        return [structures[int(i)] for part in parts for i in (part @ rows.T).argmax(axis=1)]

    return split


def _structure(found: Decomposition) -> Structure:
    return Structure(len(found.graph.steps), found.graph.edges)


def _commonest(structures: Sequence[Structure]) -> Structure:
    return Counter(structures).most_common(1)[0][0]


def _sentences(question: str) -> int:
    return max(1, len([part for part in re.split(r"(?<=[.!?])\s+", question) if part.strip()]))


def _opener(question: str) -> str:
    return next(iter(question.lower().split()), "")


def _same(question: str) -> str:
    return " ".join(question.casefold().split())
