"""What agents do together: share data, compute, and pass on knowledge."""

from mqttcollab.cooperation.area import Area
from mqttcollab.cooperation.area_findings import Finding
from mqttcollab.cooperation.area_report import AreaReport
from mqttcollab.cooperation.area_reuse import SharedEmbedder
from mqttcollab.cooperation.area_windows import StreamLimits

__all__ = ["Area", "AreaReport", "Finding", "SharedEmbedder", "StreamLimits"]
