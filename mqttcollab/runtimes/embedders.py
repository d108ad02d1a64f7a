"""What turns texts into vectors: wordllama's static word vectors, or a model in a GGUF file."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqttcollab.errors import ConfigError, RuntimeFailure
from mqttcollab.runtimes.base import Embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DIMENSIONS = (256, 128, 64)
# Past this many characters a mean of word vectors says little, and the memory for it grows.
_MAX_CHARACTERS = 16384
_LONG_TEXT = 1024


class WordLlamaEmbedder:
    """The mean of static word vectors (wordllama, l2_supercat): some 10 µs a sentence, no model to run.

    Args:
        dimension: 256, or the first 128 or 64 of them (the vectors are made to be cut).

    Raises:
        ConfigError: another dimension.
        RuntimeFailure: wordllama is not installed.
    """

    def __init__(self, dimension: int = 256) -> None:
        if dimension not in _DIMENSIONS:
            raise ConfigError(f"wordllama dimension is {dimension}; it must be one of 256, 128, 64")
        self.model = f"wordllama-l2-supercat-{dimension}"
        self.dimension = dimension
        self._inference = _load_wordllama(dimension)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), dimension), float32, rows of unit length.

        The row of a text without any known token (an empty one) is zero. Only the first 16,384
        characters of a text count.
        """
        import numpy as np

        cut = [text[:_MAX_CHARACTERS] for text in texts]
        # A batch is padded to its longest text, so a long one goes alone.
        batch = 1 if max(map(len, cut), default=0) > _LONG_TEXT else 64
        rows: NDArray[np.float32] = self._inference.embed(cut, norm=False, batch_size=batch)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        np.divide(rows, lengths, out=rows, where=lengths > 0)
        return rows


_import_lock = threading.Lock()


@functools.cache
def _load_wordllama(dimension: int) -> Any:
    with _import_lock:
        wordllama = _import_wordllama()
    folder = Path(wordllama.__file__).parent  # weights and tokenizer of the wheel; else it asks the network
    try:
        return wordllama.WordLlama.load(
            dim=256,
            trunc_dim=dimension if dimension < 256 else None,
            cache_dir=folder,
            disable_download=True,
        )
    except FileNotFoundError as error:
        raise RuntimeFailure(f"wordllama lacks the files of its wheel, reinstall it: {error}") from error


def _import_wordllama() -> Any:
    """Import wordllama, which sets up the root logger as it is imported, and put that back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        import wordllama
    except ImportError as error:
        raise RuntimeFailure("wordllama is not installed; get it with: pip install 'mqttcollab[embed]'") from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return wordllama


@functools.cache
def load_embedder(name: str) -> Embedder:
    """Return the embedder of that name, loaded once per process. Blocks for some tenths of a second.

    Args:
        name: `wordllama` (256 dimensions), `wordllama:128`, `wordllama:64`, or `llama:<path of a GGUF>`.

    Raises:
        ConfigError: no such embedder.
        RuntimeFailure: it can't be loaded.
    """
    kind, _, rest = name.partition(":")
    if kind == "wordllama" and (not rest or rest.isdecimal()):
        return WordLlamaEmbedder(int(rest or 256))
    if kind == "llama" and rest:
        from mqttcollab.runtimes.llama import LlamaEmbedder

        return LlamaEmbedder(rest)
    choices = "wordllama, wordllama:128, wordllama:64 or llama:<path of a GGUF>"
    raise ConfigError(f"embedder is {name!r}; use {choices}")
