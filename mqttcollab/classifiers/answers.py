"""Whether an answer can be trusted, once it is there: its tokens' probabilities, samples, exact checks, its form.

A language model's answer is judged by a calibrated combination of signals, fitted by `python -m benchmarks.judge`;
a device's by what the device itself states. What can be calculated is calculated, whoever answered.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from mqttcollab.classifiers import answer_text as words
from mqttcollab.classifiers.arithmetic import spelled_calculations
from mqttcollab.errors import ConfigError
from mqttcollab.messages import ContextItem, Reply, Uncertainty, Verdict

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import ChatMessage, Embedder, Generation, GenerationParameters, Runtime

# A model's weights by stage: what is known of an answer decides which combination applies.
STAGES = {
    "text": ("concise", "on_topic", "timeless", "calculated", "plain"),
    "logprobs": ("mean_logprob", "min_logprob", "first_logprob", "key_logprob", "complete"),
    "agreement": ("agreement",),
}
_PHRASES = {
    "concise": "short or long answer",
    "on_topic": "takes up the question",
    "timeless": "asks of here and now",
    "calculated": "calculations written in it",
    "plain": "numbers to reckon with",
    "mean_logprob": "mean token probability",
    "min_logprob": "least likely token",
    "first_logprob": "first token",
    "key_logprob": "first word that is news",
    "complete": "complete or cut off",
    "agreement": "samples' agreement",
}
# Stated by the answerer itself, and no data on it yet: neither certainty nor impossibility is believed.
_LEAST, _MOST, _UNSTATED = 0.02, 0.98, 0.7
_LEAST_LOGPROB, _LEAST_TOLD = -12.0, -100.0  # that counts; that is passed on, where a runtime says minus infinity
_LOOP = 0.6  # share of repeated word triples


@dataclass(frozen=True, slots=True)
class Weights:
    """Log odds that an answer is right = bias + Σ weight x signal; `means` are the signals' usual values."""

    bias: float
    weights: dict[str, float]
    means: dict[str, float]


class DefaultJudge:
    """Judges answers of language models and of devices.

    Args:
        weights: by stage, from `load_weights`; None takes those shipped, fitted to SmolLM2-135M.
    """

    def __init__(self, weights: Mapping[str, Weights] | None = None) -> None:
        self._stages = weights or load_weights()

    def judge(self, question: str, reply: Reply, context: Sequence[ContextItem] = ()) -> Verdict:
        """Return the probability that the reply answers the question rightly; its score is the log odds.

        Args:
            question: as it was asked.
            reply: what came.
            context: earlier results that the answer could build on.
        """
        text = (reply.output or "").strip()
        if reply.status == "error":
            return _verdict(0.0, "it is an error")
        if not text and not reply.data:
            return _verdict(0.0, "it is empty")
        if (ruled := by_rule(question, text)) is not None:
            return ruled
        if is_model_answer(reply):
            return self._of_model(question, text, reply, told=any(item.text.strip() for item in context))
        return _of_device(text, reply)

    def check(self, question: str, reply: Reply) -> float | None:
        """Return how right the reply is by what can be calculated; None where nothing can."""
        checked = _exact(question, (reply.output or "").strip())
        return None if checked is None else checked.probability

    def _of_model(self, question: str, text: str, reply: Reply, *, told: bool) -> Verdict:
        signals = signals_of(question, text, reply.uncertainty, told=told)
        stage = next(name for name in reversed(STAGES) if all(key in signals for key in STAGES[name]))
        chosen = self._stages[stage]
        shares = {key: weight * (signals[key] - chosen.means[key]) for key, weight in chosen.weights.items()}
        score = chosen.bias + sum(weight * signals[key] for key, weight in chosen.weights.items())
        telling = sorted((key for key in shares if abs(shares[key]) > 0.05), key=lambda key: -abs(shares[key]))[:3]
        why = ", ".join(f"{_PHRASES[key]} {shares[key]:+.1f}" for key in telling) or "nothing unusual"
        return _verdict(_sigmoid(score), f"a language model's answer, in log odds: {why}", score)


def load_weights(path: Path | None = None) -> dict[str, Weights]:
    """Return the weights of `python -m benchmarks.judge --save`, by default those shipped, by stage.

    Raises:
        ConfigError: the file is missing or holds no weights.
    """
    try:
        source = path or resources.files("mqttcollab.classifiers").joinpath("data/judge.json")
        found = json.loads(source.read_text(encoding="utf-8"))["stages"]
        stages = {name: Weights(**{key: found[name][key] for key in ("bias", "weights", "means")}) for name in STAGES}
        for name, stage in stages.items():
            unknown = stage.weights.keys() - set(stage_signals(name)) or stage.weights.keys() - stage.means.keys()
            if unknown or not all(math.isfinite(x) for x in (stage.bias, *stage.weights.values())):
                raise ValueError(f"stage {name!r}: unknown signals {sorted(unknown)} or a number that is none")
        return stages
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"the judge's weights {path or 'that were shipped'} can't be read: {reason}; "
            "make them with `python -m benchmarks.judge --save FILE`"
        ) from None


def stage_signals(stage: str) -> list[str]:
    """Return the names of the signals of a stage and of those before it."""
    names = list(STAGES)
    return [key for name in names[: names.index(stage) + 1] for key in STAGES[name]]


def signals_of(
    question: str, text: str, uncertainty: Uncertainty | None = None, *, told: bool = False
) -> dict[str, float]:
    """Return what tells a right answer of a language model from a wrong one, each larger for right ones.

    Args:
        question: as it was asked.
        text: the answer.
        uncertainty: how it was written, where that is known; without it there are fewer signals.
        told: whether the model was given facts, so that it may speak of here and now.
    """
    checks = [c.right for c in spelled_calculations(text) if c.right is not None]
    signals = {
        "concise": -math.log1p(len(text.split())),
        "on_topic": words.reference(question, text) if words.novelty(question, text) else 0.0,
        "timeless": -float(words.asks_of_now(question) and not told),
        "plain": -float(min(2, words.number_count(question))),
        "calculated": 0.0 if not checks else 1.0 if all(checks) else -1.0,
    }
    if uncertainty is not None:
        key = uncertainty.key_logprob if uncertainty.key_logprob is not None else uncertainty.min_logprob
        signals |= {
            "mean_logprob": uncertainty.mean_logprob,
            "min_logprob": uncertainty.min_logprob,
            "first_logprob": uncertainty.first_logprob,
            "key_logprob": key,
            "complete": -float(uncertainty.truncated),
        }
        if uncertainty.agreement is not None:
            signals["agreement"] = uncertainty.agreement
    return {key: max(_LEAST_LOGPROB, value) for key, value in signals.items()}


def uncertainty_of(question: str, generation: Generation) -> Uncertainty | None:
    """Return how a generation was written; None where the runtime tells no log probabilities."""
    logprobs = [min(0.0, max(_LEAST_TOLD, x)) for x in generation.logprobs]
    if not logprobs:
        return None
    return Uncertainty(
        tokens=len(logprobs),
        mean_logprob=round(sum(logprobs) / len(logprobs), 4),
        min_logprob=round(min(logprobs), 4),
        first_logprob=round(logprobs[0], 4),
        key_logprob=_key_logprob(question, generation.tokens, logprobs),
        truncated=generation.truncated,
    )


def _key_logprob(question: str, tokens: Sequence[str], logprobs: Sequence[float]) -> float | None:
    """The least log probability among the tokens of the first content word that the question doesn't have."""
    if len(tokens) != len(logprobs):
        return None
    asked = words.content_words(question)
    spelled: list[tuple[str, float]] = []
    for token, logprob in zip(tokens, logprobs, strict=True):
        if spelled and not token.startswith((" ", "\n")):
            spelled[-1] = (spelled[-1][0] + token, min(spelled[-1][1], logprob))
        else:
            spelled.append((token, logprob))
    return next((round(logprob, 4) for word, logprob in spelled if words.content_words(word) - asked), None)


async def sample_agreement(
    runtime: Runtime,
    messages: Sequence[ChatMessage],
    parameters: GenerationParameters,
    k: int,
    *,
    answer: str | None = None,
    embedder: Embedder | None = None,
) -> float:
    """Ask a model k more times, and return how much the samples say the same, 0 to 1.

    Self-consistency (Wang et al. 2023) as a signal, SelfCheckGPT (Manakul et al. 2023) with words. It costs k answers.

    Args:
        runtime: the model.
        messages: the conversation.
        parameters: as for the answer; a temperature of 0 becomes 0.7, as samples must be able to differ.
        k: samples, at least 1; at least 2 without an answer.
        answer: the one to compare them with; None compares them with each other.
        embedder: compares texts by meaning, where given; else by words.

    Raises:
        ConfigError: k is too small.
        RequestError, RuntimeFailure: as `Runtime.generate`.
    """
    if k < (1 if answer is not None else 2):
        raise ConfigError(f"k is {k}; sampling takes at least 1, and 2 where there is no answer to compare with")
    sampling = replace(parameters, temperature=parameters.temperature or 0.7)
    runs = [replace(sampling, seed=(sampling.seed or 0) + n + 1) for n in range(k)]
    tasks = [asyncio.ensure_future(runtime.generate(messages, run)) for run in runs]
    try:
        samples = [generation.text for generation in await asyncio.gather(*tasks)]
    finally:  # whatever one of them failed of, the others are not worth waiting for
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return mean_sameness(samples, answer, embedder)


def mean_sameness(samples: Sequence[str], answer: str | None = None, embedder: Embedder | None = None) -> float:
    """Return the mean `sameness` of samples with an answer, or with each other; 1 where there is nothing to compare."""
    pairs = [(answer, sample) for sample in samples] if answer is not None else list(combinations(samples, 2))
    return round(sum(sameness(a, b, embedder) for a, b in pairs) / len(pairs), 4) if pairs else 1.0


def sameness(a: str, b: str, embedder: Embedder | None = None) -> float:
    """Return how much two answers say the same, 0 to 1: by the numbers they arrive at, else by meaning or words."""
    one, other = words.final_number(a), words.final_number(b)
    if one is not None and other is not None:
        return float(math.isclose(one, other, rel_tol=1e-9))
    if embedder is None:
        return words.word_overlap(a, b)
    rows = embedder.embed([a, b])
    return min(1.0, max(0.0, float(rows[0] @ rows[1])))


def is_model_answer(reply: Reply) -> bool:
    """Whether a language model wrote it: it comes with token probabilities, or a source says so."""
    said = (source.document or "" for source in reply.sources)
    return reply.uncertainty is not None or any("language model" in document for document in said)


def by_rule(question: str, text: str) -> Verdict | None:
    """Return the verdict where a calculation or the answer's form decides, whoever answered; else None."""
    if (exact := _exact(question, text)) is not None:
        return exact
    if words.refuses(text):
        return _verdict(0.0, "it declines to answer")
    if words.echoes(question, text):
        return _verdict(0.0, "it only repeats the question")
    if words.repetition(text) > _LOOP:
        return _verdict(0.1, "it goes round in circles")
    return None


def _exact(question: str, text: str) -> Verdict | None:
    value = words.asked_value(question)
    if value is None or (hit := words.hits(value, text)) is None:
        return None
    shown = f"{float(value):.10g}"
    if hit:
        return _verdict(1.0, f"it gives the exact value, {shown}")
    return _verdict(0.0, f"the exact value is {shown}, it says {words.final_number(text):.10g}")


def _of_device(text: str, reply: Reply) -> Verdict:
    wrong = next((c for c in spelled_calculations(text) if c.right is False), None)
    if wrong is not None:
        return _verdict(0.1, f"a calculation in it is wrong: {wrong.expression.strip()} = {wrong.result}")
    if reply.confidence is None:
        return _verdict(_UNSTATED, "it states no confidence")
    return _verdict(reply.confidence, f"it states a confidence of {reply.confidence:.2f}")


def _verdict(probability: float, reason: str, score: float | None = None) -> Verdict:
    probability = min(_MOST, max(_LEAST, probability))
    score = math.log(probability / (1 - probability)) if score is None else score
    return Verdict(score=round(score, 4), probability=round(probability, 4), reason=reason)


def _sigmoid(log_odds: float) -> float:
    return 0.5 * (1 + math.tanh(0.5 * log_odds))
