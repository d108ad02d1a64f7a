"""What agents do together: share data, compute, and pass on knowledge."""

from mqttcollab.cooperation.area import Area
from mqttcollab.cooperation.area_findings import Finding
from mqttcollab.cooperation.area_report import AreaReport
from mqttcollab.cooperation.area_reuse import SharedEmbedder
from mqttcollab.cooperation.area_windows import StreamLimits
from mqttcollab.cooperation.consensus import Consensus, agree
from mqttcollab.cooperation.ensemble import Gathered, ask_many, scatter
from mqttcollab.cooperation.knowledge import KnowledgeBase, Recalled
from mqttcollab.cooperation.note import Note
from mqttcollab.cooperation.notes import AgedReply, Notes, ask_and_remember

__all__ = [
    "AgedReply",
    "Area",
    "AreaReport",
    "Consensus",
    "Finding",
    "Gathered",
    "KnowledgeBase",
    "Note",
    "Notes",
    "Recalled",
    "SharedEmbedder",
    "StreamLimits",
    "agree",
    "ask_and_remember",
    "ask_many",
    "scatter",
]
