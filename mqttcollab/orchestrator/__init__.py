"""The orchestrator: an agent that finds out who can help with a question, asks them, and puts the answers together.

`classify`, `plan`, `schedule` and `aggregate` are pure functions over a snapshot; `dispatch` does the asking.
Each is a seam: `Orchestrator` takes a replacement for any of them.
"""

from mqttcollab.orchestrator.orchestrator import Orchestrator, OrchestratorOptions, orchestrator_agent

__all__ = ["Orchestrator", "OrchestratorOptions", "orchestrator_agent"]
