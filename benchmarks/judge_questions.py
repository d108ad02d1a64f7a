"""Questions with checkable answers for the judge of answers: facts from a file, arithmetic made up here."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mqttcollab.classifiers.answer_text import final_number

FACTS = Path(__file__).with_name("judge_questions.jsonl")
PER_KIND = 30


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the answers that count as right: any of some words, or a number; none if nobody can know."""

    kind: str
    question: str
    answers: tuple[str, ...] = ()
    number: float | None = None

    def right(self, text: str) -> bool:
        """Whether the text gives one of the answers; of several numbers the conclusive one counts."""
        if self.number is not None:
            return final_number(text) == self.number
        # "Fe" and "O" are symbols: their case counts.
        flags = 0 if self.kind == "symbol" else re.IGNORECASE
        return any(re.search(rf"(?<![\w.,]){re.escape(a)}(?!\w)", text, flags) for a in self.answers)


def questions(seed: int = 1) -> list[Asked]:
    """Every question, the same ones for the same seed."""
    rows = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
    facts = [Asked(row["kind"], row["question"], tuple(row["answers"])) for row in rows]
    return facts + list(_arithmetic(random.Random(seed)))


def _arithmetic(dice: random.Random) -> Iterator[Asked]:
    for _ in range(PER_KIND):
        a, b = dice.randint(1, 12), dice.randint(1, 12)
        yield Asked(
            "sum, small", dice.choice(("What is {} + {}?", "{} plus {}?", "Add {} and {}.")).format(a, b), (), a + b
        )
        a, b = dice.randint(13, 999), dice.randint(13, 99)
        yield Asked("sum, large", dice.choice(("What is {} + {}?", "Calculate {} + {}.")).format(a, b), (), a + b)
        a, b = dice.randint(2, 12), dice.randint(2, 30)
        yield Asked("product", dice.choice(("What is {} * {}?", "What is {} times {}?")).format(a, b), (), a * b)
        a, b = sorted((dice.randint(2, 90), dice.randint(2, 90)))
        yield Asked("difference", dice.choice(("What is {1} - {0}?", "Subtract {} from {}.")).format(a, b), (), b - a)
        yield _story(dice)


def _story(dice: random.Random) -> Asked:
    a, b, c = dice.randint(2, 20), dice.randint(2, 12), dice.randint(2, 6)
    stories = (
        (f"Tom has {a} apples and buys {b} more. How many apples does he have now?", a + b),
        (f"There are {a + b} birds on a roof and {b} fly away. How many birds are left?", a),
        (f"A box holds {b} pens. How many pens are in {c} boxes?", b * c),
        (f"Anna shares {b * c} sweets equally among {c} children. How many does each child get?", b),
        (f"A ticket costs {a} euros. What do {c} tickets and a drink for {b} euros cost together?", a * c + b),
    )
    text, number = dice.choice(stories)
    return Asked("story", text, (), number)
