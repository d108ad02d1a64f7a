"""Anomalies put into real hourly records (NOx, weather): how many are found at one false alarm in a hundred.

Each detector gets the threshold that gives 1% false alarms on the first half of a record as it is (its real storms
and rush hours count as false alarms, so the figures are pessimistic), and is measured on the second half, where the
false-alarm rate is counted again. Neighbours are made: the same record with an offset and noise of their own.
"""

from __future__ import annotations

import csv
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from benchmarks.common import ROOT, Benchmark, Result, table
from mqttcollab.cooperation.area_findings import against_neighbours, move_of
from mqttcollab.cooperation.area_statistics import far_off, robust_z, stuck_for, trend

WINDOW = 48
FALSE_ALARMS = 0.01
NEIGHBOURS = 4
BLOCK = 24  # hours that are drawn together: neighbours in time are alike
RECORDS = (
    ("nox_hourly.csv", "nox_ppb"),
    ("weather_hourly.csv", "temperature_c"),
    ("weather_hourly.csv", "humidity_pct"),
    ("weather_hourly.csv", "wind_ms"),
)
Scorer = Callable[[Sequence[float], Sequence[float]], float]  # of a window and of how far its neighbours moved


def sigma(values: Sequence[float], _moves: Sequence[float]) -> float:
    spread = statistics.pstdev(values[:-1])
    return abs(values[-1] - statistics.fmean(values[:-1])) / spread if spread else 0.0


SCORERS: dict[str, Scorer] = {
    "ours, alone": lambda values, _: abs(far_off(values) or 0.0),
    "ours, with neighbours": lambda values, moves: abs(against_neighbours(values, moves) or 0.0),
    "ours, trend": lambda values, _: _trend_score(values),
    "median/MAD z": lambda values, _: abs(robust_z(values[-1], values[:-1]) or 0.0),
    "mean/std z (3 sigma)": sigma,
    "last difference": lambda values, _: abs(values[-1] - values[-2]),
}
AFTER = "hour after a spike"  # when all is well again: what is found here is a false alarm
KINDS: dict[str, tuple[float, ...]] = {
    "spike": (1.0, 2.0, 3.0, 5.0),
    AFTER: (3.0,),
    "drift over 24 h": (1.0, 2.0, 4.0),
}


def _trend_score(values: Sequence[float]) -> float:
    found = trend([(3600.0 * hour, value) for hour, value in enumerate(values[-24:])])
    return abs(found.slope) / max(1e-9, found.high - found.low) if found is not None else 0.0


async def measure(rounds: int | None = None) -> Result:
    """Scores every hour of every record, clean and with each anomaly; `rounds` resamplings for the intervals."""
    dice = random.Random(1)
    clean: dict[str, list[list[bool]]] = {name: [] for name in SCORERS}
    fixed: list[list[bool]] = []
    found: dict[str, dict[str, list[list[bool]]]] = {}
    stuck: dict[str, list[list[bool]]] = {}
    for file, column in RECORDS:
        record = _read(file, column)
        others = _neighbours(record, dice)
        half = len(record) // 2
        test = range(half, len(record))
        moves = {i: [move_of(other[i - WINDOW : i + 1]) for other in others] for i in range(WINDOW, len(record))}
        size = statistics.pstdev(record)
        for name, score in SCORERS.items():
            limit = _threshold([score(record[i - WINDOW : i + 1], moves[i]) for i in range(WINDOW, half)])
            clean[name] += _blocks(score(record[i - WINDOW : i + 1], moves[i]) > limit for i in test)
            for kind, sizes in KINDS.items():
                for times in sizes:
                    flags = (
                        score(_with(record[i - WINDOW : i + 1], kind, times * size * dice.choice((1, -1))), moves[i])
                        > limit
                        for i in test
                    )
                    found.setdefault(f"{kind}, {times:g} sd", {}).setdefault(name, []).extend(_blocks(flags))
        fixed += _blocks(abs(far_off(record[i - WINDOW : i + 1]) or 0) >= 1 for i in test)
        for hours in (0, 6, 12, 24):
            flags = (stuck_for(_frozen(record[i - WINDOW : i + 1], hours)) > 0 for i in test)
            stuck.setdefault(f"stuck for {hours} h" if hours else "not stuck", []).extend(_blocks(flags))
    draws = rounds or 1000
    return {
        "hours": sum(map(len, clean["last difference"])),
        "false_alarms": {name: _rate(blocks, draws) for name, blocks in clean.items()},
        "false_alarms_fixed": _rate(fixed, draws),
        "detected": {k: {name: _rate(b, draws) for name, b in each.items()} for k, each in found.items()},
        "stuck": {name: _rate(blocks, draws) for name, blocks in stuck.items()},
    }


def _read(file: str, column: str) -> list[float]:
    lines = (ROOT / "devices" / "data" / file).read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if line.strip() and not line.startswith("#"))
    return [float(row[column]) for row in rows if row[column] not in ("", "nan")]


def _neighbours(record: Sequence[float], dice: random.Random) -> list[list[float]]:
    noise = 0.3 * statistics.pstdev(b - a for a, b in pairwise(record))
    offsets = [dice.gauss(0, statistics.pstdev(record)) for _ in range(NEIGHBOURS)]
    return [[value + offset + dice.gauss(0, noise) for value in record] for offset in offsets]


def _with(values: Sequence[float], kind: str, size: float) -> list[float]:
    if kind == "spike":
        return [*values[:-1], values[-1] + size]
    if kind == AFTER:
        return [*values[:-2], values[-2] + size, values[-1]]
    start = len(values) - 24
    return [value + size * max(0, i - start + 1) / 24 for i, value in enumerate(values)]


def _frozen(values: Sequence[float], hours: int) -> list[float]:
    return [*values[: len(values) - hours], *[values[len(values) - hours - 1]] * hours]


def _threshold(scores: Sequence[float]) -> float:
    return sorted(scores)[int(len(scores) * (1 - FALSE_ALARMS))]


def _blocks(flags: Iterable[bool]) -> Iterator[list[bool]]:
    block: list[bool] = []
    for flag in flags:
        block.append(flag)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _rate(blocks: Sequence[Sequence[bool]], draws: int) -> dict[str, float]:
    """The share that is flagged, with its 95% interval by resampling days."""
    dice = random.Random(2)
    sums = [(sum(block), len(block)) for block in blocks]
    rates = []
    for _ in range(draws):
        drawn = dice.choices(sums, k=len(sums))
        rates.append(sum(hits for hits, _ in drawn) / sum(count for _, count in drawn))
    rates.sort()
    share = sum(hits for hits, _ in sums) / sum(count for _, count in sums)
    return {"rate": share, "low": rates[int(0.025 * draws)], "high": rates[min(draws - 1, int(0.975 * draws))]}


def _show(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.2f} ({rate['low']:.2f}-{rate['high']:.2f})"


def show(result: Result) -> Iterable[str]:
    yield f"{result['hours']} hours of {len(RECORDS)} values, windows of {WINDOW} h; sd: of the whole record"
    rows = [("false alarms", result["false_alarms"]), *result["detected"].items()]
    yield from table(("", *SCORERS), [(name, *(_show(each[s]) for s in SCORERS)) for name, each in rows])
    yield f"ours, alone, at its fixed bound: false alarms {_show(result['false_alarms_fixed'])}"
    yield "said to be stuck: " + "; ".join(f"{name} {_show(rate)}" for name, rate in result["stuck"].items())


BENCHMARK = Benchmark("area", "Anomalies in real records: found at 1% false alarms, with 95% intervals", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
