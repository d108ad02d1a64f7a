"""Whether an answer can be trusted: the judge's verdict, its giver's record, and for general models the router's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mqttcollab.classifiers.base import AnswerJudge
from mqttcollab.classifiers.router import Router
from mqttcollab.classifiers.skill import SkillBook
from mqttcollab.messages import ContextItem, Reply, Step, Verdict

# What a strong model's call must gain on average, in right answers.
_STRONG_PRICE = 0.1
# So many verdicts on an agent in a service count as much as the judge's opinion of its answer.
_VERDICTS_THAT_WEIGH_THE_SAME = 4.0


@dataclass(slots=True)
class Trust:
    """Judges answers.

    Args:
        judge: says whether an answer can be trusted.
        least: an answer less likely right than this is put to a further agent, where there is one.
        router: says instead of `least` whether a general model's answer will do, or a strong model is asked.
        skill: how right everybody has been.
    """

    judge: AnswerJudge
    least: float = 0.5
    router: Router | None = None
    skill: SkillBook = field(default_factory=SkillBook)

    def check(self, step: Step, reply: Reply) -> float | None:
        """How right an answer is, where that can be checked."""
        return self.judge.check(step.text or "", reply)

    def verdict(self, step: Step, agent: str, reply: Reply, context: Sequence[ContextItem]) -> Verdict:
        """The judge's verdict; of what nobody can check, the more the agent's record counts the longer it is."""
        verdict = self.judge.judge(step.text or "", reply, context)
        known = self.skill.verdicts(agent, step.service)
        if known < 1 or self.check(step, reply) is not None:
            return verdict
        measured = self.skill.expected(agent, step.service, reply.confidence)
        share = known / (known + _VERDICTS_THAT_WEIGH_THE_SAME)
        return Verdict(
            score=verdict.score,
            probability=(1 - share) * verdict.probability + share * measured.probability,
            reason=f"{verdict.reason}; {measured.reason}",
        )

    def weight(self, step: Step, agent: str, service: str, reply: Reply) -> float:
        """What an answer counts in a vote."""
        checked = self.check(step, reply)
        return self.skill.expected(agent, service).score if checked is None else checked

    def distrust(self, text: str, reply: Reply, context: Sequence[ContextItem]) -> str | None:
        """Why a general model's answer won't do; None if it will."""
        if self.router is not None:
            decision = self.router.decide([text], [reply.output or ""] if self.router.reads_answers else None)[0]
            return decision.reason if decision.strong(_STRONG_PRICE) else None
        verdict = self.judge.judge(text, reply, context)
        return verdict.reason if verdict.probability < self.least else None
