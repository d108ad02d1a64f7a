"""The bound's linear programme over all ways to run each request, solved for prices of the slots over time."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mqttcollab.errors import ConfigError, MqttCollabError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_Entries = tuple[Ints, Ints, Floats]  # rows, columns, values
_Options = dict[str, bool | int | float | str]

_OPTIONS: _Options = {
    "output_flag": False,
    "threads": 1,
    "run_crossover": "off",
    "hipo_system": "normaleq",
}
_SOLVERS = ("hipo", "ipx")
"""HiGHS's interior points, the faster first; HiPO (Zanetti and Gondzio, 2025) comes with highspy's own extras."""
_ATTEMPTS: list[_Options] = [
    {"presolve": "choose", "ipm_optimality_tolerance": 1e-4},
    # Relative to all that is saved, 1e-4 is much where little goes to the cloud.
    {"presolve": "choose", "ipm_optimality_tolerance": 1e-7},
    # Undoing presolve can spoil the prices.
    {"presolve": "off", "ipm_optimality_tolerance": 1e-8},
]
_GOOD_GAP = 1e-3
"""Of the bound; with a larger one the next attempt is made."""


@dataclass(frozen=True, slots=True)
class Starts:
    """Ways to run a request: from one position to another on the time axis of a device, in cells."""

    request: Ints
    device: Ints
    begin: Floats
    end: Floats
    capacity: Floats  # (m, cells) slots

    def only(self, requests: Bools) -> Starts:
        """Those of some requests (n,)."""
        kept = requests[self.request]
        return Starts(self.request[kept], self.device[kept], self.begin[kept], self.end[kept], self.capacity)


def solve(cloud: Floats, starts: Starts, busy: Bools) -> tuple[float, float]:
    """The bound, and what the solver's imprecision gives away of it, US dollars.

    Args:
        cloud: (n,) US dollars for each request in the cloud.
        starts: every way to run a request.
        busy: (n,) requests to put into the programme; the others only take part in what its prices are worth.

    Raises:
        ConfigError: highspy is missing.
        MqttCollabError: the solver gave no prices.
    """
    scale = float(cloud.max())
    if scale == 0:
        return 0.0, 0.0
    paid, programme = cloud / scale, starts.only(busy)
    # At no prices at all: what no device can run.
    cost, gap = float(_cheapest(paid, starts.request, np.zeros(starts.request.size)).sum()), 0.0
    for options in _ATTEMPTS if programme.request.size else []:
        prices, value = _prices(paid, programme, options)
        of_start = _earned(prices, starts.device, starts.end) - _earned(prices, starts.device, starts.begin)
        earned = float((prices * starts.capacity).sum())
        cost = max(cost, float(_cheapest(paid, starts.request, of_start).sum()) - earned)
        gap = max(value - cost, 0.0)
        if gap <= _GOOD_GAP * max(cost, _GOOD_GAP * float(paid.sum())):
            break
    return cost * scale, gap * scale


def _cheapest(paid: Floats, request: Ints, price: Floats) -> Floats:
    cheapest = paid.copy()
    np.minimum.at(cheapest, request, np.maximum(price, 0.0))
    return cheapest


def _earned(prices: Floats, device: Ints, place: Floats) -> Floats:
    """What a slot of a device earns up to a position (in cells)."""
    total = np.concatenate([np.zeros((len(prices), 1)), np.cumsum(prices, axis=1)], axis=1)
    cell = np.minimum(place.astype(np.int64), prices.shape[1] - 1)
    return np.asarray(total[device, cell] + (place - cell) * prices[device, cell])


def _prices(paid: Floats, starts: Starts, options: _Options) -> tuple[Floats, float]:
    """Prices (m, cells) of a slot for one cell, 0 or more, by HiGHS's interior point; and the programme's value."""
    devices, cells = starts.capacity.shape
    try:
        highspy: Any = importlib.import_module("highspy")
    except ImportError:
        raise ConfigError("bound: highspy is not installed; pip install 'mqttcollab[simulate]'") from None
    solver = highspy.Highs()
    for name, setting in {**options, **_OPTIONS}.items():
        solver.setOptionValue(name, setting)
    next(name for name in _SOLVERS if solver.setOptionValue("solver", name) == highspy.HighsStatus.kOk)
    solver.passModel(_programme(highspy, paid, starts))
    solver.run()
    solution = solver.getSolution()
    prices = np.maximum(-np.array(solution.col_dual, dtype=np.float64)[starts.request.size :], 0.0)
    if prices.size != devices * cells or not np.isfinite(prices).all():
        reason = solver.modelStatusToString(solver.getModelStatus())
        raise MqttCollabError(f"bound: HiGHS found no prices ({reason}); try another number of cells")
    taking_part = np.zeros(paid.size, dtype=np.bool_)
    taking_part[starts.request] = True
    value = solver.getInfo().objective_function_value + float(paid[taking_part].sum())
    return prices.reshape(devices, cells), value


def _programme(highspy: Any, paid: Floats, starts: Starts) -> Any:
    """Most savings. Columns: starts, then slots in use per cell. Rows: how those change, then each request once."""
    cells, count, n = starts.capacity.shape[1], starts.request.size, paid.size
    used = starts.capacity.size
    places, columns = np.arange(used), np.arange(count)
    entries = [(places, count + places, np.ones(used)), _next_cell(places, count + places, -np.ones(used), cells)]
    for place, sign in ((starts.begin, -1.0), (starts.end, 1.0)):
        cell = np.minimum(place.astype(np.int64), cells)
        part = place - cell
        inside = cell < cells
        row = starts.device * cells + cell
        entries.append((row[inside], columns[inside], sign * (1 - part)[inside]))
        entries.append(_next_cell(row[inside], columns[inside], sign * part[inside], cells))
    entries.append((used + starts.request, columns, np.ones(count)))
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = count + used, used + n
    lp.col_cost_ = np.concatenate([-paid[starts.request], np.zeros(used)])
    lp.col_lower_ = np.zeros(count + used)
    lp.col_upper_ = np.concatenate([np.full(count, np.inf), starts.capacity.ravel()])
    lp.row_lower_ = np.concatenate([np.zeros(used), np.full(n, -np.inf)])
    lp.row_upper_ = np.concatenate([np.zeros(used), np.ones(n)])
    matrix = lp.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kColwise
    matrix.start_, matrix.index_, matrix.value_ = _by_column(entries, count + used, used + n)
    return lp


def _next_cell(rows: Ints, columns: Ints, values: Floats, cells: int) -> _Entries:
    """The same one cell later, on the same device."""
    kept = rows % cells < cells - 1
    return rows[kept] + 1, columns[kept], values[kept]


def _by_column(entries: list[_Entries], columns: int, rows: int) -> tuple[Ints, Ints, Floats]:
    """Compressed columns; entries of the same place are added up."""
    key = np.concatenate([column * rows + row for row, column, _ in entries])
    order = np.argsort(key, kind="stable")
    key, values = key[order], np.concatenate([value for _, _, value in entries])[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    key, values = key[first], np.add.reduceat(values, first)
    kept = np.abs(values) > 1e-9
    key, values = key[kept], values[kept]
    return np.searchsorted(key, np.arange(columns + 1) * rows), key % rows, values
