"""What answers: llama.cpp, an OpenAI-compatible endpoint, a plain Python function; and embedders.

Only the protocols are imported here; each implementation is imported where it is used, since some are heavy.
"""

from __future__ import annotations

from mqttcollab.runtimes.base import (
    DEFAULT_PARAMETERS,
    ChatMessage,
    Chunk,
    Embedder,
    Generation,
    GenerationParameters,
    Role,
    Runtime,
)

__all__ = [
    "DEFAULT_PARAMETERS",
    "ChatMessage",
    "Chunk",
    "Embedder",
    "Generation",
    "GenerationParameters",
    "Role",
    "Runtime",
]
