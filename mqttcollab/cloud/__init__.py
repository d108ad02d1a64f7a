"""The cloud as last resort: a model behind an HTTP endpoint, with prices, limits, redaction and a circuit breaker."""

from __future__ import annotations

from mqttcollab.cloud.service import CloudService, check_ledger, cloud_agent
from mqttcollab.cloud.settings import CloudSettings, read_cloud

__all__ = ["CloudService", "CloudSettings", "check_ledger", "cloud_agent", "read_cloud"]
