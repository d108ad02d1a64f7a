"""Python processes that run a module of ours in which llama.cpp may end the process."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_MOST_WORDS = 200
_BUILD_FOLDER = re.compile(r"^/\S*/(?=\S+:\d+: )")  # of the C file in which an assertion failed


def how_to_run(module: str, *words: str) -> dict[str, Any]:
    """Return arguments of `subprocess.Popen` or `run`: this interpreter, finding modules where this process does."""
    found = os.pathsep.join([*filter(None, sys.path), str(_ROOT)])
    return {
        "args": [sys.executable, "-P", "-m", module, *words],
        # A backtrace would run gdb, if there is one, and bury the reason.
        "env": {**os.environ, "PYTHONPATH": found, "GGML_NO_BACKTRACE": "1"},
        "start_new_session": True,  # Ctrl-C reaches us alone
    }


def fate(code: int, lines: Sequence[str]) -> str:
    """Say how a process ended, with the last line that it wrote: `ended by SIGABRT (…)`."""
    said = f" ({_BUILD_FOLDER.sub('', lines[-1].strip())[:_MOST_WORDS]})" if lines else ""
    if code >= 0:
        return f"ended with exit code {code}{said}"
    if code == -signal.SIGKILL and not said:
        said = " (is there enough memory?)"
    return f"ended by {_signal_name(-code)}{said}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
