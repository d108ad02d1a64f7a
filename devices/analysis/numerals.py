"""English number words to digits: "twenty five" → 25, "two hundred and five" → 205."""

from __future__ import annotations

import re
from decimal import Decimal

_UNIT_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
"""
_TEN_WORDS = "ten twenty thirty forty fifty sixty seventy eighty ninety"
UNITS = {word: value for value, word in enumerate(_UNIT_WORDS.split())}
TENS = {word: 10 * value for value, word in enumerate(_TEN_WORDS.split(" "), start=1) if value > 1}
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_SMALL = UNITS | TENS
_WORD = "|".join((*_SMALL, *SCALES))
# "and" joins only behind a scale: "two hundred and five" is one number, "five and six" are two.
_SCALED = re.compile(rf"(?<![\w.])(\d+(?:\.\d+)?) ({'|'.join(SCALES)})\b")
_RUN = re.compile(rf"\b(?:{_WORD})\b(?:(?:[ -]+|(?<=hundred) and |(?<=thousand) and )(?:{_WORD})\b)*")


def replace_numerals(text: str) -> str:
    """Replace number words in lower-case `text` by digits; runs that make no number become several."""
    text = _SCALED.sub(lambda match: f"{(Decimal(match[1]) * SCALES[match[2]]).normalize():f}", text)
    return _RUN.sub(lambda match: " ".join(str(value) for value in _values(match.group())), text)


def _values(run: str) -> list[int]:
    """Read a run of number words as one or more numbers."""
    values: list[int] = []
    total, current, last = 0, 0, 0
    started = False
    for word in (word for word in re.split(r"[ -]+", run) if word != "and"):
        if word in SCALES:
            scale = SCALES[word]
            if scale == 100:
                current = max(current, 1) * 100
            else:
                total, current = total + max(current, 1) * scale, 0
            last, started = scale, True
            continue
        value = _SMALL[word]
        fits = not started or last >= 100 or (20 <= last <= 90 and 1 <= value <= 9)
        if not fits:
            values.append(total + current)
            total, current = 0, 0
        current, last, started = current + value, value, True
    values.append(total + current)
    return values
