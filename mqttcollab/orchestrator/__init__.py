"""The orchestrator: an agent that finds out who can help with a question, asks them, and puts the answers together.

`decide` makes the plan from a snapshot and asks nobody; `dispatch` runs it; `aggregate` puts the answers together;
`learn` takes in records and outcomes. The classifiers, the decomposer, scheduler and aggregator can be replaced.
"""

from mqttcollab.orchestrator.orchestrator import Orchestrator, OrchestratorOptions, orchestrator_agent

__all__ = ["Orchestrator", "OrchestratorOptions", "orchestrator_agent"]
