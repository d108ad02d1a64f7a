"""What an agent publishes of what it senses: observations and embeddings."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mqttcollab.codec import CBOR, VectorType, encode
from mqttcollab.errors import ConfigError
from mqttcollab.messages import Embedding, Observation
from mqttcollab.presence import typed
from mqttcollab.service import first_line
from mqttcollab.topics import data_topic
from mqttcollab.transport.base import Transport, TransportMessage

if TYPE_CHECKING:
    from mqttcollab.runtimes.base import Embedder


@dataclass(slots=True)
class Senses:
    """Publishes under one agent's name; `Agent.observe` and `Agent.publish_embedding` describe the arguments."""

    transport: Transport
    agent: str
    place: str | None
    embedder: Embedder | None
    vectors: VectorType

    async def observe(self, service: str, text: str, values: dict[str, float], units: dict[str, str]) -> Observation:
        """Publishes an observation, and its text's embedding, which names it and so repeats neither text nor place."""
        topic = data_topic(service, self.agent, "observation")
        try:
            observation = Observation(
                id=secrets.token_hex(8),
                agent=self.agent,
                service=service,
                text=text,
                values=values,
                units=units,
                place=self.place,
                time_ms=time.time_ns() // 1_000_000,
            )
        except ValidationError as error:
            raise self._invalid("observation", service, error) from None
        await self.transport.publish(typed(topic, observation, retain=True))
        if self.embedder is not None and text:
            vector = self.embedder.embed([text])[0].tolist()
            await self.embed(service, vector, None, None, observation.id)
        return observation

    async def embed(
        self, service: str, vector: Sequence[float], model: str | None, text: str | None, observation: str | None
    ) -> None:
        """Publishes an embedding."""
        topic = data_topic(service, self.agent, "embedding")
        name = model or (self.embedder.model if self.embedder is not None else None)
        if name is None:
            raise ConfigError(f"@{self.agent}: an embedding names its model; pass model=")
        try:
            embedding = Embedding(
                agent=self.agent,
                service=service,
                model=name,
                vector=list(vector),
                observation=observation,
                text=text,
                place=self.place if observation is None else None,  # the observation says it
                time_ms=time.time_ns() // 1_000_000,
            )
        except ValidationError as error:
            raise self._invalid("embedding", service, error) from None
        payload = encode(embedding, CBOR, vectors=self.vectors)
        message = TransportMessage(topic, payload, qos=0, content_type=CBOR, type=embedding.type)
        await self.transport.publish(message, bulk=True)

    def _invalid(self, what: str, service: str, error: ValidationError) -> ConfigError:
        return ConfigError(f"@{self.agent}: the {what} for {service} is not valid: {first_line(error)}")
