"""`mqttcollab eval`: the orchestrator's decisions against data sets, beside trivial baselines and the limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from mqttcollab.cli.signals import die_at_once
from mqttcollab.errors import RuntimeFailure

app = typer.Typer(no_args_is_help=True)

_Train = Annotated[Path, typer.Option(help="The rows to learn from (JSONL).")]
_Test = Annotated[Path, typer.Option(help="The rows to rate with; nothing is learned from them.")]
_MaybeTest = Annotated[
    Path | None, typer.Option(help="The rows to rate with; default: cross-validation over those to learn from.")
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.callback()
def evaluations() -> None:
    """Rate the orchestrator's decisions on files of examples, beside trivial baselines and the limit."""


@app.command()
def gap(
    train: _Train,
    test: _Test,
    near: Annotated[
        bool, typer.Option("--near", help="Hold out a quarter of each domain's intents and call them out of scope.")
    ] = False,
    as_json: _AsJson = False,
) -> None:
    """Whether questions that no example covers are recognised (rows: text, domain, intent)."""
    _show(_evaluation("gap")(train, test, near=near), as_json=as_json)


@app.command()
def match(train: _Train, test: _Test, as_json: _AsJson = False) -> None:
    """Whether the right one of ten agents is chosen, one for each domain (rows: text, domain, intent)."""
    _show(_evaluation("match")(train, test), as_json=as_json)


@app.command()
def route(
    train: _Train,
    test: _MaybeTest = None,
    weak_cost: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The price of a weak call in strong calls, where it is read first.")
    ] = 0.01,
    prompt_only: Annotated[bool, typer.Option("--prompt-only", help="Do not read the weak model's answers.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the router that was learned, for an orchestrator.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Whether to ask a weak or a strong model (rows: prompt, weak_correct, strong_correct; subject, weak_answer)."""
    report = _evaluation("route")(train, test, weak_cost=weak_cost, read_answers=not prompt_only, save=save)
    _show(report, as_json=as_json)


@app.command()
def decompose(train: _Train, test: _MaybeTest = None, as_json: _AsJson = False) -> None:
    """How questions are split into steps, against gold ones (rows: question, decomposition)."""
    _show(_evaluation("decompose")(train, test), as_json=as_json)


@app.command()
def complexity(
    questions: Annotated[Path, typer.Option(help="Questions of several steps (rows: question, decomposition).")],
    intents: Annotated[Path, typer.Option(help="Questions of one step (rows: text, domain, intent).")],
    save: Annotated[Path | None, typer.Option(help="Write the weights, as mqttcollab ships them.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Whether questions of several steps are recognised; a quarter of the rows is held out."""
    _show(_evaluation("complexity")(questions, intents, save), as_json=as_json)


def _evaluation(name: str) -> Callable[..., dict[str, Any]]:
    die_at_once()
    try:
        module = import_module(f"mqttcollab.evaluate.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "numpy":
            raise
        raise RuntimeFailure("evaluations need numpy; get it with: pip install 'mqttcollab[embed]'") from None
    evaluate: Callable[..., dict[str, Any]] = module.evaluate
    return evaluate


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    from mqttcollab.cli.show import console, print_json, print_plain

    report = _plain(report)
    if as_json:
        print_json(report)
        return
    header, *rows = _cells(report)
    if not console.is_terminal:
        for row in (header, *rows):
            print_plain("\t".join(row))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, title in enumerate(header):
        table.add_column(title, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(cell.replace(" (", "\n(") for cell in row), style="bold" if row[0] == "ours" else None)
    console.print(table)


def _cells(report: dict[str, Any]) -> list[list[str]]:
    """A header, and a row each for ours, the baselines and the oracle."""
    figures = {"ours": report["ours"], **report["baselines"], "oracle": report["oracle"]}
    keys = list(dict.fromkeys(key for found in figures.values() for key in found if key != "ci95"))
    rows = [[name, *(_cell(found, key) for key in keys)] for name, found in figures.items()]
    return [[f"n = {report['n']}", *keys], *rows]


def _cell(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if value is None:
        return "-"
    low, high = (found.get("ci95") or {}).get(key) or (None, None)
    between = "" if low is None or high is None else f" ({low:.3f}–{high:.3f})"
    return f"{value:.3f}{between}"


def _plain(value: Any) -> Any:
    """The same of dicts, lists, texts and Python's numbers; None for what isn't finite."""
    if isinstance(value, dict):
        return {key: _plain(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
