"""The service in front of a cloud model, and its agent."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from mqttcollab.agent import Agent
from mqttcollab.cloud.breaker import Breaker
from mqttcollab.cloud.calls import Answered, Caller, Job
from mqttcollab.cloud.ledger import Ledger
from mqttcollab.cloud.metrics import INTERVAL_S, Metrics
from mqttcollab.cloud.prices import price_of, to_nano, to_usd
from mqttcollab.cloud.redaction import Redacted, Redactor
from mqttcollab.cloud.settings import CloudSettings
from mqttcollab.errors import ConfigError, MqttCollabError, RequestError
from mqttcollab.messages import Request, Source, Usage
from mqttcollab.runtimes import ChatMessage, GenerationParameters
from mqttcollab.runtimes.config import load_runtime
from mqttcollab.service import Answer, Service

_log = logging.getLogger(__name__)

_MOST_TENANT = 256
_GOODBYE_S = 2.0
# What is kept of a request's time to answer that it is over: a share of it, up to so many seconds.
_MARGIN, _MOST_MARGIN_S = 0.1, 0.5


class CloudService(Service):
    """Asks a model in the cloud, within limits; `started` opens the ledger, `stopping` closes it.

    Args:
        agent: whose service it is; through its connection the metrics are published.

    Raises:
        ConfigError: a setting is wrong, the model has no price, or its key is not in the environment.
        RuntimeFailure: the openai package is not installed.
    """

    def __init__(self, settings: CloudSettings, agent: Agent) -> None:
        where = settings.where
        try:
            self._redactor = Redactor(settings.redaction.kinds, settings.redaction.words, settings.redaction.patterns)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        self._runtime = load_runtime({**settings.endpoint, "kind": "openai"}, where=f"{where}: endpoint")
        self._price = price_of(self._runtime.model, settings.prices, where)
        self._settings, self._agent = settings, agent
        self._breaker = Breaker(settings.breaker.failures, settings.breaker.pause_s)
        self._ledger: Ledger | None = None
        self._caller: Caller | None = None
        self._metrics: Metrics | None = None
        vars(self).update(  # settings here, where other services have constants
            name=settings.service,
            description=settings.description,
            examples=tuple(settings.examples),
            concurrency=settings.concurrency,
            accuracy=settings.accuracy,
        )
        self.model = self._key = settings.key(self._runtime.model)
        self.prompt_usd_per_mtok = self._price.prompt_usd_per_mtok
        self.completion_usd_per_mtok = self._price.completion_usd_per_mtok
        self.leaves_edge = True

    async def started(self) -> None:
        """Opens the ledger."""
        settings = self._settings
        if self._price.held_on is not None:
            _log.warning("%s: the price of %s is the one of %s", settings.where, self.model, self._price.held_on)
        self._ledger = ledger = await Ledger.open(settings.ledger_path)
        self._metrics = Metrics(self._key, ledger, self._breaker)
        self._caller = Caller(
            self._runtime,
            self._key,
            self._price,
            ledger,
            settings.limits.limits(),
            self._breaker,
            settings.retry,
            settings.breaker,
        )
        self._agent.transport.on_connected(self._metrics.forget)

    async def stopping(self) -> None:
        """Publishes the last metrics, closes the ledger and the connections."""
        if self._ledger is not None:
            with contextlib.suppress(MqttCollabError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S if self._agent.transport.online else 0):
                    await self.publish()
            await self._ledger.close()
        await self._runtime.close()

    async def handle(self, request: Request) -> Answer:
        """Answers as a whole, also where a stream was asked for: the cost is known at the end only."""
        if not request.may_leave_edge:
            text = f"the request may not leave the edge (may_leave_edge: false), and {self.name} is in the cloud"
            raise RequestError("unauthorized", text)
        if not request.text.strip():
            raise RequestError("bad_request", "the question is empty: nothing was sent")
        if request.tenant is not None and len(request.tenant) > _MOST_TENANT:
            raise RequestError("bad_request", f"the tenant's name has over {_MOST_TENANT} characters")
        assert self._caller is not None
        redacted = self._redactor.redact(_texts(self._settings.system, request))
        answered = await self._caller.call(self._job(request, redacted))
        return self._answer(answered, redacted)

    async def publish(self) -> None:
        """Publishes the metrics that have changed."""
        assert self._metrics is not None
        await self._metrics.publish(self._agent.transport)

    def _job(self, request: Request, redacted: Redacted) -> Job:
        system, question, *stop = redacted.texts
        left_s = request.ttl_ms / 1000
        wanted = request.parameters
        return Job(
            messages=[ChatMessage("system", system), ChatMessage("user", question)],
            parameters=GenerationParameters(
                max_tokens=min(wanted.max_tokens or self._settings.max_tokens, self._settings.max_tokens),
                temperature=wanted.temperature or 0.0,
                top_p=wanted.top_p or 1.0,
                top_k=wanted.top_k or 0,
                stop=tuple(stop),
                seed=wanted.seed,
            ),
            tenant=request.tenant or "",
            budget=None if request.budget_usd is None else to_nano(request.budget_usd),
            deadline=asyncio.get_running_loop().time() + left_s - min(_MARGIN * left_s, _MOST_MARGIN_S),
            redactions=redacted.count,
        )

    def _answer(self, answered: Answered, redacted: Redacted) -> Answer:
        generation, bill = answered.generation, answered.bill
        text = generation.text.strip()
        data = {}
        if bill.estimated:
            _log.warning("the endpoint did not say what an answer took: its worst case is charged")
            data["cost_estimated"] = True
        if generation.truncated:
            data["truncated"] = True
        return Answer(
            text=redacted.restore(text) if self._settings.redaction.restore else text,
            data=data or None,
            sources=[Source(document=f"written by {self._runtime.model}, a model in the cloud; it may be wrong")],
            usage=Usage(
                prompt_tokens=bill.prompt_tokens, completion_tokens=bill.completion_tokens, cost_usd=to_usd(bill.nano)
            ),
        )


def _texts(system: str, request: Request) -> list[str]:
    """All that will leave: the system's words with the facts that earlier steps found, the question, stop strings."""
    facts = [f"- {item.text.strip()}" for item in request.context if item.text.strip()]
    if facts:
        given = "\n".join(facts)
        system += f"\nUse these facts, measured or looked up by other devices; do not contradict them:\n{given}"
    return [system, request.text, *request.parameters.stop]


def cloud_agent(settings: CloudSettings) -> Agent:
    """An agent in front of a cloud model, that also publishes its metrics.

    Raises:
        ConfigError: a setting is wrong, the model has no price, or its key is not in the environment.
        RuntimeFailure: the openai package is not installed.
    """
    agent = Agent(settings.name, description=settings.description, place=settings.place)
    service = CloudService(settings, agent)
    agent.add(service)
    agent.every(INTERVAL_S)(service.publish)
    return agent


async def check_ledger(settings: CloudSettings) -> None:
    """Opens and closes the ledger; raises ConfigError where it can't be used."""
    await (await Ledger.open(settings.ledger_path)).close()
