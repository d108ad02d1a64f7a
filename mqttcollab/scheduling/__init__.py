"""Who gets a request, when and why: policies, what is known of the load, fair waiting. No network, no clock."""

from mqttcollab.scheduling.base import Candidates, Decision, Demand, Fleet, Policy
from mqttcollab.scheduling.load import LoadBook, Terms
from mqttcollab.scheduling.placer import Placer
from mqttcollab.scheduling.policies import POLICIES, make_policy
from mqttcollab.scheduling.scheduler import Scheduler

__all__ = [
    "POLICIES",
    "Candidates",
    "Decision",
    "Demand",
    "Fleet",
    "LoadBook",
    "Placer",
    "Policy",
    "Scheduler",
    "Terms",
    "make_policy",
]
