"""The Capability Metadata Store: so far the live registry of who is there and what they offer."""

from mqttcollab.cms.registry import Registry
from mqttcollab.cms.views import AgentView, Change, Match, Offer

__all__ = ["AgentView", "Change", "Match", "Offer", "Registry"]
