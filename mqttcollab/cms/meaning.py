"""How close service records are in meaning to a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttcollab.errors import ConfigError
from mqttcollab.messages import ServiceRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder


class Meaning:
    """Embeds records once, and compares texts with them.

    Args:
        embedder: makes the vectors; without it `closeness` raises ConfigError.
    """

    def __init__(self, embedder: Embedder | None) -> None:
        self._embedder = embedder
        self._vectors: dict[tuple[str, str], NDArray[np.float32]] = {}

    def closeness(self, text: str, records: Sequence[ServiceRecord]) -> list[float]:
        """For each record the largest cosine between the text and its description or an example.

        A record that has neither is compared by its centroid, where that is of the same embedding model, else by its
        name.
        """
        if self._embedder is None:
            raise ConfigError(
                "finding services by meaning takes an embedder: pip install 'mqttcollab[embed]' and pass"
                " embedder=load_embedder('wordllama')"
            )
        query = self._embedder.embed([text])[0]
        return [float((self._of(record, self._embedder) @ query).max()) for record in records]

    def forget(self, agent: str, service: str) -> None:
        """To be called when a record has changed or gone."""
        self._vectors.pop((agent, service), None)

    def _of(self, record: ServiceRecord, embedder: Embedder) -> NDArray[np.float32]:
        key = (record.agent, record.service)
        if key not in self._vectors:
            texts = [text for text in (record.description, *record.examples) if text.strip()]
            centroid = record.centroid_for(embedder.model, embedder.dimension)
            if centroid is not None and not texts:
                import numpy as np

                self._vectors[key] = np.array([centroid], np.float32)
            else:
                self._vectors[key] = embedder.embed(texts or [record.service.replace("/", " ")])
        return self._vectors[key]
