"""What an orchestrator learns: the records as they come, and from outcomes how far each agent can be trusted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from mqttcollab.classifiers.base import AnswerJudge, DomainClassifier, Trainable
from mqttcollab.classifiers.skill import SkillBook
from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import Offer
from mqttcollab.messages import ServiceRecord
from mqttcollab.orchestrator.placing import Attempt
from mqttcollab.orchestrator.subtask import Outcome
from mqttcollab.threads import Threads

_log = logging.getLogger(__name__)

# A fleet that comes up is not trained on agent by agent.
_QUIET_S = 2.0
# What says that an agent failed at what it claims to do, not that it was busy, stopped or not reached.
_FAILURES = ("internal", "no_capability", "deadline_exceeded", "unsupported")
# An agent that got less time than this, in seconds, was not slow: the requester was in a hurry.
_FAIR_S = 1.0


class Learner:
    """Learns records as they come: at once for answering, later by training where the classifier can.

    Args:
        registry: followed.
        domains: the classifier.
        counts: whether a record is one to be found by meaning.
    """

    def __init__(self, registry: Registry, domains: DomainClassifier, counts: Callable[[ServiceRecord], bool]) -> None:
        self._registry = registry
        self._domains = domains
        self._counts = counts
        self._learned: list[ServiceRecord] | None = None
        self._learning = asyncio.Lock()
        self._threads = Threads("training", 1)
        # Who gives up waiting ends no thread: the next records must not be learned beside, and before, those.
        self._learners = Threads("learning", 1)
        self._trainer = asyncio.create_task(self._train()) if isinstance(domains, Trainable) else None

    async def offers(self) -> list[Offer]:
        """Everything on offer now; the classifier knows it when this returns."""
        offers = self._registry.offers()
        records = [offer.record for offer in offers if self._counts(offer.record)]
        records.sort(key=lambda record: (record.service, record.agent))
        async with self._learning:
            # The registry keeps a record's object until another one comes, and comparing 15,000 examples takes time.
            if self._learned is None or [*map(id, self._learned)] != [*map(id, records)]:
                await self._learners.run(self._domains.learn, records)
                self._learned = records
        return offers

    async def stop(self) -> None:
        """Ends the training; a run under way in its thread is left to itself."""
        if self._trainer is not None:
            self._trainer.cancel()
            await asyncio.gather(self._trainer, return_exceptions=True)

    async def _train(self) -> None:
        assert isinstance(self._domains, Trainable)
        trained: list[ServiceRecord] | None = None
        while True:
            await self._quiet()
            version = self._registry.version
            try:
                await self.offers()
                if self._learned is not trained:
                    trained = self._learned
                    await self._threads.run(self._domains.train)
            except Exception:
                _log.exception("the classifier was not trained; nearest examples go on deciding")
            while self._registry.version == version:
                await self._registry.changed()

    async def _quiet(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_QUIET_S):
                    await self._registry.changed()
            except TimeoutError:
                return


def note_verdicts(skill: SkillBook, judge: AnswerJudge, outcome: Outcome) -> None:
    """Notes how right everybody was who worked on a step, as far as it shows without believing them.

    That is: it failed; what it said can be checked; or others said the same or something else. An answer that
    nobody can check teaches nothing, whatever confidence it states. Heads are counted, not votes: these are heavier
    for who is believed already, and for who states more.
    """
    for attempt in outcome.attempts:
        if _failed(attempt, outcome.attempts):
            skill.note(attempt.offer.agent.name, attempt.offer.record.service, 0.0)
    if outcome.consensus is not None:
        heads = sum(map(len, outcome.consensus.groups))
        services = {attempt.offer.agent.name: attempt.offer.record.service for attempt in outcome.attempts}
        for group in outcome.consensus.groups if heads > 1 else ():
            for vote in group:
                checked = judge.check(outcome.step.text or "", vote.reply)
                skill.note(
                    vote.agent,
                    services.get(vote.agent, outcome.step.service),
                    len(group) / heads if checked is None else checked,
                    vote.reply.confidence,
                )
        return
    for attempt in outcome.attempts:
        if attempt.reply is not None:
            checked = judge.check(outcome.step.text or "", attempt.reply)
            if checked is not None:
                record = attempt.offer.record
                skill.note(record.agent, record.service, checked, attempt.reply.confidence)


def _failed(attempt: Attempt, attempts: Sequence[Attempt]) -> bool:
    """Whether an agent failed at what it claims to do.

    Saying to have nothing on it is honest; it counts only if another agent of the same service had something,
    else it was a wrong guess to ask there.
    """
    if attempt.error is None or attempt.error.code not in _FAILURES:
        return False
    if attempt.error.code == "deadline_exceeded":
        return attempt.seconds >= _FAIR_S
    service = attempt.offer.record.service
    return not attempt.declined or any(a.reply is not None and a.offer.record.service == service for a in attempts)
