"""What others may watch of the cloud: retained plain-text values under `slm/metrics/<model>/…`."""

from __future__ import annotations

import sqlite3

from mqttcollab.cloud.breaker import Breaker
from mqttcollab.cloud.ledger import Ledger
from mqttcollab.cloud.prices import show
from mqttcollab.errors import RequestError
from mqttcollab.topics import KEY_RE, slm_topic
from mqttcollab.transport.base import Transport, TransportMessage

INTERVAL_S = 1.0


class Metrics:
    """Publishes what has changed since the last time; after `forget` everything.

    Args:
        model: its key under `slm/metrics/`.
    """

    def __init__(self, model: str, ledger: Ledger, breaker: Breaker) -> None:
        self._model, self._ledger, self._breaker = model, ledger, breaker
        self._published: dict[str, str] = {}

    async def forget(self) -> None:
        """The broker may have forgotten what it was told."""
        self._published = {}

    async def publish(self, transport: Transport) -> None:
        """Publishes what has changed."""
        published = self._published
        for key, value in (await self.values()).items():
            if published.get(key) != value:
                topic = slm_topic("metrics", self._model, key)
                await transport.publish(TransportMessage(topic, value.encode(), retain=True))
                published[key] = value

    async def values(self) -> dict[str, str]:
        """Every metric by its key; raises RequestError where the ledger can't be read."""
        try:
            totals = await self._ledger.totals(self._model)
            tenants = await self._ledger.tenants(self._model)
        except sqlite3.Error as error:
            raise RequestError("internal", f"the ledger can't be read: {error}") from error
        answered = totals.calls - totals.errors
        values = {
            "cost_usd_total": show(totals.nano),
            "cost_usd_today": show(totals.nano_today),
            "tokens_used_total": str(totals.tokens),
            "calls_total": str(totals.calls),
            "errors_total": str(totals.errors),
            "redactions_total": str(totals.redactions),
            "inference_time_avg": f"{totals.seconds / answered if answered else 0.0:.3f}",
            "breaker": self._breaker.state,
        }
        for tenant, nano in tenants.items():
            if KEY_RE.fullmatch(tenant):
                values[f"tenants/{tenant}/cost_usd_today"] = show(nano)
        return values
