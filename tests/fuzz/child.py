"""One target under atheris, in a process of its own: `python tests/fuzz/child.py <target> <libFuzzer's arguments>`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["mqttcollab"], enable_loader_override=False):
    from fuzz.targets import TARGETS


def main() -> None:
    name, *arguments = sys.argv[1:]
    # libFuzzer starts itself again to merge, through a shell.
    command = shlex.join([sys.executable, str(Path(__file__).resolve()), name])
    atheris.Setup([command, *arguments], TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
