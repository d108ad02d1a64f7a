"""What a heart rate at rest means, in careful words.

Ranges: 60 to 100/min is the usual resting rate of an adult (American Heart Association; NHS); below 50/min
counts as slow (ACC/AHA/HRS 2018 bradycardia guideline) but is common in fit people and asleep; above
100/min at rest is tachycardia. Above 120 or below 40/min at rest the British Heart Foundation advises to
seek medical help.
"""

from __future__ import annotations

USUAL = (60, 100)
SLOW = 50
SEEK_HELP = (40, 120)


def describe_heart_rate(rate: float) -> str:
    """Return what an adult's heart rate (1/min), taken at rest, is: a phrase that follows "59/min, "."""
    shown = round(rate)
    if shown > SEEK_HELP[1]:
        return "which at rest is much faster than usual (60 to 100/min): if it stays so at rest, get medical help now"
    if shown > USUAL[1]:
        return "which at rest is faster than usual (60 to 100/min; above 100 is called tachycardia)"
    if shown >= USUAL[0]:
        return "which is within the usual range at rest (60 to 100/min)"
    if shown >= SLOW:
        return "which is slightly below the usual range at rest (60 to 100/min), as is common in fit or relaxed people"
    if shown >= SEEK_HELP[0]:
        return (
            "which is slow (below 50/min is called bradycardia): common in trained athletes and asleep, "
            "but with dizziness, fainting or breathlessness get medical help now"
        )
    return "which is very slow: unless you know it of yourself, get medical help now"


def is_fast(rate: float) -> bool:
    """Tell whether the rate is a tachycardia for an adult at rest."""
    return round(rate) > USUAL[1]


def is_slow(rate: float) -> bool:
    """Tell whether the rate is a bradycardia for an adult at rest."""
    return round(rate) < SLOW
