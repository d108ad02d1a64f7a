"""`mqttcollab calibrate`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mqttcollab import __version__
from mqttcollab.cli.show import console
from mqttcollab.errors import ConfigError

_SHOWN = (
    *("recall", "precision", "recall_two", "precision_two", "ece"),
    *("gap_auroc", "gap_auroc_near", "gap_auroc_far", "gap_recall_at_5", "gap_recall", "handed_over", "gap_ece"),
)


def run_calibration(
    train: Path, embedder: str, target: float, fleets: int, output: Path | None, source: str | None, *, as_json: bool
) -> None:
    """Fits the calibration to the file, prints its figures and writes it where told."""
    from mqttcollab.evaluate.fewshot import calibrate
    from mqttcollab.evaluate.fleets import FleetOptions
    from mqttcollab.runtimes.embedders import load_embedder

    rows = read_intents(train)
    words = ["mqttcollab", "calibrate", "--embedder", embedder, "--train", train.name, "--target", f"{target:g}"]
    words += ["--fleets", str(fleets)]
    about = {"mqttcollab": __version__, "command": shlex.join(words), "rows": len(rows)}
    if source is not None:
        about["source"] = source
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"can't write {output}: no folder {output.parent}")
    fitted = calibrate(rows, load_embedder(embedder), target, FleetOptions(fleets=fleets), about)
    if output is not None:
        try:
            output.write_text(fitted.calibration.to_json(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"can't write {output}: {error.strerror}") from None
    if as_json:
        console.out(json.dumps({"ours": fitted.figures["ours"], "baselines": _baselines(fitted.figures), **about}))
    else:
        _show(fitted.figures)
        thresholds = fitted.calibration.relevance_threshold, fitted.calibration.gap_threshold
        console.print("a service is touched from P = {:.2f}, a question a gap from P = {:.2f}".format(*thresholds))
        if output is not None:
            console.print(f"written to {output}")


def read_intents(path: Path) -> list[dict[str, Any]]:
    """Read an intent file: JSON lines with `text`, `domain` and `intent`.

    Raises:
        ConfigError: it can't be read or a line is something else; the message says which.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"can't read {path}: not UTF-8") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ConfigError(f"{path}, line {number}: no JSON") from None
        if not _is_row(row):
            raise ConfigError(f"{path}, line {number}: needs text, domain and intent, each a text (or null, but text)")
        rows.append(row)
    return rows


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        return False
    return all(key in row and isinstance(row[key], str | None) for key in ("domain", "intent"))


def _baselines(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    return {name: values for name, values in figures.items() if name != "ours"}


def _show(figures: Mapping[str, Mapping[str, float]], shown: Sequence[str] = _SHOWN) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("held-out fleets")
    for name in figures:
        table.add_column(name, justify="right")
    for key in shown:
        table.add_row(key, *(f"{values[key]:.3f}" if key in values else "" for values in figures.values()))
    console.print(table)
