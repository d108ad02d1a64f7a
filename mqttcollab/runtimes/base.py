"""What a model looks like to the rest of the library: messages in, text out, as a whole or token by token.

The module imports nothing heavy, so a device that only types against it stays small.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from mqttcollab.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise RequestError("bad_request", f"message role is {self.role!r}; one of {', '.join(_ROLES)}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A streamed piece of text, one token where the runtime works by tokens.

    Attributes:
        text: may be empty: a token can end in the middle of a character, or may begin a stop string.
        logprob: natural logarithm of the token's probability, where the runtime knows it.
        finish_reason: why the answer ended, on its last chunk, where the runtime knows it; as in `Generation`.
    """

    text: str
    logprob: float | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer of a model.

    Attributes:
        logprobs: natural logarithm of each generated token's probability; empty where there are none.
        tokens: the pieces of text that belong to them, a token that ends in the middle of a character being empty.
        finish_reason: `stop` (the model or a stop string ended it), `length` (max_tokens or the context) or `loop` (it
            repeated itself without end).
        tokens_per_s: completion tokens per second of generation, without waiting and reading the prompt.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[float, ...] = ()
    finish_reason: str = "stop"
    tokens_per_s: float | None = None
    tokens: tuple[str, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether it was cut off before the model was done."""
        return self.finish_reason in ("length", "loop")


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """How to generate.

    Attributes:
        max_tokens: the longest answer, at least 1.
        temperature: 0 takes the likeliest token each time; at most 2.
        top_p: sample from the likeliest tokens that hold this share of probability; in (0, 1], 1 is off.
        top_k: sample from this many likeliest tokens; 0 is off.
        stop: the answer ends before the first of these strings.
        seed: makes sampling repeatable.
        schema: a JSON schema that the answer has to follow; only an answer cut off by max_tokens does not. A runtime
            that can't hold its model to one refuses (`unsupported`), but for FunctionRuntime.
        loop_tokens: an answer that ends in so many tokens of the same cycle over and over is ended (`loop`); 0 is off.
            `mqttcollab.runtimes.loops` has the rule.

    Raises:
        RequestError: `bad_request`, naming the parameter that is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    loop_tokens: int = 128

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(0.0 <= self.temperature <= 2.0, "temperature", self.temperature, "from 0 to 2")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0: off)")
        _check(not isinstance(self.stop, str), "stop", self.stop, "a tuple of strings, not one string")
        _check(all(self.stop), "stop", self.stop, "a tuple of strings that are not empty")
        _check(self.seed is None or 0 <= self.seed < 2**32 - 1, "seed", self.seed, "from 0 to 4294967294")
        _check(self.loop_tokens >= 0, "loop_tokens", self.loop_tokens, "at least 0 (0: off)")
        valid = self.schema is None or (isinstance(self.schema, Mapping) and bool(self.schema))
        _check(valid, "schema", self.schema, "a JSON schema that is not empty")


def _check(valid: bool, name: str, value: object, rule: str) -> None:
    if not valid:
        raise RequestError("bad_request", f"parameter {name} is {value!r}; it must be {rule}")


DEFAULT_PARAMETERS = GenerationParameters()


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors. Vectors of different models are never compared."""

    model: str
    dimension: int

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return an array of shape (len(texts), dimension), float32, each row of unit length."""
        ...


@runtime_checkable
class Runtime(Protocol):
    """A language model, wherever it runs."""

    model: str

    async def generate(
        self, messages: Sequence[ChatMessage], parameters: GenerationParameters = DEFAULT_PARAMETERS
    ) -> Generation:
        """Answer as a whole; cancelling the call stops the generation.

        Raises:
            RequestError: `too_large`, `busy`, `bad_request`, `unsupported`, `unauthorized` or `internal`.
            RuntimeFailure: the model can't be loaded or reached, or failed while it ran.
        """
        ...

    def stream(
        self, messages: Sequence[ChatMessage], parameters: GenerationParameters = DEFAULT_PARAMETERS
    ) -> AsyncIterator[Chunk]:
        """Answer piece by piece; closing the iterator stops the generation. Raises what `generate` raises."""
        ...

    async def close(self) -> None:
        """Free the model; requests that still run or wait end with RuntimeFailure."""
        ...
