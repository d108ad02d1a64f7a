"""What shall not leave is replaced by numbered placeholders, `[EMAIL-1]`, and put back into the answer."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mqttcollab.errors import ConfigError

Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]

_KIND = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
_PLACEHOLDER = re.compile(r"\[([A-Z][A-Z0-9_]{0,31})-([0-9]+)\]")

# Possessive (`++`) and led by a look-behind, so that none takes more than linear time.
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]++@[\w-]++(?:\.[\w-]++)+")
_SPACE = r"[ \u00a0\u202f-]"
_DIGITS = re.compile(rf"(?<![0-9])[0-9](?:{_SPACE}?[0-9]){{12,}}+")
_IBAN = re.compile(rf"(?<![A-Za-z0-9])[A-Za-z]{{2}}[0-9]{{2}}(?:{_SPACE}?[A-Za-z0-9]){{11,30}}+")
_IPV4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:)[0-9A-Fa-f:.]++")
_PHONE = re.compile(
    r"""(?<![\w.+])(?:
        (?:\+|00)[0-9](?:[ \u00a0()./-]{0,2}[0-9]){6,14}                  # international
        | \(?0[0-9]{1,5}\)?[ \u00a0./-]{1,2}[0-9](?:[ \u00a0./-]?[0-9]){3,10}  # with a trunk 0
        | 0[0-9]{8,11}
        | (?:1[ .-])?\(?[2-9][0-9]{2}\)?[ .-]{1,2}[0-9]{3}[ .-][0-9]{4}   # North America
    )(?!\w)""",
    re.X,
)
_DATE = re.compile(r"[0-9]{1,4}([./-])[0-9]{1,2}\1[0-9]{1,4}(?:\D.*)?")
_DEGREES = r"[-+−]?[0-9]{1,3}\.[0-9]{%s,}"
_COORDINATES = re.compile(
    rf"""(?<![\w.])(?:
        {_DEGREES % 3}\s?°?\s?[NS]?\s?[,;/\s]\s?{_DEGREES % 3}(?:\s?°?\s?[EWO]\b)?     # 40.7128, -74.0060
        | [0-9]{{1,3}}(?:\.[0-9]+)?\s?°\s?(?:[0-9]{{1,2}}(?:\.[0-9]+)?\s?['′’]\s?)?
          (?:[0-9]{{1,2}}(?:\.[0-9]+)?\s?(?:["″”]|'')\s?)?[NSEWO]\b                   # 40°42'46" N
    )""",
    re.X,
)
_NAMED_COORDINATE = re.compile(
    r"(?i)\b(?:lat(?:itude)?|lng|lon(?:g(?:itude)?)?)\b[\"']?\s?(?:[:=]|is)?\s?([-+−]?[0-9]{1,3}(?:\.[0-9]+)?)"
)


@dataclass(slots=True)
class Redacted:
    """Texts without what shall not leave, and what stood there.

    Attributes:
        texts: as they may leave.
        values: what each placeholder stands for.
        count: how many places were redacted.
    """

    texts: list[str]
    values: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def restore(self, text: str) -> str:
        """Puts back what the placeholders in a text stand for."""
        return _PLACEHOLDER.sub(lambda found: self.values.get(found[0], found[0]), text)


class Redactor:
    """Finds what shall not leave.

    Args:
        kinds: which of KINDS to look for; None for all.
        words: further words, whole and in any case.
        patterns: further regular expressions by their kind, which is what the placeholder is called.

    Raises:
        ConfigError: a kind is unknown, or a pattern does not parse or matches nothing at all.
    """

    def __init__(
        self,
        kinds: Sequence[str] | None = None,
        words: Sequence[str] = (),
        patterns: Mapping[str, str] | None = None,
    ) -> None:
        self._finders: list[tuple[str, Finder]] = []
        for kind, pattern in (patterns or {}).items():
            self._finders.append((_check_kind(kind), _matches(_compile(kind, pattern))))
        if words:
            if not all(word.strip() for word in words):
                raise ConfigError("redaction.words has an empty word; remove it")
            longest = sorted(map(re.escape, words), key=len, reverse=True)
            self._finders.append(("WORD", _matches(re.compile(rf"(?i)(?<!\w)(?:{'|'.join(longest)})(?!\w)"))))
        for kind in KINDS if kinds is None else kinds:
            if kind not in KINDS:
                raise ConfigError(f"redaction.kinds has {kind!r}; known are {', '.join(KINDS)}")
            self._finders.append((kind.upper(), KINDS[kind]))

    def redact(self, texts: Sequence[str]) -> Redacted:
        """Replaces what is found; the same value has the same placeholder in all the texts."""
        taken = {found[0] for text in texts for found in _PLACEHOLDER.finditer(text)}
        names: dict[tuple[str, str], str] = {}
        numbers: dict[str, int] = {}
        redacted = Redacted([])
        for text in texts:
            pieces, end = [], 0
            for kind, (start, stop) in self._spans(text):
                value = text[start:stop]
                if (kind, value) not in names:
                    names[kind, value] = name = _next_name(kind, numbers, taken)
                    redacted.values[name] = value
                pieces += [text[end:start], names[kind, value]]
                end = stop
                redacted.count += 1
            redacted.texts.append("".join([*pieces, text[end:]]))
        return redacted

    def _spans(self, text: str) -> list[tuple[str, Span]]:
        """What is found, in order; what overlaps is one, of the kind that comes first among the finders."""
        found = [(span, rank) for rank, (_, find) in enumerate(self._finders) for span in find(text)]
        merged: list[tuple[int, Span]] = []
        for (start, stop), rank in sorted(found):
            if merged and start < merged[-1][1][1]:
                before, (first, last) = merged.pop()
                merged.append((min(before, rank), (first, max(last, stop))))
            else:
                merged.append((rank, (start, stop)))
        return [(self._finders[rank][0], span) for rank, span in merged]


def _next_name(kind: str, numbers: dict[str, int], taken: set[str]) -> str:
    """A placeholder that stands in none of the texts."""
    while True:
        numbers[kind] = numbers.get(kind, 0) + 1
        if (name := f"[{kind}-{numbers[kind]}]") not in taken:
            return name


def _check_kind(kind: str) -> str:
    if not _KIND.fullmatch(kind):
        raise ConfigError(f"redaction.patterns.{kind}: name it with A-Z, 0-9 and _, such as BADGE")
    return kind


def _compile(kind: str, pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"redaction.patterns.{kind} is {pattern!r}, no regular expression: {error}") from None
    if compiled.fullmatch("") or compiled.search(""):
        raise ConfigError(f"redaction.patterns.{kind} is {pattern!r}, which also matches nothing at all")
    return compiled


def _matches(pattern: re.Pattern[str]) -> Finder:
    return lambda text: (found.span() for found in pattern.finditer(text) if found[0])


def _ibans(text: str) -> Iterator[Span]:
    """The longest beginning of each candidate whose check digits (ISO 13616, mod 97) are right."""
    at = 0
    while found := _IBAN.search(text, at):
        start = found.start()
        at = start + 1
        for stop in range(found.end(), start + 14, -1):
            if text[stop : stop + 1].isalnum() or not text[stop - 1].isalnum():
                continue
            code = re.sub(_SPACE, "", text[start:stop]).upper()
            if 15 <= len(code) <= 34 and _mod97(code) == 1:
                yield start, stop
                at = stop
                break


def _mod97(code: str) -> int:
    return int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97


def _cards(text: str) -> Iterator[Span]:
    """13 to 19 digits, alone or in groups of three and more, with a right last digit (ISO 7812, Luhn)."""
    for run in _DIGITS.finditer(text):
        groups = list(re.finditer("[0-9]+", run[0]))
        for first in range(len(groups)):
            number, end = "", 0
            for group in groups[first : first + 7]:
                number += group[0]
                if len(group[0]) < 3 or len(number) > 19:
                    break
                if len(number) >= 13 and _luhn(number):
                    end = group.end()
            if end:
                yield run.start() + groups[first].start(), run.start() + end


def _luhn(number: str) -> bool:
    digits = [int(digit) for digit in reversed(number)]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[1::2]]
    return any(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _addresses(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for found in pattern.finditer(text):
            address = found[0].rstrip(".")
            address = address if address.endswith("::") else address.rstrip(":")
            try:
                ipaddress.ip_address(address)
            except ValueError:
                continue
            yield found.start(), found.start() + len(address)


def _phones(text: str) -> Iterator[Span]:
    return (found.span() for found in _PHONE.finditer(text) if not _DATE.fullmatch(found[0]))


def _coordinates(text: str) -> Iterator[Span]:
    yield from (found.span() for found in _COORDINATES.finditer(text))
    yield from (found.span(1) for found in _NAMED_COORDINATE.finditer(text))


# In this order they name what several of them find.
KINDS: Mapping[str, Finder] = {
    "email": _matches(_EMAIL),
    "iban": _ibans,
    "card": _cards,
    "ip": _addresses,
    "coordinates": _coordinates,
    "phone": _phones,
}
