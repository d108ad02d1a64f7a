"""`mqttcollab simulate`: a fleet's hour under each policy, on a virtual clock."""

from __future__ import annotations

import itertools
import math
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mqttcollab.cli.show import console, errors, print_json, print_plain, warn
from mqttcollab.cli.signals import die_at_once
from mqttcollab.errors import ConfigError, RuntimeFailure

try:
    from mqttcollab.scheduling import POLICIES
    from mqttcollab.simulation.arrivals import Paper, Source
    from mqttcollab.simulation.engine import Setting
    from mqttcollab.simulation.fleet import SimulatedFleet, read_fleet, second_fastest, with_outages
    from mqttcollab.simulation.plot import plot, plot_files
    from mqttcollab.simulation.study import Outcome, Scene, Study, run_study
    from mqttcollab.simulation.summary import Mean, Summary, as_json, bounds_of, describe, summarise
    from mqttcollab.simulation.trace import read_trace
except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    if package not in ("numpy", "scipy", "highspy"):
        raise
    raise RuntimeFailure(f"simulations need {package}; get it with: pip install 'mqttcollab[simulate]'") from None

_NARROW = 100
_MOST_LOAD = 100.0


@dataclass(frozen=True, slots=True)
class Grid:
    """What is varied; all of it is simulated with all else.

    Attributes:
        policies: their names; none: all.
    """

    policies: Sequence[str]
    loads: Sequence[float]
    report_delays: Sequence[float]
    orchestrators: Sequence[int]
    length_errors: Sequence[float]
    patience: Sequence[float]

    def checked_policies(self) -> tuple[str, ...]:
        """The policies, once each; raises ConfigError where there is no such."""
        for name in self.policies:
            if name not in POLICIES:
                raise ConfigError(f"there is no policy {name!r}; use one of {', '.join(POLICIES)}")
        return tuple(dict.fromkeys(self.policies)) or POLICIES

    def scenes(self) -> tuple[Scene, ...]:
        """The settings, once each; raises ConfigError for a value that is not possible."""
        _check("--load", self.loads, lambda value: 0 < value <= _MOST_LOAD, f"above 0, and {_MOST_LOAD:g} at most")
        _check("--report-delay", self.report_delays, lambda value: value >= 0, "0 or more seconds")
        _check("--orchestrators", self.orchestrators, lambda value: value >= 1, "1 or more")
        _check("--length-error", self.length_errors, lambda value: 0 <= value <= 1, "from 0 to 1")
        _check("--patience", self.patience, lambda value: value >= 0, "0 or more seconds")
        grid = itertools.product(self.loads, self.patience, self.report_delays, self.orchestrators, self.length_errors)
        found = [
            Scene(load, Setting(report_delay_s=delay, orchestrators=count, length_error=off, patience_s=patience))
            for load, patience, delay, count, off in grid
        ]
        return tuple(dict.fromkeys(found))


def run_simulation(
    grid: Grid,
    *,
    fleet: Path | None,
    trace: Path | None,
    hours: float | None,
    crash: bool,
    down: Sequence[str],
    seeds: int,
    seed: int,
    jobs: int | None,
    bound: bool,
    plots: Sequence[str],
    json_wanted: bool,
) -> None:
    """Simulates all of it, and prints a table per setting or one JSON object."""
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; use 1 or more, and 2 or more for intervals")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; use 1 or more processes")
    policies, scenes = grid.checked_policies(), grid.scenes()
    source = _source(trace, hours)
    devices = _with_crashes(read_fleet(fleet), crash, down, source.duration_s)
    study = Study(devices, source, policies, scenes, range(seed, seed + seeds), bound)
    paths = plot_files(plots, len(scenes))
    _say_what_is_whole(study)
    processes = jobs or _cores()
    (die_at_once if processes == 1 else _end_in_order)()
    found: list[Outcome] = []
    for outcome in run_study(study, processes, _progress if errors.is_terminal else None):
        found.append(outcome)
        if not json_wanted:
            _show(study, outcome)
    if paths:
        plot(study, found, paths)
    if json_wanted:
        _print_json(study, found)
    elif paths:
        print_plain(f"written: {', '.join(map(str, paths))}")


def validate_simulation(
    grid: Grid,
    *,
    outages: bool,
    fleet: Path | None,
    trace: Path | None,
    hours: float | None,
    seeds: Sequence[int],
    speed_up: float | None,
    broker: str | None,
    json_wanted: bool,
) -> None:
    """Replays each load's arrivals over a broker too, and prints how far the two are apart."""
    from mqttcollab.cli.validate import run_validation

    if outages:
        raise ConfigError("--validate takes no device away; leave out --crash and --down")
    if not seeds:
        raise ConfigError("--seeds is less than 1; use 1 or more")
    scenes, source, devices = grid.scenes(), _source(trace, hours), read_fleet(fleet)
    grid.checked_policies()
    loads = dict.fromkeys(scene.load for scene in scenes)
    run_validation(
        devices.devices,
        devices.cloud,
        {load: {seed: source.arrivals(load, devices.devices, seed) for seed in seeds} for load in loads},
        grid.policies,
        list(dict.fromkeys(scene.setting for scene in scenes)),
        speed_up=speed_up,
        broker=broker,
        json_wanted=json_wanted,
    )


def _check(option: str, values: Iterable[float], right: Callable[[float], bool], wanted: str) -> None:
    for value in values:
        if not (math.isfinite(value) and right(value)):
            raise ConfigError(f"{option} is {value:g}; it has to be {wanted}")


def _source(trace: Path | None, hours: float | None) -> Source:
    if hours is not None and not (math.isfinite(hours) and hours > 0):
        raise ConfigError(f"--hours is {hours:g}; it has to be above 0")
    if trace is not None:
        return read_trace(trace, math.inf if hours is None else hours)
    return Paper(3600 * (1.0 if hours is None else hours))


def _with_crashes(fleet: SimulatedFleet, crash: bool, down: Sequence[str], duration_s: float) -> SimulatedFleet:
    outages: list[tuple[str, float, float]] = [_outage(text) for text in down]
    if crash:
        outages.append((second_fastest(fleet), duration_s / 3, duration_s / 2))
    for name, begins, ends in outages:
        fleet = with_outages(fleet, {name: (begins, ends)})
    return fleet


def _outage(text: str) -> tuple[str, float, float]:
    name, _, times = text.rpartition(":")
    begins, _, ends = times.partition("-")
    try:
        found = (float(begins), float(ends))
    except ValueError:
        found = (math.nan, math.nan)
    if not (name and all(map(math.isfinite, found))):
        raise ConfigError(f"--down is {text!r}; expected NAME:FROM-TO in seconds, such as laptop:1200-1800")
    return name, *found


def _say_what_is_whole(study: Study) -> None:
    for load in dict.fromkeys(scene.load for scene in study.scenes):
        offered = study.source.offered(load, study.fleet.devices)
        if offered < load:
            warn(f"{study.source.name} offers this fleet a load of {offered:.3g}: for {load:g} it is taken whole")


def _end_in_order() -> None:
    """A signal ends the processes of the simulation, then this one; a second one ends this one at once."""
    received: list[int] = []

    def end(number: int, frame: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        raise SystemExit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # on Windows there is no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(done: int, total: int) -> None:
    """On the line that the next table overwrites."""
    errors.file.write(f"\r{done} of {total}" if done < total else "\r\x1b[K")
    errors.file.flush()


def _print_json(study: Study, outcomes: Sequence[Outcome]) -> None:
    print_json({"runs": [run for outcome in outcomes for run in as_json(study, outcome)]})


# Tables


def _show(study: Study, outcome: Outcome) -> None:
    if errors.is_terminal:
        errors.file.write("\r\x1b[K")
        errors.file.flush()
    found = summarise(outcome)
    last = _ratios(found)
    _table(describe(study, outcome.scene), _columns(found) | last)
    names = [device.name for device in study.fleet.devices]
    busy = {name: [f"{s.utilisation[i]:.0%}" for s in found] for i, name in enumerate(names)}
    _table("utilisation", {"policy": [s.policy for s in found]} | busy | last)
    print_plain(_footnote(study, outcome) + "\n")


def _columns(found: Sequence[Summary]) -> dict[str, list[str]]:
    columns = {
        "policy": [s.policy for s in found],
        "processed": [_cell(s.processed, 0) for s in found],
        "rejected": [_cell(s.rejected, 0) for s in found],
        "redirected": [_cell(s.redirected, 0) for s in found],
        "refused": [_cell(s.refused, 0) for s in found],
        "cloud USD": [_cell(s.cost_usd) for s in found],
        "over frugal": [_cell(s.more_usd) for s in found],
        "p50 s": [_cell(s.p50_ms, 1, 1e-3) for s in found],
        "p95 s": [_cell(s.p95_ms, 1, 1e-3) for s in found],
        "excess": [_number(s.excess) for s in found],
    }
    if not any(s.refused.value for s in found):
        del columns["refused"]
    if all(s.more_usd is None for s in found):
        del columns["over frugal"]
    if all(s.excess is None for s in found):
        del columns["excess"]
    return columns


def _ratios(found: Sequence[Summary]) -> dict[str, list[str]]:
    return {"/ bound": [_number(s.ratio) for s in found]} if any(s.ratio is not None for s in found) else {}


def _table(title: str, columns: dict[str, list[str]]) -> None:
    """A table on a terminal; in a pipe lines with tabs."""
    rows = list(zip(*columns.values(), strict=True))
    if not console.is_terminal:
        for line in ([title], list(columns), *rows):
            print_plain("\t".join(line))
        return
    narrow = console.width < _NARROW
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(_broken(name) if narrow and name != "/ bound" else name, justify="right" if i else "left")
    for row in rows:
        first, *rest = row
        style = "bold" if first == "frugal" else None
        table.add_row(_broken(first) if narrow else first, *(c.replace(" ±", "\n±") for c in rest), style=style)
    console.print(table)


def _broken(text: str) -> str:
    """A name on two lines, where there is a place to break it."""
    return text.replace("-", "-\n", 1).replace(" ", "\n", 1)


def _footnote(study: Study, outcome: Outcome) -> str:
    intervals = "means of {} seeds and 95% intervals" if len(study.seeds) > 1 else "{} seed: no intervals"
    words = [intervals.format(len(study.seeds))]
    bounds = bounds_of(outcome)
    if bounds is not None:
        words.append(f"bound {bounds.usd:.2f} USD, without waiting {bounds.without_waiting_usd:.2f} USD")
        words.append("excess: cost above the bound over load-aware's")
    return "; ".join(words)


def _cell(found: Mean | None, digits: int = 2, scale: float = 1.0) -> str:
    if found is None or not math.isfinite(found.value):
        return "-"
    value = f"{found.value * scale:.{digits}f}"
    return value if found.ci95 is None else f"{value} ±{found.half * scale:.{digits}f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
