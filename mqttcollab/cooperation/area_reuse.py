"""An embedder that takes the vectors that peers have published, and computes only the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mqttcollab.cooperation.area import Area, Reused
from mqttcollab.cooperation.area_statistics import dot
from mqttcollab.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mqttcollab.runtimes.base import Embedder

_CHECK_EVERY = 32
_SAME = 0.99  # int8 costs 0.0001 of cosine


class SharedEmbedder:
    """An `Embedder` that looks texts up among an area's embeddings first.

    A peer can be wrong, or lie: the first vector that is taken of each agent, and every 32nd after it, is computed
    here as well, and an agent whose vector is another one is not trusted any more (`Area.distrusted`).

    Args:
        embedder: computes what no peer has published.
        area: follows embeddings of the same model and dimension.

    Attributes:
        hits, misses: texts whose vector was taken from a peer, and the others.
        checks: hits that were computed all the same, to check them.

    Raises:
        ConfigError: the area's embeddings may be of another model.
    """

    def __init__(self, embedder: Embedder, area: Area) -> None:
        if (area.wanted.model, area.wanted.dimension) != (embedder.model, embedder.dimension):
            raise ConfigError(
                f"the area follows embeddings of {area.wanted.model or 'any model'}, and the embedder makes"
                f" {embedder.model}, {embedder.dimension} dimensions: pass embedder= to Area as well"
            )
        self.model = embedder.model
        self.dimension = embedder.dimension
        self.hits = 0
        self.misses = 0
        self.checks = 0
        self._embedder = embedder
        self._area = area
        self._taken: dict[str, int] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return an array of shape (len(texts), dimension), float32, each row of unit length."""
        import numpy as np

        rows = np.zeros((len(texts), self.dimension), dtype=np.float32)
        computed = []
        for number, text in enumerate(texts):
            reused = self._reuse(text)
            if reused is None:
                computed.append(number)
            else:
                rows[number] = reused.vector
        self.hits += len(texts) - len(computed)
        self.misses += len(computed)
        if computed:
            rows[computed] = self._embedder.embed([texts[number] for number in computed])
        return rows

    def _reuse(self, text: str) -> Reused | None:
        reused = self._area.embedding_of(text) if text else None
        if reused is None:
            return None
        agent = reused.source.agent
        taken = self._taken[agent] = self._taken.get(agent, -1) + 1
        if taken % _CHECK_EVERY == 0:
            self.checks += 1
            if dot(reused.vector, self._embedder.embed([text])[0].tolist()) < _SAME:
                self._area.distrust(agent, f"its vector of {text[:80]!r} is not that of {self.model}: none is reused")
                return None
        return reused
