"""The command line: parse, call the library, show."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def main() -> None:
    """Runs `mqttcollab`; an error ends in one line and exit code 1, Ctrl-C in 130, SIGTERM in 143."""
    from mqttcollab.errors import ConnectError, MqttCollabError

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may know ASCII only
    try:
        _app()(prog_name="mqttcollab")
    except ConnectError as error:
        hint = "start one with `mqttcollab broker`, or name another with --broker"
        if error.refused:
            hint = "is it the right user and password? --broker mqtt://user:password@host"
        _fail(f"{error}; {hint}")
    except MqttCollabError as error:
        _fail(str(error))
    except BrokenPipeError:
        _nobody_reads()
    except OSError as error:  # a full disk, no more processes …
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _app() -> Callable[..., None]:
    try:
        from mqttcollab.cli.app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        _fail(f"the command line needs {package}: pip install 'mqttcollab[cli]'")
    return app


def _fail(text: str) -> NoReturn:
    """Ends with one line, written at once: a fleet's processes share where it goes."""
    sys.stderr.write(f"error: {text}\n")
    sys.exit(1)


def _nobody_reads() -> None:
    """The reader of our output has gone (`| head`): nothing to say, and nobody to say it to."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
    sys.exit(1)
