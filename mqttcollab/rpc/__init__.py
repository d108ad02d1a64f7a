"""Request and reply over topics: `requester` asks, `responder` answers, `trace` ties the two together."""

from mqttcollab.rpc.job import PartSender, RequestHandler, ServiceStats
from mqttcollab.rpc.requester import Requester
from mqttcollab.rpc.responder import Responder
from mqttcollab.rpc.trace import child_trace, current_request

__all__ = ["PartSender", "RequestHandler", "Requester", "Responder", "ServiceStats", "child_trace", "current_request"]
