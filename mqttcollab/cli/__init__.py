"""The command line: parse, call the library, show."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs `mqttcollab`; errors end in one line and exit code 1, Ctrl-C in 130."""
    from mqttcollab.errors import MqttCollabError

    try:
        from mqttcollab.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"mqttcollab: the command line needs {error.name}: pip install 'mqttcollab[cli]'")
    try:
        app()
    except MqttCollabError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone (`| head`): nothing to say, and nobody to say it to
        sys.exit(1)
