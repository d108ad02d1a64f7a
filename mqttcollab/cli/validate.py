"""`mqttcollab simulate --validate`: the simulation beside the same requests on a real broker."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from mqttcollab.broker import Broker
from mqttcollab.cli.show import console, errors, print_json, print_plain
from mqttcollab.cli.signals import run
from mqttcollab.simulation.engine import Arrival, Cloud, Device, Setting
from mqttcollab.simulation.validate import DEFAULT_POLICIES, DEFAULT_SPEED_UP, Compared, compare

_FIGURES = {"processed": "processed", "redirected": "redirected", "rejected": "rejected", "cloud_cost_usd": "cloud USD"}


def run_validation(
    devices: Sequence[Device],
    cloud: Cloud,
    hours: Mapping[float, Mapping[int, Sequence[Arrival]]],
    policies: Sequence[str],
    settings: Sequence[Setting],
    *,
    speed_up: float | None,
    broker: str | None,
    json_wanted: bool,
) -> None:
    """Compares, and prints a table or one JSON object.

    Args:
        devices: the fleet.
        cloud: prices and speed of the cloud.
        hours: arrivals, by load and seed.
        policies: their names; none: DEFAULT_POLICIES.
        settings: what is varied.
        speed_up: simulated seconds per second; None for an hour in a minute.
        broker: its URL; None starts a Mosquitto.
        json_wanted: whether a program reads it.
    """
    pace = DEFAULT_SPEED_UP if speed_up is None else speed_up
    rows = run(_compared(devices, cloud, hours, policies or DEFAULT_POLICIES, settings, pace, broker))
    if json_wanted:
        print_json({"runs": [{"load": load, **row.as_json()} for load, found in rows.items() for row in found]})
        return
    for load, found in rows.items():
        print_plain(f"load {load:g}")
        _show(found, pace)


async def _compared(
    devices: Sequence[Device],
    cloud: Cloud,
    hours: Mapping[float, Mapping[int, Sequence[Arrival]]],
    policies: Sequence[str],
    settings: Sequence[Setting],
    speed_up: float,
    broker: str | None,
) -> dict[float, list[Compared]]:
    rows: dict[float, list[Compared]] = {load: [] for load in hours}
    async with contextlib.AsyncExitStack() as stack:
        url = broker or (await stack.enter_async_context(Broker("mosquitto"))).info.url
        for load, setting in itertools.product(hours, settings):
            rows[load] += await compare(devices, hours[load], policies, setting, cloud, url, speed_up, _progress)
    return rows


def _progress(what: str) -> None:
    if errors.is_terminal:
        errors.print(f"on the broker: {what}", style="dim", markup=False)


def _show(rows: Sequence[Compared], speed_up: float) -> None:
    columns = ("policy", "orchestrators", "patience s", *(f"{name}: simulated, real" for name in _FIGURES.values()))
    lines = [[row.policy, str(row.setting.orchestrators), f"{row.setting.patience_s:g}", *_pairs(row)] for row in rows]
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in columns:
            table.add_column(name, justify="left" if name == "policy" else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    else:
        for cells in (columns, *lines):
            print_plain("\t".join(cells))
    link_ms = max(row.link_s for row in rows) * 1000 / speed_up
    print_plain(
        f"means of {rows[0].seeds} seed{'s' if rows[0].seeds > 1 else ''}, {rows[0].arrivals:.0f} requests; "
        f"{speed_up:g} simulated seconds per second; one way over the broker took up to {link_ms:.1f} ms"
    )


def _pairs(row: Compared) -> list[str]:
    return [_pair(row, figure, 2 if figure == "cloud_cost_usd" else 0) for figure in _FIGURES]


def _pair(row: Compared, figure: str, digits: int) -> str:
    difference = row.difference(figure)
    off = f"{difference:+.1f}%" if math.isfinite(difference) else "-"
    return f"{getattr(row.simulated, figure):.{digits}f} {getattr(row.real, figure):.{digits}f} {off}"
