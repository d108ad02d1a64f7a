"""Runs every target under atheris for a fixed number of inputs: `python tests/fuzz/run.py --runs 1000000 --seed 1`.

Each target has a process of its own, begins with its seeds and the corpus that is kept beside this file, and fails on
a crash, on an input that takes 10 s, and on memory that grows. What it found goes to `--out`; `--keep` merges the new
inputs that reach further into the kept corpus. Takes `pip install 'mqttcollab[fuzz]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from fuzz.seeds import words  # noqa: E402
from fuzz.targets import TARGETS, Target  # noqa: E402

CORPUS = HERE / "corpus"
_HANG_S = 10
# What a target may take in all, and more at its end than once it has begun to fuzz: libFuzzer's own tables, and what
# the library may remember (replies: 16 MB).
_MOST_MB, _GROWTH_MB = 1024, 64
_STATUS = re.compile(r"#\d+\s+(\w+)\s+cov: (\d+) .*corp: (\d+)/\S+ .*rss: (\d+)Mb")


@dataclass(slots=True)
class Outcome:
    """What became of one target."""

    inputs: int
    seconds: float
    coverage: int
    corpus: int
    begin_mb: int
    end_mb: int
    problem: str = ""


def fuzz(name: str, target: Target, runs: int, seed: int, out: Path) -> Outcome:
    """Tries so many inputs."""
    found, begin, kept = (out / name / part for part in ("found", "begin", "kept"))
    for folder in (found, begin, kept):
        folder.mkdir(parents=True, exist_ok=True)
    for data in target.seeds():
        (begin / sha1(data).hexdigest()).write_bytes(data[: target.max_len])
    kept = CORPUS / name if (CORPUS / name).is_dir() else kept
    dictionary = out / "dictionary"
    escaped = ("".join(map("\\x{:02x}".format, word)) for word in words())
    dictionary.write_text("".join(f'"{word}"\n' for word in escaped))
    started = time.monotonic()
    ended = subprocess.run(
        [
            *(sys.executable, str(HERE / "child.py"), name),
            *(f"-runs={runs}", f"-seed={seed}", f"-max_len={target.max_len}", f"-dict={dictionary}", "-len_control=20"),
            *(f"-timeout={_HANG_S}", f"-rss_limit_mb={_MOST_MB}", "-print_final_stats=1"),
            f"-artifact_prefix={out / name}/",
            *(str(found), str(begin), str(kept)),
        ],
        capture_output=True,
        text=True,
        errors="replace",
    )
    log = out / f"{name}.log"
    text = ended.stdout + ended.stderr
    log.write_text(text)
    return read_log(ended.returncode, text, runs, time.monotonic() - started, log)


def read_log(code: int, text: str, runs: int, seconds: float, log: Path) -> Outcome:
    """What libFuzzer said of its run."""
    lines = [found.groups() for found in map(_STATUS.search, text.splitlines()) if found]
    begun = [line for line in lines if line[0] == "INITED"] or lines[:1] or [("", "0", "0", "0")]
    last = lines[-1] if lines else begun[0]
    units = re.search(r"number_of_executed_units: (\d+)", text)
    outcome = Outcome(int(units[1]) if units else 0, seconds, *map(int, (last[1], last[2], begun[0][3], last[3])))
    if code:
        error = re.search(r"(?:Uncaught Python exception: ===\s*|(?<=ERROR: )libFuzzer: )([^\n]+)", text)
        outcome.problem = f"{error[1] if error else f'exit code {code}'} (see {log})"
    elif outcome.inputs < runs:
        outcome.problem = f"stopped early (see {log})"
    elif outcome.end_mb > outcome.begin_mb + _GROWTH_MB:
        outcome.problem = f"grew by {outcome.end_mb - outcome.begin_mb} MB"
    return outcome


def keep(name: str, out: Path, most_bytes: int) -> None:
    """Merges what was found into the kept corpus, and makes that as small as it can be without reaching less."""
    with tempfile.TemporaryDirectory() as folder:
        merged, kept = Path(folder), CORPUS / name
        parts = [str(path) for path in (kept, out / name / "begin", out / name / "found") if path.is_dir()]
        command = [sys.executable, str(HERE / "child.py"), name, "-merge=1", str(merged), *parts]
        subprocess.run(command, check=True, capture_output=True)
        contents = sorted((path.read_bytes() for path in merged.iterdir()), key=len)
    kept.mkdir(parents=True, exist_ok=True)
    for old in kept.iterdir():
        old.unlink()
    size = 0
    for content in contents:
        size += len(content)
        if size > most_bytes:
            break
        (kept / sha1(content).hexdigest()[:16]).write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs in all (default: 1,000,000)")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's random numbers (default: 1)")
    parser.add_argument("--only", choices=sorted(TARGETS), action="append", help="this target; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="logs and crashes (default: fuzz-out)")
    parser.add_argument("--keep", action="store_true", help="merge what reaches further into the kept corpus")
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("fuzzing takes atheris: pip install 'mqttcollab[fuzz]'")
    chosen = {name: target for name, target in TARGETS.items() if not arguments.only or name in arguments.only}
    shares = sum(target.share for target in chosen.values())
    out = arguments.out.resolve()
    print(f"seed {arguments.seed}; logs and crashes are in {out}")
    print(f"{'target':<12}{'inputs':>10}{'s':>6}{'inputs/s':>10}{'edges':>7}{'corpus':>8}{'MB':>10}  result")
    total, seconds, failed = 0, 0.0, False
    for name, target in chosen.items():
        runs = -(-arguments.runs * target.share // shares)
        done = fuzz(name, target, runs, arguments.seed, out)
        total, seconds, failed = total + done.inputs, seconds + done.seconds, failed or bool(done.problem)
        print(
            f"{name:<12}{done.inputs:>10,}{done.seconds:>6.0f}{done.inputs / done.seconds:>10,.0f}{done.coverage:>7}"
            f"{done.corpus:>8}{f'{done.begin_mb} → {done.end_mb}':>10}  {done.problem or 'ok'}",
            flush=True,
        )
        if arguments.keep:
            keep(name, out, 32_000)
    print(f"{'in all':<12}{total:>10,}{seconds:>6.0f}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
