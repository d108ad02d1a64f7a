"""GGUF files and llama-cpp-python: what can go wrong before a model runs, said in one line.

llama_cpp is imported here only, and only when a model is opened (about 0.1 s).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from mqttcollab.errors import ConfigError, RuntimeFailure
from mqttcollab.runtimes.spawn import fate, how_to_run

_log = logging.getLogger(__name__)
_MAGIC = b"GGUF"
_GGML_ERROR = 4  # ggml.h; the table in llama_cpp/_logger.py is of an older version


class _Captured(threading.local):
    """Error lines that llama.cpp wrote in this thread, while somebody wants them."""

    lines: list[str] | None = None


_captured = _Captured()


def check_gguf(path: Path) -> None:
    """Raise RuntimeFailure unless `path` is a readable file that begins like a GGUF."""
    if not path.exists():
        raise RuntimeFailure(f"model {path} does not exist; give the path of a GGUF file")
    if not path.is_file():
        raise RuntimeFailure(f"model {path} is not a file; give the path of a GGUF file")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise RuntimeFailure(f"model {path} can't be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise RuntimeFailure(f"model {path} is not a GGUF file: it begins with {magic!r}, not {_MAGIC!r}")


@functools.cache
def llama_cpp_module() -> Any:
    """Import llama_cpp, route its log to `logging`, and return it.

    Raises:
        RuntimeFailure: it is not installed, or its native library does not load.
    """
    try:
        import llama_cpp
        from llama_cpp import _internals, llama
    except ImportError as error:
        raise RuntimeFailure(
            "llama-cpp-python is not installed; get it with: pip install 'mqttcollab[llama]'"
        ) from error
    except (OSError, RuntimeError) as error:
        raise RuntimeFailure(f"llama-cpp-python does not load, reinstall it: {error}") from error
    _route_log(llama_cpp)
    # While a model loads, llama-cpp-python points the whole process's stdout and stderr to /dev/null: other
    # threads lose what they print, and two loads at once never give it back. The log is routed, so nothing is
    # left to hide.
    for module in (_internals, llama):
        module.__dict__["suppress_stdout_stderr"] = lambda disable=True: contextlib.nullcontext()
    return llama_cpp


def _route_log(llama_cpp: Any) -> None:
    def on_log(level: int, text: bytes, user_data: object) -> None:
        if level == _GGML_ERROR and _captured.lines is not None:
            _captured.lines.append(text.decode("utf-8", "replace").rstrip())
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("llama.cpp: %s", text.decode("utf-8", "replace").rstrip())

    callback = llama_cpp.llama_log_callback(on_log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.mqttcollab_log_callback = callback  # C holds a bare pointer; this keeps its target alive


def open_gguf(path: Path, **options: Any) -> Any:
    """Open a model with `llama_cpp.Llama(path, **options)`.

    Raises:
        RuntimeFailure: the file is missing, no GGUF, damaged, or llama.cpp can't run it (with its reason).
    """
    check_gguf(path)
    llama_cpp = llama_cpp_module()
    _captured.lines = []
    try:
        return llama_cpp.Llama(str(path), verbose=False, **options)
    except (ValueError, RuntimeError, AssertionError, MemoryError) as error:
        hint = "the file may be damaged, incomplete or too new for this llama.cpp"
        if "context" in str(error):  # the file is fine, the memory for the context is not
            hint = "lower context_length or take a smaller model"
        reason = _reason(_captured.lines, error)
        raise RuntimeFailure(f"llama.cpp can't open {path}: {reason}; {hint}") from error
    finally:
        _captured.lines = None


def _reason(lines: list[str], error: Exception) -> str:
    """Return the first line of llama.cpp's log, which tells why, without the C functions' names before it."""
    if not lines:
        return str(error)
    _, marker, reason = lines[0].partition("error loading model: ")
    return reason if marker else lines[0].partition(": ")[2] or lines[0]


def check_context_length(path: Path, wanted: int) -> None:
    """Raise ConfigError where more context is wanted than the model was trained for."""
    trained = _describe(path)["context_length"]
    if isinstance(trained, int) and wanted > trained:
        raise ConfigError(
            f"context_length is {wanted}, but {path.name} was trained for at most {trained}; set it lower"
        )


def describe_gguf(path: str | Path) -> dict[str, str | int]:
    """Return what `slm/models/<model>/…` publishes about a GGUF file; only its vocabulary is loaded.

    llama.cpp does so in a process of its own, since there are damaged files on which it aborts.

    Returns:
        architecture, quantization (`Q8_0` …), parameters (how many), context_length (tokens, as trained) and
        size_bytes (of the file).

    Raises:
        RuntimeFailure: the file is missing, no GGUF, or damaged, or llama-cpp-python is missing.
    """
    path = Path(path).expanduser()
    check_gguf(path)
    run = subprocess.run(
        **how_to_run("mqttcollab.runtimes.gguf", str(path)), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if run.returncode != 0:
        how = fate(run.returncode, run.stderr.strip().splitlines())
        raise RuntimeFailure(f"llama.cpp can't open {path}: its process {how}; the file may be damaged")
    described: dict[str, str | int] = json.loads(run.stdout)
    if "error" in described:
        raise RuntimeFailure(f"{described['error']}")
    return described


def _describe(path: Path) -> dict[str, str | int]:
    llm = open_gguf(path, vocab_only=True, n_ctx=32)
    llama_cpp = llama_cpp_module()
    try:
        architecture = llm.metadata.get("general.architecture", "unknown")
        file_type = int(llm.metadata.get("general.file_type", llama_cpp.LLAMA_FTYPE_GUESSED))
        return {
            "architecture": architecture,
            "quantization": _quantization(llama_cpp, file_type),
            "parameters": llama_cpp.llama_model_n_params(llm.model),
            "context_length": int(llm.metadata.get(f"{architecture}.context_length", 0)),
            "size_bytes": path.stat().st_size,
        }
    finally:
        llm.close()


def _quantization(llama_cpp: Any, file_type: int) -> str:
    for name, value in vars(llama_cpp).items():
        if name.startswith("LLAMA_FTYPE_") and value == file_type:
            return str(name).removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_")
    return f"unknown ({file_type})"


if __name__ == "__main__":
    try:
        print(json.dumps(_describe(Path(sys.argv[1]))))  # noqa: T201
    except RuntimeFailure as error:
        print(json.dumps({"error": str(error)}))  # noqa: T201
