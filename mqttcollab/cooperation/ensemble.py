"""Many agents at once: the same question to several of them, or many questions spread over them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mqttcollab.agent import Agent
from mqttcollab.cms.views import Offer
from mqttcollab.cooperation.consensus import Consensus, agree, group_votes
from mqttcollab.errors import ConfigError, ErrorCode, MqttCollabError, RequestError
from mqttcollab.messages import Reply
from mqttcollab.peers import unless_lost

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder

Target = tuple[str, str]  # a service and the agent that is to be asked
Weigh = Callable[[str, str], float]  # an agent's skill in a service, 0 to 1: `lambda a, s: book.expected(a, s).score`

_MOST_ATTEMPTS = 3
_BUSY_S = 0.1


async def ask_many(
    agent: Agent,
    question: str | dict[str, Any],
    service: str | Sequence[Target],
    *,
    k: int = 3,
    agreement: float = 0.5,
    ttl_s: float = 30.0,
    weigh: Weigh | None = None,
    embedder: Embedder | None = None,
    **fields: Any,
) -> Consensus:
    """Asks k agents at once and lets their answers vote; stops when the others can't change the outcome any more.

    Where one fails, the next takes its place while there are any. What is cancelled tells its agent so.

    Args:
        agent: who asks; running.
        question: in words, or a map.
        service: a name or an MQTT filter over names, of which the agents of most skill and least load are asked; or
            pairs of service and agent in the order in which to ask.
        k: how many answers are wanted.
        agreement: the share of votes with which the outcome counts as settled.
        ttl_s: seconds in all.
        weigh: an agent's skill in a service; without it all weigh the same.
        embedder: compares texts by meaning.
        **fields: further ones of `Agent.ask`: context, parameters, session, …

    Raises:
        ConfigError: k or agreement is out of range.
        RequestError: nobody offers it (`no_capability`), or nobody answered.
    """
    if k < 1 or not 0 <= agreement <= 1:
        raise ConfigError(f"k is {k} and agreement {agreement}; they must be at least 1 and from 0 to 1")
    targets = await _targets(agent, service, weigh)
    poll = _Poll(agent, question, ttl_s, fields, weigh or _equal, embedder, agreement)
    try:
        while True:
            while targets and len(poll.replies) + len(poll.waiting) < k:
                poll.start(targets.popleft(), others=bool(targets))
            if not poll.waiting:
                break
            await poll.next()
            if poll.decided(targets, k):
                break
    finally:
        await poll.stop()
    return poll.outcome()


@dataclass(slots=True)
class _Poll:
    """One question under way."""

    agent: Agent
    question: str | dict[str, Any]
    ttl_s: float
    fields: dict[str, Any]
    weigh: Weigh
    embedder: Embedder | None
    agreement: float
    waiting: dict[asyncio.Task[Reply], Target] = field(default_factory=dict)
    replies: list[tuple[str, Reply, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    codes: set[ErrorCode] = field(default_factory=set)
    deadline: float = 0.0

    def __post_init__(self) -> None:
        self.deadline = asyncio.get_running_loop().time() + self.ttl_s

    def start(self, target: Target, *, others: bool) -> None:
        left = max(0.001, self.deadline - asyncio.get_running_loop().time())
        asking = _ask(self.agent, self.question, target, left, self.fields, others=others)
        self.waiting[asyncio.create_task(asking)] = target

    async def next(self) -> None:
        """Waits for one more answer or failure."""
        done, _ = await asyncio.wait(self.waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            service, name = self.waiting.pop(task)
            try:
                reply = task.result()
            except MqttCollabError as error:
                self.failures.append(f"@{name}: {error}")
                self.codes.add(error.code if isinstance(error, RequestError) else "internal")
                continue
            if (reply.output or "").strip() or reply.data:
                self.replies.append((name, reply, self.weigh(name, service)))
            else:
                self.failures.append(f"@{name}: an empty answer")
                self.codes.add("internal")

    def consensus(self) -> Consensus | None:
        text = self.question if isinstance(self.question, str) else str(self.question.get("text", ""))
        return agree(self.replies, question=text, embedder=self.embedder, agreement=self.agreement)

    def decided(self, spares: Sequence[Target], k: int) -> bool:
        """Whether neither what is chosen nor whether it is settled can change by those that may still answer."""
        found = self.consensus()
        missing = k - len(self.replies)
        if found is None or missing <= 0:
            return found is not None
        possible = sorted(
            (self.weigh(name, service) for service, name in (*self.waiting.values(), *spares)), reverse=True
        )
        rest = sum(possible[:missing])
        votes = [group_votes(group) for group in found.groups]
        everything = sum(votes) + rest
        beaten = (len(votes) > 1 and votes[1] + rest >= votes[0]) or rest >= votes[0]
        surely, maybe = votes[0] >= self.agreement * everything, votes[0] + rest >= self.agreement * everything
        return not beaten and (surely or not maybe)

    async def stop(self) -> None:
        for task in self.waiting:
            task.cancel()
        await asyncio.gather(*self.waiting, return_exceptions=True)

    def outcome(self) -> Consensus:
        found = self.consensus()
        if found is None:
            code: ErrorCode = self.codes.pop() if len(self.codes) == 1 else "internal"
            raise RequestError(code, "nobody who was asked could answer: " + "; ".join(self.failures))
        return replace(found, failures=tuple(self.failures))


@dataclass(frozen=True, slots=True)
class Gathered:
    """What became of many questions.

    Attributes:
        replies: in the order of the questions; None where there is no answer.
        agents: who gave them.
        failures: a line for each question without an answer: its number from 1, and why.
    """

    replies: tuple[Reply | None, ...]
    agents: tuple[str | None, ...]
    failures: tuple[str, ...]


async def scatter(
    agent: Agent,
    questions: Sequence[str | dict[str, Any]],
    service: str | Sequence[Target],
    *,
    ttl_s: float = 30.0,
    **fields: Any,
) -> Gathered:
    """Spreads questions over all agents that offer a service, as many at once as each has slots; in order again.

    A question that fails goes to another agent, up to three in all; one that is busy is asked again a little later.

    Args:
        agent: who asks; running.
        questions: in words, or maps.
        service: a name or filter, or pairs of service and agent.
        ttl_s: seconds for all of them together.
        **fields: further ones of `Agent.ask`.

    Raises:
        RequestError: nobody offers it (`no_capability`). What single questions fail of is in `failures`.
    """
    targets = list(await _targets(agent, service, None))
    slots = {(o.record.service, o.agent.name): _slots(o) for o in (await agent.follow()).offers()}
    spread = _Spread(agent, list(questions), targets, asyncio.get_running_loop().time() + ttl_s, fields)
    while spread.todo:  # a question may come back when those who could take it have nothing left to wait for
        before = len(spread.todo), spread.attempts
        async with asyncio.TaskGroup() as group:
            for target in targets:
                for _ in range(min(slots.get(target, 1), len(spread.todo))):
                    group.create_task(spread.work(target))
        if (len(spread.todo), spread.attempts) == before:
            break
    return spread.gathered()


@dataclass(slots=True)
class _Spread:
    """Many questions under way; `tried` says by whom each failed, `why` with what."""

    agent: Agent
    questions: list[str | dict[str, Any]]
    targets: list[Target]
    deadline: float
    fields: dict[str, Any]
    todo: deque[int] = field(init=False)
    replies: list[Reply | None] = field(init=False)
    agents: list[str | None] = field(init=False)
    tried: list[set[Target]] = field(init=False)
    why: list[str] = field(init=False)
    attempts: int = 0

    def __post_init__(self) -> None:
        count = len(self.questions)
        self.todo = deque(range(count))
        self.replies, self.agents = [None] * count, [None] * count
        self.tried, self.why = [set() for _ in range(count)], ["not asked in time"] * count

    async def work(self, target: Target) -> None:
        """Asks one agent one question after the other, until there is none left for it."""
        loop = asyncio.get_running_loop()
        while (number := next((n for n in self.todo if target not in self.tried[n]), None)) is not None:
            left = self.deadline - loop.time()
            if left <= 0:
                return
            self.todo.remove(number)
            self.attempts += 1
            try:
                asking = _ask(
                    self.agent, self.questions[number], target, left, self.fields, others=len(self.targets) > 1
                )
                self.replies[number], self.agents[number] = await asking, target[1]
            except MqttCollabError as error:
                await self._failed(number, target, error)

    async def _failed(self, number: int, target: Target, error: MqttCollabError) -> None:
        self.why[number] = f"@{target[1]}: {error}"
        busy = isinstance(error, RequestError) and error.code == "busy"
        if not busy:
            self.tried[number].add(target)
        if len(self.tried[number]) < min(_MOST_ATTEMPTS, len(self.targets)):
            self.todo.append(number)
        if busy:
            pause = (error.retry_after_ms or 0) / 1000 if isinstance(error, RequestError) else 0.0
            await asyncio.sleep(min(max(pause, _BUSY_S), max(0.0, self.deadline - asyncio.get_running_loop().time())))

    def gathered(self) -> Gathered:
        failures = [f"question {n + 1}: {self.why[n]}" for n, reply in enumerate(self.replies) if reply is None]
        return Gathered(tuple(self.replies), tuple(self.agents), tuple(failures))


async def _targets(agent: Agent, service: str | Sequence[Target], weigh: Weigh | None) -> deque[Target]:
    registry = await agent.follow()
    if not isinstance(service, str):
        found = list(dict.fromkeys(service))
    else:
        offers = [offer for offer in registry.offers(service) if offer.agent.name != agent.name]
        if weigh is not None:  # a stable sort: among equals the least loaded first
            skill = weigh
            offers.sort(key=lambda o: (o.agent.asleep, -skill(o.agent.name, o.record.service)))
        # Who offers several services that the filter matches has one vote all the same.
        first = {offer.agent.name: offer.record.service for offer in reversed(offers)}
        found = [(first[name], name) for name in dict.fromkeys(offer.agent.name for offer in offers)]
    if not found:
        raise RequestError("no_capability", f"no other agent that is online offers {service or 'anything named'}")
    return deque(found)


async def _ask(
    agent: Agent,
    question: str | dict[str, Any],
    target: Target,
    left_s: float,
    fields: dict[str, Any],
    *,
    others: bool,
) -> Reply:
    service, name = target
    asking = agent.ask(question, service=service, agent=name, ttl_s=left_s, **fields)
    if any(view.name == name for view in agent.registry.present()):
        return await unless_lost(asking, agent.registry, name, others=others)
    return await asking


def _slots(offer: Offer) -> int:
    return max(1, offer.record.concurrency)


def _equal(_agent: str, _service: str) -> float:
    return 1.0
