"""Writes the reference of the command line: `python -m mqttcollab.cli.reference > docs/cli.md`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer import Context, Typer
from typer.models import ArgumentInfo, OptionInfo

from mqttcollab.cli.app import app

_HEAD = """\
# Command line
Made from the program itself by `python -m mqttcollab.cli.reference`; a test compares the two.

- Results go to standard output, everything else to standard error. In a pipe there are no colours, boxes or spinners.
- Exit codes: 0 done; 1 an error, told in one line; 2 a command that does not parse; 128 + n ended by signal n
  (130 Ctrl-C, 143 SIGTERM). `agent`, `orchestrator` and `broker` run until they are asked to end, and then exit with 0.
- A second Ctrl-C ends a command at once. Processes that a command started end with it, however it ends.
"""
_METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}


def reference() -> str:
    """The whole reference, as Markdown."""
    return "\n".join([_HEAD, *_sections("mqttcollab", app)])


def _sections(name: str, group: Typer) -> Iterator[str]:
    assert group.registered_callback is not None and group.registered_callback.callback is not None
    yield from _section(name, group.registered_callback.callback, group=True)
    for command in group.registered_commands:
        assert command.callback is not None
        yield from _section(f"{name} {command.name or command.callback.__name__}", command.callback)
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _sections(f"{name} {inner.name}", inner.typer_instance)


def _section(name: str, function: Callable[..., Any], *, group: bool = False) -> Iterator[str]:
    parameters = list(_parameters(function))
    arguments = [_argument(*rest) for _, *rest in parameters if isinstance(rest[0], ArgumentInfo)]
    usage = " ".join([name, "[OPTIONS]", *arguments, *(["COMMAND"] if group else [])])
    yield f"## {name}\n{inspect.getdoc(function)}\n\n```\n{usage}\n```\n"
    rows = [row for row in map(_row, parameters) if row]
    if rows:
        yield "\n".join(["| | | default |", "|---|---|---|", *rows, ""])


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, ArgumentInfo | OptionInfo, Any, Any]]:
    """Name, typer's description, type and default of every parameter."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] is Context:
            continue
        kind, *extras = get_args(hints[name])
        info = next(extra for extra in extras if isinstance(extra, ArgumentInfo | OptionInfo))
        yield name, info, kind, parameter.default


def _row(parameter: tuple[str, ArgumentInfo | OptionInfo, Any, Any]) -> str | None:
    name, info, kind, default = parameter
    if info.hidden:
        return None
    help_ = (info.help or "").replace("|", "\\|")
    if isinstance(info, ArgumentInfo):
        return f"| `{_argument(info, kind, default)}` | {help_} | |"
    # Inside Annotated, typer takes the first of the declared names for the default.
    words = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
    words = words or _declared(name, kind)
    value = "" if kind is bool else f" {_metavar(kind)}"
    shown = ", ".join(f"`{word}{value}`" for word in words)
    if info.envvar:
        help_ += f" Environment: `{info.envvar}`."
    if isinstance(info.show_default, str):
        default = info.show_default
    if default is inspect.Parameter.empty:
        default = "has to be given"
    return f"| {shown} | {help_} | {'' if default in (None, False) else _code(default)} |"


def _argument(info: ArgumentInfo | OptionInfo, kind: Any, default: Any) -> str:
    word = f"[{info.metavar}]" if default is None else f"{info.metavar}"
    several = any(get_origin(option) is list for option in get_args(kind))
    return word + "..." * several


def _declared(name: str, kind: Any) -> list[str]:
    word = name.replace("_", "-")
    return [f"--{word}", f"--no-{word}"] if kind is bool else [f"--{word}"]


def _metavar(kind: Any) -> str:
    options = [option for option in get_args(kind) if option is not type(None)]
    if get_origin(kind) is Literal:
        return "\\|".join(map(str, options))
    if get_origin(kind) is list:
        return _metavar(options[0])
    return _METAVARS[kind] if kind in _METAVARS else _metavar(options[0])


def _code(default: Any) -> str:
    if default is True:
        return "`yes`"
    text = f"{default:g}" if isinstance(default, float) else str(default)
    return text if " " in text else f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
