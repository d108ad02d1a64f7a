"""Tasks on disk: what was accepted, how far it is, how it ended."""

from mqttcollab.journal.base import Accepted, Entry, Filter, Journal, Limits, NewTask, Task, TaskState
from mqttcollab.journal.open import open_journal

__all__ = ["Accepted", "Entry", "Filter", "Journal", "Limits", "NewTask", "Task", "TaskState", "open_journal"]
