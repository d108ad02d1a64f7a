"""What a device author writes: a service, as a class or a function, and its answers."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from mqttcollab.errors import ConfigError
from mqttcollab.messages import Plan, Reply, Request, ServiceRecord, Source, Step, Uncertainty, Usage
from mqttcollab.rpc.job import PartSender, RequestHandler
from mqttcollab.threads import Threads

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder


@dataclass(slots=True)
class Answer:
    """What a handler returns when a plain string does not say enough.

    Attributes:
        text: the answer in words.
        data: the same for machines; units in the names or under `units`.
        confidence: 0 to 1, the handler's own estimate that the answer is right; None if it can't tell.
        uncertainty: how a language model wrote it, where one did.
        sources: where it comes from; agent and service are filled in.
        usage: tokens, where a model was at work.
        plan, steps, missing: how an orchestrator came to it, and what it could not get.
    """

    text: str
    data: dict[str, Any] | None = None
    confidence: float | None = None
    uncertainty: Uncertainty | None = None
    sources: list[Source] = field(default_factory=list)
    usage: Usage | None = None
    plan: Plan | None = None
    steps: list[Step] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


Result = str | Answer
# A generator yields text, finished steps (orchestrators), or None as a sign of life; it may end with an Answer.
Part = str | Step | Answer | None
Handled = Result | Awaitable[Result] | AsyncIterator[Part]
HandlerFunction = Callable[[Request], Handled]


class Service(ABC):
    """A service as a class: set `name`, describe it, and write `handle`.

    Attributes:
        name: zone and domain, e.g. `knowledge.gpt/medicine/first-aid`.
        description: one or two sentences; matching by meaning reads them.
        examples: questions that it answers; matching by meaning reads them too.
        concurrency: requests handled at once; more wait.
        model: the key under `slm/models/` of the model that answers, if one does.
        price_usd: what a request costs, in US dollars.
        prompt_usd_per_mtok, completion_usd_per_mtok: what a million tokens read and written cost, beside it.
        leaves_edge: what it is asked goes to a cloud.
        accuracy: share of right answers, 0 to 1, where it was measured.
        durable: where its agent has a journal, a request that it took outlives the process: `handle` is called again
            with what is left of the ttl, in the next life or by another agent that shares the journal.
        waiting: what waits for others to be free, for the load report.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    examples: ClassVar[Sequence[str]] = ()
    concurrency: ClassVar[int] = 1
    model: str | None = None
    price_usd: ClassVar[float] = 0.0
    prompt_usd_per_mtok: float = 0.0
    completion_usd_per_mtok: float = 0.0
    leaves_edge: bool = False
    accuracy: ClassVar[float | None] = None
    durable: ClassVar[bool] = False

    @property
    def waiting(self) -> int:  # noqa: D102 - see above
        return 0

    @abstractmethod
    def handle(self, request: Request) -> Handled:
        """Answers a request: a coroutine, a plain function (run in a thread), or an async generator of parts.

        A generator yields pieces of text and may end with an `Answer`, which then is the whole answer.
        Raise RequestError to answer with an error code.
        """

    async def started(self) -> None:  # noqa: B027 - a hook
        """Called once connected and before the agent is announced: load what takes time here."""

    async def stopping(self) -> None:  # noqa: B027 - a hook
        """Called when the agent stops, while it is still connected."""


_COPIED = (
    "description",
    "price_usd",
    "prompt_usd_per_mtok",
    "completion_usd_per_mtok",
    "leaves_edge",
    "accuracy",
)


def record_of(
    service: Service,
    agent: str,
    place: str | None,
    heartbeat_s: float,
    embedder: Embedder | None = None,
    **changes: Any,
) -> ServiceRecord:
    """The record that announces a service; raises ConfigError where a field is missing or out of range.

    Args:
        **changes: fields of the record that have changed since the service was written.
    """
    name = getattr(service, "name", None)
    if not isinstance(name, str):
        raise ConfigError(f"@{agent}: {type(service).__name__} has no name: set `name`, e.g. 'data.gpt/weather'")
    examples = changes.pop("examples", service.examples)
    if isinstance(examples, str):
        raise ConfigError(f"@{agent}: the examples of {name} are a string; pass a list of questions")
    try:
        return ServiceRecord(
            agent=agent,
            service=name,
            examples=list(examples),
            concurrency=service.concurrency,
            model=service.model,
            place=place,
            heartbeat_s=heartbeat_s,
            embedding_model=embedder.model if embedder is not None else None,
            dimension=embedder.dimension if embedder is not None else None,
            **{field: getattr(service, field) for field in _COPIED} | changes,
        )
    except ValidationError as error:
        raise ConfigError(f"@{agent}: the service {name} is not valid: {first_line(error)}") from None


def first_line(error: ValidationError) -> str:
    """The first of the things that are wrong, in one line: which field, and what is wrong with it."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(level) for level in first["loc"])
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def function_service(handler: HandlerFunction, name: str, **attributes: Any) -> Service:
    """A service whose `handle` is a function."""
    kind = getattr(handler, "__name__", type(handler).__name__)
    cls = type(kind, (Service,), {"name": name, "handle": staticmethod(handler), **attributes})
    service = cls()
    assert isinstance(service, Service)
    return service


def adapt(service: Service, agent: str, ready: asyncio.Event) -> RequestHandler:
    """Turns `handle`, whatever its form, into what the responder calls; requests wait until `ready`."""
    blocking = not (inspect.iscoroutinefunction(service.handle) or inspect.isasyncgenfunction(service.handle))
    threads = Threads(service.name, service.concurrency) if blocking else None

    async def handle(request: Request, send_part: PartSender) -> Reply:
        await ready.wait()
        return _reply(request, await _result(service, request, send_part, threads), agent, service.name)

    return handle


async def _result(service: Service, request: Request, send_part: PartSender, threads: Threads | None) -> Result:
    result: Any
    if threads is not None:
        result = await threads.run(service.handle, request)
    else:
        result = service.handle(request)
    if isinstance(result, AsyncIterator):
        return await _collect(service.name, result, request, send_part)
    if inspect.isawaitable(result):
        result = await result
    if not isinstance(result, str | Answer):
        raise TypeError(f"{service.name}: handle returned {type(result).__name__}; expected str or Answer")
    return result


async def _collect(name: str, parts: AsyncIterator[Part], request: Request, send_part: PartSender) -> Result:
    pieces: list[str] = []
    try:
        async for part in parts:
            if isinstance(part, Answer):
                return part
            if not isinstance(part, str | Step | None):
                raise TypeError(f"{name}: handle yielded {type(part).__name__}; expected str, Step, Answer or None")
            if isinstance(part, str):
                pieces.append(part)
            if request.stream:
                await (send_part(None, [part]) if isinstance(part, Step) else send_part(part, []))
    finally:
        if inspect.isasyncgen(parts):
            await parts.aclose()
    return "".join(pieces)


def _reply(request: Request, result: Result, agent: str, service: str) -> Reply:
    if isinstance(result, str):
        return Reply(id=request.id, output=result)
    for source in result.sources:
        source.agent, source.service = source.agent or agent, source.service or service
    return Reply(
        id=request.id,
        output=result.text,
        data=result.data,
        confidence=result.confidence,
        uncertainty=result.uncertainty,
        sources=result.sources,
        usage=result.usage,
        plan=result.plan,
        steps=result.steps,
        missing=result.missing,
    )
