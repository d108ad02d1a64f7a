"""`mqttcollab simulate`: what it prints, and how it refuses what can't be simulated."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest
import typer.testing
from command import in_terminal, run, started

from mqttcollab.cli.app import app
from mqttcollab.errors import ConfigError
from mqttcollab.scheduling import POLICIES

KEYS = {
    *("policy", "arrivals", "load", "report_delay_s", "orchestrators", "length_error", "patience_s", "seeds"),
    *("processed", "rejected", "redirected", "cloud_cost_usd", "cloud_cost_ci95", "p50_ms", "p95_ms", "ratio_to_bound"),
}
QUICK = ("simulate", "--hours", "0.05", "--seeds", "2", "--jobs", "1")


async def test_json_is_all_that_json_prints() -> None:
    options = ("--load", "0.8", "--load", "0.4", "--patience", "2", "--orchestrators", "2", "--crash")
    result = await run(*QUICK, *options, "--report-delay", "1", "--length-error", "0.5", "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert set(report) == {"runs"}
    assert [(found["load"], found["policy"]) for found in report["runs"]] == [
        (x, p) for x in (0.8, 0.4) for p in POLICIES
    ]
    for found in report["runs"]:
        assert set(found) >= KEYS
        assert (found["arrivals"], found["seeds"], found["patience_s"]) == ("paper", 2, 2)
        assert (found["report_delay_s"], found["orchestrators"], found["length_error"]) == (1, 2, 0.5)
        low, high = found["cloud_cost_ci95"]
        assert low <= found["cloud_cost_usd"] <= high
        assert found["down"] == {"laptop": [[60, 90]]}
        assert found["ratio_to_bound"] is None or found["ratio_to_bound"] >= 1
        assert found["p50_ms"] < found["p95_ms"]


async def test_in_a_pipe_tables_are_lines_with_tabs() -> None:
    result = await run(*QUICK, "--load", "0.9", "--policy", "load-aware", "--policy", "frugal")
    assert (result.code, result.err) == (0, "")
    first, header, load_aware, frugal, second, *_ = result.out.split("\n")
    assert first == "the paper's arrivals, load 0.9, patience 0 s, report delay 0 s, 1 orchestrator, length error 0"
    assert header.split("\t") == [
        *("policy", "processed", "rejected", "redirected", "cloud USD", "over frugal", "p50 s", "p95 s"),
        *("excess", "/ bound"),
    ]
    assert (load_aware.split("\t")[0], frugal.split("\t")[0], second) == ("load-aware", "frugal", "utilisation")
    assert "±" in frugal
    assert result.out.rstrip().splitlines()[-1].startswith("means of 2 seeds and 95% intervals; bound ")


async def test_without_a_bound_or_a_second_seed_there_is_less() -> None:
    result = await run("simulate", "--hours", "0.05", "--seeds", "1", "--no-bound", "--policy", "random")
    assert result.out.splitlines()[1].split("\t")[-1] == "p95 s"
    assert result.out.rstrip().splitlines()[-1] == "1 seed: no intervals"


async def test_in_a_terminal_there_are_tables() -> None:
    lines = await in_terminal(80, *QUICK, broker="mqtt://127.0.0.1:1")
    text = "\n".join(lines)
    for word in ("policy", "processed", "/ bound", "frugal", "utilisation", "laptop"):
        assert word in text
    rows = [line for line in lines if line.startswith("frugal")]
    assert len(rows) == 2 and all(len(line) <= 80 for line in lines if not line.startswith("means"))


async def test_a_fleet_a_trace_and_a_plot_of_ones_own(tmp_path: Path) -> None:
    fleet, trace, plot = tmp_path / "fleet.toml", tmp_path / "mine.csv", tmp_path / "out.svg"
    fleet.write_text('[[device]]\nname = "only"\ntokens_per_s = 10\n', encoding="utf-8")
    rows = "".join(f"2024-01-01 00:{minute:02d}:00,0,300\r\n" for minute in range(10))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\r\n{rows}", encoding="utf-8")
    words = ("--fleet", str(fleet), "--trace", str(trace), "--plot", str(plot), "--policy", "frugal")
    result = await run("simulate", *words, "--load", "2", "--seeds", "2", "--jobs", "1", "--json")
    assert result.code == 0
    assert result.err == "mine.csv offers this fleet a load of 0.556: for 2 it is taken whole\n"
    (found,) = json.loads(result.out)["runs"]
    assert (found["arrivals"], found["load"], found["processed"], found["redirected"]) == ("mine.csv", 2, 10, 0)
    assert found["offered_load"] == pytest.approx(0.556, abs=1e-3)
    assert found["p50_ms"] == pytest.approx(30_004)
    assert found["utilisation"] == {"only": pytest.approx(300 / 570, abs=0.01)}
    assert "mine.csv" in plot.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "number", "code"), [(1, signal.SIGINT, -2), (2, signal.SIGTERM, 143), (2, signal.SIGKILL, -9)]
)
async def test_a_signal_ends_it_at_once_without_a_word(jobs: int, number: signal.Signals, code: int) -> None:
    # Only the command gets the signal: its processes have to end with it.
    async with started("simulate", "--seeds", "1000", "--jobs", str(jobs)) as command:
        for _ in range(200):
            await asyncio.sleep(0.05)
            if len(children := _children(command.process.pid)) > (jobs if jobs > 1 else -1):
                break
        await asyncio.sleep(0.7 if jobs > 1 else 4)
        assert command.process.returncode is None
        command.signal(number)
        result = await asyncio.wait_for(command.result(), 5)
    assert (result.code, result.out) == (code, "")
    assert number == signal.SIGKILL or result.err == ""
    for _ in range(100):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        await asyncio.sleep(0.1)
    else:
        pytest.fail("processes of the simulation are left")


def _children(parent: int) -> list[int]:
    """The processes that a process has started (elsewhere than on Linux: none is seen)."""
    try:
        tasks = Path(f"/proc/{parent}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--validate --crash", "--validate takes no device away; leave out --crash and --down"),
        ("--policy best", "there is no policy 'best'; use one of random, weighted,"),
        ("--load 0", "--load is 0; it has to be above 0, and 100 at most"),
        ("--load -1", "--load is -1; it has to be above 0"),
        ("--load 101", "--load is 101; it has to be above 0, and 100 at most"),
        ("--load nan", "--load is nan; it has to be above 0"),
        ("--report-delay -1", "--report-delay is -1; it has to be 0 or more seconds"),
        ("--patience inf", "--patience is inf; it has to be 0 or more seconds"),
        ("--orchestrators 0", "--orchestrators is 0; it has to be 1 or more"),
        ("--length-error 1.5", "--length-error is 1.5; it has to be from 0 to 1"),
        ("--seeds 0", "--seeds is 0; use 1 or more, and 2 or more for intervals"),
        ("--jobs 0", "--jobs is 0; use 1 or more processes"),
        ("--hours 0", "--hours is 0; it has to be above 0"),
        ("--down laptop", "--down is 'laptop'; expected NAME:FROM-TO in seconds, such as laptop:1200-1800"),
        ("--down toaster:1-2", "there is no device 'toaster' that could be down"),
        ("--down laptop:3-2", "laptop is down from 3 to 2: the end has to come after the beginning"),
        ("--fleet none.toml", "none.toml: No such file or directory"),
        ("--trace none.csv", "none.csv: No such file or directory"),
        ("--plot a.pdf", "a.pdf: plots are written as .png or .svg, not .pdf"),
    ],
)
def test_what_can_not_be_simulated_is_refused_in_a_line(words: str, told: str) -> None:
    result = typer.testing.CliRunner().invoke(app, ["simulate", *words.split()])
    assert isinstance(result.exception, ConfigError)
    assert told in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    ("package", "words", "told"),
    [
        ("numpy", [], "simulations need numpy; get it with: pip install 'mqttcollab[simulate]'"),
        ("matplotlib", ["--plot", "a.png"], "plots need matplotlib; get it with: pip install 'mqttcollab[simulate]'"),
        ("highspy", [], "highspy"),
    ],
)
async def test_a_package_that_is_missing_is_named(tmp_path: Path, package: str, words: list[str], told: str) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('not here', name={package!r})")
    result = await run(*QUICK, *words, PYTHONPATH=str(tmp_path))
    assert told in result.error


def test_the_help_names_every_policy() -> None:
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| `--policy TEXT` | random")]
    assert all(name in line for name in POLICIES)
