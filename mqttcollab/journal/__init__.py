"""Tasks on disk: what was accepted, how far it is, how it ended."""

from mqttcollab.journal.base import Accepted, Entry, Filter, Journal, Limits, NewTask, Task, TaskState

__all__ = ["Accepted", "Entry", "Filter", "Journal", "Limits", "NewTask", "Task", "TaskState"]
