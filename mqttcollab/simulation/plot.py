"""The paper's Figure 6: what became of the requests, what the cloud cost, latency and utilisation, per policy."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqttcollab.errors import ConfigError, RuntimeFailure
from mqttcollab.simulation.study import Outcome, Study
from mqttcollab.simulation.summary import Mean, Summary, bounds_of, describe, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

ENDINGS = (".png", ".svg")
MOST_SCENES = 12
# Okabe and Ito's colours, which those tell apart too who see fewer of them.
_BLUE, _ORANGE, _GREEN, _RED, _SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
_WIDTH_IN, _HEIGHT_IN, _DPI = 16.0, 3.9, 110


def plot_files(names: Sequence[str], scenes: int) -> list[Path]:
    """The files that plots go to: those named; for a folder or a name without ending a PNG and an SVG.

    Raises:
        ConfigError: another ending, a folder that isn't there, or more scenes than a figure can show.
        RuntimeFailure: matplotlib is not installed.
    """
    if not names:
        return []
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise RuntimeFailure("plots need matplotlib; get it with: pip install 'mqttcollab[simulate]'") from None
    if scenes > MOST_SCENES:
        raise ConfigError(f"a plot shows {MOST_SCENES} settings at most, these are {scenes}: plot fewer at once")
    found = [path for name in names for path in _files(name)]
    for path in found:
        if not path.parent.is_dir():
            raise ConfigError(f"can't write {path}: there is no folder {path.parent}")
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"can't write {path}: it is a folder, or not ours to write")
    return list(dict.fromkeys(found))


def _files(name: str) -> list[Path]:
    path = Path(name)
    if path.suffix.lower() in ENDINGS:
        return [path]
    if name.endswith(("/", os.sep)) or path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return [path / f"simulation{ending}" for ending in ENDINGS]
    if path.suffix:
        raise ConfigError(f"{name}: plots are written as .png or .svg, not {path.suffix}")
    return [path.with_suffix(ending) for ending in ENDINGS]


def plot(study: Study, outcomes: Sequence[Outcome], paths: Sequence[Path]) -> None:
    """Draws a row per scene and writes it to all paths; raises OSError where one can't be written."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "mqttcollab", "font.size": 9.0}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * len(outcomes)), layout="constrained")
        rows = figure.subfigures(len(outcomes), 1, squeeze=False)
        for row, outcome in zip(rows[:, 0], outcomes, strict=True):
            _draw(row, study, outcome)
        for path in paths:
            metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
            figure.savefig(path, dpi=_DPI, metadata=metadata)


def _draw(figure: SubFigure, study: Study, outcome: Outcome) -> None:
    found = summarise(outcome)
    figure.suptitle(describe(study, outcome.scene), fontsize=10, fontweight="bold")
    requests, cost, latency, utilisation = figure.subplots(1, 4, width_ratios=(1.25, 0.9, 0.9, 1.25))
    _bars(
        requests,
        found,
        {
            "processed": ([s.processed for s in found], _BLUE),
            "redirected to the cloud": ([s.redirected for s in found], _ORANGE),
            "turned away by a device (rejected)": ([s.rejected for s in found], _SKY),
        },
    )
    requests.set_title("requests")
    _bars(cost, found, {"": ([s.cost_usd for s in found], _GREEN)})
    bounds = bounds_of(outcome)
    if bounds is not None:
        cost.axhline(bounds.usd, color=_RED, linestyle="--", label="bound")
        if bounds.without_waiting_usd != bounds.usd:
            cost.axhline(bounds.without_waiting_usd, color="black", linestyle=":", label="bound without waiting")
        cost.legend(frameon=False)
    cost.set_title("cloud cost in US dollars")
    seconds = {"median": ([_seconds(s.p50_ms) for s in found], _BLUE)}
    _bars(latency, found, {**seconds, "95th percentile": ([_seconds(s.p95_ms) for s in found], _ORANGE)})
    latency.set_title("latency in s")
    _heat(utilisation, study, found)
    figure.supxlabel(f"means over {len(study.seeds)} seeds; whiskers: 95% intervals", fontsize=8)


def _bars(axes: Axes, found: Sequence[Summary], series: dict[str, tuple[Sequence[Mean], str]]) -> None:
    """Bars side by side for every policy."""
    width = 0.8 / len(series)
    for number, (label, (means, colour)) in enumerate(series.items()):
        places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(found))]
        heights = [mean.value if math.isfinite(mean.value) else 0.0 for mean in means]
        whiskers: Any = [mean.half for mean in means]
        axes.bar(places, heights, width, yerr=whiskers, label=label or None, color=colour, capsize=2, ecolor="#444444")
    axes.set_ylim(bottom=0)
    _name(axes, found)
    if len(series) > 1:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.32), ncols=len(series), fontsize=8)


def _heat(axes: Axes, study: Study, found: Sequence[Summary]) -> None:
    shares = [[s.utilisation[i] for s in found] for i in range(len(study.fleet.devices))]
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            colour = "white" if share < 0.55 else "black"
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_yticks(range(len(shares)), [device.name for device in study.fleet.devices])
    axes.set_title("utilisation per device")
    _name(axes, found)


def _name(axes: Axes, found: Sequence[Summary]) -> None:
    axes.set_xticks(range(len(found)), [s.policy for s in found], rotation=35, ha="right", rotation_mode="anchor")


def _seconds(found: Mean) -> Mean:
    low_high = found.ci95 and (found.ci95[0] / 1000, found.ci95[1] / 1000)
    return Mean(found.value / 1000, low_high)
