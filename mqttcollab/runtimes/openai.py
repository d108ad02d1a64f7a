"""Models behind an OpenAI-compatible HTTP endpoint: a cloud's, or a server on the local network."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from mqttcollab.errors import ConfigError, DeadlineExceeded, ErrorCode, RequestError, RuntimeFailure
from mqttcollab.runtimes.base import (
    DEFAULT_PARAMETERS,
    ChatMessage,
    Chunk,
    Generation,
    GenerationParameters,
)
from mqttcollab.runtimes.loops import LoopWatch

if TYPE_CHECKING:
    import openai

_CODES: dict[int, ErrorCode] = {
    400: "bad_request",
    401: "unauthorized",
    403: "unauthorized",
    404: "bad_request",
    413: "too_large",
    422: "bad_request",
    429: "busy",
}
# What the body of an error says more exactly than its status.
_NAMED_CODES: dict[str, ErrorCode] = {
    "context_length_exceeded": "too_large",
    "insufficient_quota": "quota_exceeded",
}
# Some servers call it an internal error that they know no schemas.
_ABOUT_SCHEMA: dict[str, re.Pattern[str]] = {
    "bad_request": re.compile(r"response_format|schema|structured|grammar", re.I),
    "internal": re.compile(r"response_format|json_schema"),
}
_MOST_REASON = 500
# Errors of the HTTP client before there is a connection.
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
# What OpenAI's strict mode refuses; max_tokens bounds the answer all the same.
_NOT_STRICT = ("minLength", "maxLength")


class Unreachable(RuntimeFailure):
    """The endpoint can't be reached, or the connection broke.

    Attributes:
        sent: whether the request may have arrived there, and be charged for.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class Nonsense(RuntimeFailure):
    """The endpoint does not talk like one.

    Attributes:
        prompt_tokens, completion_tokens: what it says to have used all the same; 0 where it does not say.
    """

    def __init__(self, message: str, prompt_tokens: int, completion_tokens: int) -> None:
        super().__init__(message)
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens


class OpenAIRuntime:
    """A model served over HTTP, by chat completions. Use it from one event loop.

    It tries once: whoever asks decides whether to ask again, and whom. Make it before the event loop runs, or
    in a thread: importing `openai` takes half a second.

    Args:
        model: the model's name at the endpoint.
        base_url: such as `http://127.0.0.1:8000/v1`.
        api_key: sent as a bearer token; the environment is not searched for one.
        timeout_s: how long the endpoint may be silent.
        logprobs: ask for the tokens' log probabilities; some endpoints refuse a request that does.
        max_tokens_field: what the endpoint calls the limit; OpenAI's own newer models want the longer name.

    Raises:
        ConfigError: the base_url is not one.
        RuntimeFailure: the openai package is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        logprobs: bool = False,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url is {base_url!r}; it must begin with http:// or https://")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s is {timeout_s}; it must be above 0")
        self.model = model
        self.base_url = base_url.rstrip("/")
        self._logprobs = logprobs
        self._max_tokens_field = max_tokens_field
        self._timeout_s = timeout_s
        self._client = _client(self.base_url, api_key, timeout_s)

    async def generate(
        self, messages: Sequence[ChatMessage], parameters: GenerationParameters = DEFAULT_PARAMETERS
    ) -> Generation:
        """Answer as a whole.

        Raises:
            RequestError: the endpoint refused: `unauthorized`, `busy` (with retry_after_ms where it says),
                `quota_exceeded`, `too_large`, `unsupported` (it takes no schema), `bad_request`, `internal`.
            DeadlineExceeded: it was silent for timeout_s.
            RuntimeFailure: it can't be reached (Unreachable), or does not talk like an OpenAI endpoint (Nonsense).
        """
        with self._translated(parameters):
            answer = await self._client.chat.completions.create(**self._request(messages, parameters))
        usage = getattr(answer, "usage", None)
        prompt, completion = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        try:  # whatever it is: a web page instead of JSON comes back as a string
            choice = answer.choices[0]
            text = choice.message.content or ""
            logprobs = tuple(_logprobs(choice))
            if not isinstance(text, str):
                raise TypeError(text)
        except (AttributeError, IndexError, KeyError, TypeError):
            reason = "does not answer like an OpenAI endpoint; check base_url (it often ends in /v1)"
            raise Nonsense(f"{self.base_url} {reason}", prompt, completion) from None
        return Generation(
            text=text,
            prompt_tokens=prompt,
            completion_tokens=completion,
            logprobs=logprobs,
            finish_reason=choice.finish_reason or "stop",
        )

    async def stream(
        self, messages: Sequence[ChatMessage], parameters: GenerationParameters = DEFAULT_PARAMETERS
    ) -> AsyncIterator[Chunk]:
        """Answer as it comes; closing the iterator closes the connection, and so does an answer that repeats itself.

        Raises what `generate` raises.
        """
        finished, loops = None, LoopWatch(parameters.loop_tokens)
        with self._translated(parameters):
            request = self._request(messages, parameters)
            async with await self._client.chat.completions.create(**request, stream=True) as parts:
                async for part in parts:
                    if not part.choices:
                        continue
                    choice = part.choices[0]
                    finished = finished or choice.finish_reason
                    text, logprobs = choice.delta.content or "", _logprobs(choice)
                    if text or logprobs:
                        yield Chunk(text, logprobs[0] if logprobs else None)
                    for logprob in logprobs[1:]:  # several tokens in one part
                        yield Chunk("", logprob)
                    if text and loops.push(text):
                        finished = "loop"
                        break
        if not finished:
            raise RuntimeFailure(f"{self.base_url} cut off the answer of {self.model}")
        yield Chunk("", finish_reason=finished)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _request(self, messages: Sequence[ChatMessage], parameters: GenerationParameters) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
            self._max_tokens_field: parameters.max_tokens,
        }
        if parameters.stop:
            request["stop"] = list(parameters.stop)
        if parameters.seed is not None:
            request["seed"] = parameters.seed
        if parameters.top_k:
            request["extra_body"] = {"top_k": parameters.top_k}  # not OpenAI's own, but most servers know it
        if parameters.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": _strict(parameters.schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self._logprobs:
            request |= {"logprobs": True, "top_logprobs": 0}
        return request

    @contextmanager
    def _translated(self, parameters: GenerationParameters) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.APIConnectionError as error:
            sent = type(error.__cause__).__name__ not in _NOT_SENT
            if sent and isinstance(error, openai.APITimeoutError):
                raise DeadlineExceeded(f"{self.base_url} was silent for {self._timeout_s:g} s") from error
            reason = f"can't reach {self.base_url}: {error.__cause__ or error}; is the server running?"
            raise Unreachable(reason, sent=sent) from error
        except openai.APIStatusError as error:
            raise self._refusal(error, parameters) from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: JSON that is none
            raise RequestError("internal", f"{self.base_url} failed: {error}") from error

    def _refusal(self, error: openai.APIStatusError, parameters: GenerationParameters) -> RequestError:
        code = _NAMED_CODES.get(error.code or "") or _CODES.get(error.status_code, "internal")
        message = f"{self.base_url} refused ({error.status_code}): {_reason(error)}"
        about_schema = _ABOUT_SCHEMA.get(code) if parameters.schema is not None else None
        if about_schema is not None and about_schema.search(message):
            code = "unsupported"
        return RequestError(code, message, retry_after_ms=_retry_after_ms(error))


def _client(base_url: str, api_key: str | None, timeout_s: float) -> openai.AsyncOpenAI:
    try:
        import openai
    except ImportError as error:
        raise RuntimeFailure(
            "the openai package is not installed; get it with: pip install 'mqttcollab[openai]'"
        ) from error
    client = openai.AsyncOpenAI(
        base_url=base_url,
        api_key=api_key or "none",  # None would send OPENAI_API_KEY to whatever base_url is
        timeout=openai.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
        max_retries=0,
    )
    client.organization = client.project = None  # likewise
    return client


def _strict(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        # A property may have such a name; then its value is a schema.
        kept = {key: value for key, value in schema.items() if key not in _NOT_STRICT or isinstance(value, Mapping)}
        return {key: _strict(value) for key, value in kept.items()}
    return [_strict(value) for value in schema] if isinstance(schema, list) else schema


def _count(usage: Any, name: str) -> int:
    """A number of tokens that the endpoint states, or 0 where it is none."""
    count = getattr(usage, name, None)
    return count if isinstance(count, int) and count > 0 else 0


def _logprobs(choice: Any) -> list[float]:
    return [token.logprob for token in choice.logprobs.content or ()] if choice.logprobs else []


def _reason(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return " ".join(str(body.get("message") or body.get("detail") or error.message).split())[:_MOST_REASON]


def _retry_after_ms(error: openai.APIStatusError) -> int | None:
    """Return what `retry-after-ms` or `retry-after` says; a date is taken against the answer's own."""
    headers = error.response.headers
    for name, factor in (("retry-after-ms", 1.0), ("retry-after", 1000.0)):
        try:
            value = float(headers[name]) * factor
        except (KeyError, ValueError):
            continue
        if math.isfinite(value) and value >= 0:
            return math.ceil(value)
    try:
        then, now = (parsedate_to_datetime(headers[name]) for name in ("retry-after", "date"))
        return max(0, math.ceil(1000 * (then - now).total_seconds()))
    except (KeyError, ValueError, TypeError):  # TypeError: only one of them has a time zone
        return None
