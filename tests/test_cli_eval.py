"""`mqttcollab eval`: what it prints, and how it refuses files."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import environment, in_terminal, run

from mqttcollab.cli.eval import _cells, _plain
from mqttcollab.errors import ConfigError

DATA = Path(__file__).parents[2] / "shared" / "data"
KEYS = {"ours", "baselines", "oracle", "n"}
COMMANDS = [name for name in ("gap", "match", "route", "decompose") if find_spec(f"mqttcollab.evaluate.{name}")]


@pytest.fixture
def routing(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"{'Name' if i % 2 else 'Work out the ratio of'} {i}.", "weak_correct": i % 2 == 1}
        | {"strong_correct": i % 5 != 0 or i % 2 == 1}
        for i in range(140)
    ]
    path = tmp_path / "routing.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


async def test_json_is_all_that_json_prints(routing: Path) -> None:
    result = await run("eval", "route", "--train", str(routing), "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert set(report) == KEYS
    assert report["n"] == 140
    assert {"apgr", "cpt50", "cpt80", "ece", "ci95"} <= set(report["ours"])
    assert set(report["baselines"]) == {"random", "length", "domain_mean", "best_single", "1-NN"}


async def test_in_a_pipe_figures_are_separated_by_tabs(routing: Path) -> None:
    result = await run("eval", "route", "--train", str(routing), "--test", str(routing.with_name("none.jsonl")))
    assert result.error == f"error: {routing.with_name('none.jsonl')}: No such file or directory"
    lines = (await run("eval", "route", "--train", str(routing))).out.splitlines()
    assert lines[0].split("\t") == ["n = 140", "apgr", "cpt50", "cpt80", "ece"]
    assert [line.split("\t")[0] for line in lines[1:]] == [
        *("ours", "random", "length", "domain_mean", "best_single", "1-NN", "oracle")
    ]
    assert "–" in lines[1]


async def test_in_a_terminal_there_is_a_table(routing: Path) -> None:
    lines = await in_terminal(80, "eval", "route", "--train", str(routing), broker="mqtt://127.0.0.1:1")
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    for word in ("n = 140", "apgr", "ours", "1-NN", "oracle"):
        assert word in text


async def test_the_router_learned_is_written(routing: Path, tmp_path: Path) -> None:
    out = tmp_path / "router.json"
    assert (await run("eval", "route", "--train", str(routing), "--save", str(out))).code == 0
    assert json.loads(out.read_text(encoding="utf-8"))["type"] == "mqttcollab.router.v1"
    refused = await run("eval", "route", "--train", str(routing), "--save", str(tmp_path / "no" / "router.json"))
    assert "can't write" in refused.err
    assert (refused.code, refused.err.count("\n")) == (1, 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_can_not_be_used_is_refused_in_a_line(command: str, tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "binary": b"\x89PNG\r\n\x1a\n\xff",
        "foreign": b'{"a": 1}\n',
        "broken": b'{"text": "Hello?", "prompt": "Hello?", "question": "Hello?"\n',
        "kinds": b'{"text": 1, "domain": [], "intent": {}, "prompt": null, "question": 2, "decomposition": "x"}\n',
    }
    paths = [tmp_path, tmp_path / "missing"]
    for name, content in contents.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    evaluate = import_module(f"mqttcollab.evaluate.{command}").evaluate
    for path in paths:
        with pytest.raises(ConfigError, match=re.escape(str(path))) as error:
            evaluate(path, path)
        assert "\n" not in str(error.value)
    result = asyncio.run(run("eval", command, "--train", str(path), "--test", str(path)))
    assert result.error == f"error: {error.value}"


@pytest.mark.parametrize("command", COMMANDS)
async def test_too_few_rows_are_refused_in_a_line(command: str, tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    row = {"text": "Hello?", "domain": "talk", "intent": "greet", "prompt": "Hello?", "question": "Hello?"}
    row |= {"decomposition": ["Hello?"], "weak_correct": True, "strong_correct": True}  # type: ignore[dict-item]
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert (await run("eval", command, "--train", str(path), "--test", str(path))).error.startswith("error: ")


@pytest.mark.parametrize("words", [("route",), ("gap", "--train", "x"), ("route", "--train", "x", "--weak-cost", "2")])
async def test_options_that_are_missing_or_out_of_range_do_not_parse(words: tuple[str, ...]) -> None:
    result = await run("eval", *words)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


async def test_a_cost_that_is_no_number_is_refused(routing: Path) -> None:
    result = await run("eval", "route", "--train", str(routing), "--weak-cost", "nan")
    assert result.code in (1, 2)
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("package", "said"),
    [("numpy", "evaluations need numpy; get it with: pip install 'mqttcollab[embed]'"), ("wordllama", "[embed]")],
)
async def test_without_its_extra_it_says_what_to_install(package: str, said: str, routing: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv[0] = 'x'; from mqttcollab.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "eval", "route", "--train", str(routing)),
        stderr=asyncio.subprocess.PIPE,
        env=environment(None),
    )
    _, err = await process.communicate()
    assert process.returncode == 1
    (line,) = err.decode().splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.skipif(not DATA.exists(), reason="the data sets are not here")
async def test_the_weights_of_complexity_are_made_by_a_command(tmp_path: Path) -> None:
    words = ("--questions", str(DATA / "decompose/strategyqa.jsonl"), "--intents", str(DATA / "intents/val.jsonl"))
    result = await run("eval", "complexity", *words, "--save", str(tmp_path / "weights.json"), "--json")
    assert set(json.loads(result.out)) == KEYS
    assert json.loads((tmp_path / "weights.json").read_text(encoding="utf-8"))["provenance"]["rows"] > 1000
    swapped = (words[0], words[3], words[2], words[1])
    assert "'decomposition' is missing" in (await run("eval", "complexity", *swapped)).error


def test_figures_that_are_undefined_are_null_and_dashes() -> None:
    report: dict[str, Any] = {
        "ours": {"auroc": float("nan"), "ece": 0.5, "ci95": {"ece": (0.25, float("inf"))}},
        "baselines": {"random": {"ece": 1, "ci95": {"ece": [0.5, 1.0]}}},
        "oracle": {"auroc": None, "ci95": {}},
        "n": 3,
    }
    plain = _plain(report)
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "ours": {"auroc": None, "ece": 0.5, "ci95": {"ece": [0.25, None]}},
        "baselines": {"random": {"ece": 1, "ci95": {"ece": [0.5, 1.0]}}},
        "oracle": {"auroc": None, "ci95": {}},
        "n": 3,
    }
    assert _cells(plain) == [
        ["n = 3", "auroc", "ece"],
        ["ours", "-", "0.500"],
        ["random", "-", "1.000 (0.500–1.000)"],
        ["oracle", "-", "-"],
    ]
