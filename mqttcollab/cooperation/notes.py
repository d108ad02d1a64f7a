"""Knowledge that is shared: what an agent has learned is offered to its peers, and asked for before anything else."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from mqttcollab.agent import Agent
from mqttcollab.cms.registry import Registry
from mqttcollab.cooperation.knowledge import KnowledgeBase
from mqttcollab.cooperation.note import NOTE_KEY, Note, is_volatile, unpack
from mqttcollab.cooperation.sameness import difference, read
from mqttcollab.errors import ConfigError, RequestError
from mqttcollab.messages import Reply, Request
from mqttcollab.service import Answer, Service

_log = logging.getLogger(__name__)

# For a look into a peer's notes, before those who know are asked.
_NOTES_TTL_S = 3.0
# What makes the answer depend on more than the question.
_BEYOND_THE_QUESTION = ("context", "session", "plan")


class AgedReply(Reply):
    """A reply, and how old it is.

    Attributes:
        age_s: seconds since the answer was given by its source.
        local: whether it came out of the asker's own notes, without a message.
    """

    age_s: float = 0.0
    local: bool = False


class Notes(Service):
    """Offers what an agent has learned to its peers: they find it by its record, whose examples are the questions.

    Only a question that is noted is answered, with the answer's first source and age; to any other the reply is
    `no_capability`, upon which the asker tries somebody else. Notes about the agent itself or about a moment stay
    with it. The other questions can be read by whoever may read its record.

    Args:
        agent: whose notes they are: `agent.add(Notes(agent, kb))`.
        kb: the notes.
    """

    name = "knowledge.gpt/notes"
    description = "Answers that this agent got from others earlier, with their source and age"
    concurrency = 8

    def __init__(self, agent: Agent, kb: KnowledgeBase) -> None:
        self._agent = agent
        self._kb = kb

    async def started(self) -> None:
        """Announces the questions, from now on at every change."""
        self._kb.on_change.append(self._announce)
        self._announce()

    async def stopping(self) -> None:
        """Announces no more changes."""
        if self._announce in self._kb.on_change:
            self._kb.on_change.remove(self._announce)

    async def handle(self, request: Request) -> Answer:
        """The note of that very question."""
        alone = isinstance(request.input, str) or request.input.keys() == {"text"}
        found = self._kb.recall(request.text) if alone and not request.context else None
        if found is None or not found.note.shareable:
            raise RequestError("no_capability", f"@{self._agent.name} has no note of this question")
        note = found.note
        about = {
            "question": note.question,
            "age_s": round(found.age_s, 3),
            "left_s": round(self._kb.left_s(note), 3),
        }
        return Answer(
            text=note.text,
            data={**(note.data or {}), NOTE_KEY: about},
            confidence=note.confidence,
            sources=[source.model_copy() for source in note.sources],
        )

    def _announce(self) -> None:
        try:
            self._agent.update(self.name, examples=self._kb.questions())
        except ConfigError as error:
            _log.warning("the notes can't be announced: %s", error)


async def ask_and_remember(asker: Agent, kb: KnowledgeBase, question: str, /, **ask: Any) -> AgedReply:
    """Answers a question from one's own notes, else from a peer's, else asks who knows; and takes a note of it.

        kb = KnowledgeBase()
        agent.add(Notes(agent, kb))  # shares what it learns
        reply = await ask_and_remember(agent, kb, "What do I do about a burn?", service="knowledge.gpt/medicine/#")

    With `context`, `session` or `plan` the answer depends on more than the question: then it neither comes from notes
    nor becomes one.

    Args:
        asker: who asks; running.
        kb: its notes.
        **ask: as for `Agent.ask`: service, agent, context, ttl_s, …

    Raises:
        RequestError: nobody could answer; see `Agent.ask`.
    """
    if any(ask.get(field) for field in _BEYOND_THE_QUESTION):
        return _aged(await asker.ask(question, **ask))
    found = kb.recall(question, service=ask.get("service"), agent=ask.get("agent"))
    if found is not None:
        return _from(found.note, found.age_s)
    reply = await _ask_for_a_note(asker, question, ask) or await asker.ask(question, **ask)
    ttl_s = _heartbeat_s(asker.registry, reply) if is_volatile(question, reply) else None
    kb.remember(question, reply, ttl_s=ttl_s)
    return _aged(reply)


def who_noted(registry: Registry, question: str) -> list[str]:
    """The agents that are there and announce a note of that question, least loaded first."""
    asked = read(question)
    if not asked.standalone:
        return []
    return [
        offer.agent.name
        for offer in registry.offers(Notes.name)
        if any(
            read(example).words == asked.words and difference(read(example), asked) is None
            for example in offer.record.examples
        )
    ]


async def _ask_for_a_note(asker: Agent, question: str, ask: dict[str, Any]) -> Reply | None:
    """What a peer has noted, where the question goes to whoever knows and somebody announces that it does."""
    if ask.get("service") is not None or ask.get("agent") is not None:
        return None
    holders = [name for name in who_noted(await asker.follow(), question) if name != asker.name]
    if not holders:
        return None
    ttl_s = min(_NOTES_TTL_S, ask.get("ttl_s", _NOTES_TTL_S))
    try:
        return await asker.ask(question, **ask | {"service": Notes.name, "agent": holders[0], "ttl_s": ttl_s})
    except RequestError as error:  # forgotten since, or gone
        _log.info("@%s does not answer from its notes: %s", holders[0], error)
        return None


def _heartbeat_s(registry: Registry, reply: Reply) -> float | None:
    """The shortest heartbeat of the data records that had a part in a reply; None where none is known."""
    names = {(reply.agent, reply.service)}
    names |= {(source.agent, source.service) for source in reply.sources}
    names |= {(step.agent, step.service) for step in reply.steps}
    records = [
        registry.agents[agent].records.get(service)
        for agent, service in names
        if agent in registry.agents and service is not None and service.startswith("data.gpt/")
    ]
    return min((r.heartbeat_s for r in records if r is not None and r.heartbeat_s is not None), default=None)


def _from(note: Note, age_s: float) -> AgedReply:
    return AgedReply(
        id=secrets.token_hex(16),
        output=note.text,
        data=note.data,
        confidence=note.confidence,
        agent=note.agent,
        service=note.service,
        sources=[source.model_copy() for source in note.sources],
        age_s=age_s,
        local=True,
    )


def _aged(reply: Reply) -> AgedReply:
    data, age_s, _ = unpack(reply.data)
    return AgedReply(**reply.model_dump(exclude={"data"}), data=data, age_s=age_s or 0.0)
