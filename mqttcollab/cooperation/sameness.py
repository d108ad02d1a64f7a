"""When two questions are the same: equal in numbers, names, negations and every other word that carries meaning.

Closeness of embeddings alone can't tell "in Paris" from "in Rome". A wrong "same" is a wrong answer, a wrong
"different" costs one message; so what is in doubt is different.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttcollab.runtimes.base import Embedder


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POLITE = re.compile(
    r"^\W*((please|(can|could|would|will) you( please)?( kindly)?|(tell|show|give) me( please)?|do you know"
    r"|i (want|need|would like|'d like) to know|explain( to me)?|hi|hello|hey)\b[\s,]*)+"
)
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+|[^\w\s]|_")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POSSESSIVE = re.compile(r"\b(\w+)'s (\w+)")
_SAME_SIGN = str.maketrans({"’": "'", "‘": "'", "–": "-", "−": "-", "×": "*", "÷": "/", "“": '"', "”": '"'})
_PUNCTUATION = frozenset(".,;:!?\"'…«»¿¡`_")
_BRACKETS = frozenset("()[]{}")

_LIGHT = _words_of(
    "a an the is are am be been being does what which i we it there of about for regarding concerning"
    " just really exactly please thanks then so that"
)
_YES_NO = _words_of("is are am was were do does did can could should shall may might must will would has have had")
_MODALS = _words_of("can could should shall may might must will would")
_QUESTION_WORDS = _words_of("who whom whose when where why how")
_NEGATIONS = _words_of("not no never without none neither nor nobody nothing nowhere cannot hardly barely")
_FUNCTION_WORDS = (
    _words_of(
        "from to before after since until over under above below into out off on in at by with against between than"
        " more less most least all every only first last always both each either up down near if or and but was do"
        " my your our his her its their mine yours ours"
    )
    | _QUESTION_WORDS
    | _NEGATIONS
    | _MODALS
)
_PRONOUNS = _words_of("i you we one they he she it to")
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
)
_ONE_WORD = {"were": "was", "did": "was", "had": "was", "whom": "who", "plus": "+", "minus": "-", "times": "*"} | {
    word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())
}
_TO_ME = _words_of("give tell show")
_DOERS = _words_of("do does did if when")
_ELSEWHERE = _words_of("he she him they them this these those")
_OF_THE_ASKER = re.compile(r"\b(my|mine|our|ours|here|nearby|am i|near me|around me|with me)\b")
_OF_THE_MOMENT = re.compile(
    r"\b(now|today|tonight|tomorrow|yesterday|current|currently|latest|recent|recently|right now|at the moment"
    r"|(this|next|last) (morning|afternoon|evening|night|week|month|year|hour|minute)|what time|ago)\b"
)
_LONGEST = 2000
_SHARED_ENDING = 4


@dataclass(frozen=True, slots=True)
class Question:
    """What a question says, without what carries no meaning.

    Attributes:
        words: its words in their order, numbers and signs among them; equal words make an equal question.
        names: words capitalised within a sentence, in small letters.
        capitals: whether it begins with a capital, so that its author writes names with one.
        standalone: whether it can be understood without what was said before.
        personal: whether the answer depends on who asks, or where: `my`, `here`.
        momentary: whether the answer depends on when it is asked: `today`, `latest`.
    """

    words: tuple[str, ...]
    names: frozenset[str]
    capitals: bool
    standalone: bool
    personal: bool
    momentary: bool

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers, in their order."""
        return tuple(word for word in self.words if word[0].isdigit())

    @property
    def negations(self) -> tuple[str, ...]:
        """The negating words, in their order."""
        return tuple(word for word in self.words if word in _NEGATIONS)


def read(text: str) -> Question:
    """Reads a question, of a very long one the beginning. English is read best; other words must simply be equal."""
    return _read(text[:_LONGEST], whole=len(text) <= _LONGEST)


@lru_cache(maxsize=2048)
def _read(text: str, *, whole: bool) -> Question:
    text = unicodedata.normalize("NFC", text).translate(_SAME_SIGN)
    small = text.casefold()
    plain = _spell_out(small)
    spelled = _spell_out(text if small != text and text != text.upper() else small)
    tokens = _TOKEN.findall(spelled)
    words = _words(tokens, yes_no=bool(tokens) and tokens[0].casefold() in _YES_NO)
    told = {token.casefold() for token in tokens}
    content = [word for word in words if word[0].isalnum() and word not in _FUNCTION_WORDS and word != "yes/no"]
    return Question(
        words,
        _names(tokens),
        text.strip()[:1].isupper(),
        bool(content) and not told & _ELSEWHERE and not re.search(r"#\d", text) and whole,
        bool(_OF_THE_ASKER.search(plain)),
        bool(_OF_THE_MOMENT.search(plain)),
    )


def difference(one: Question, other: Question) -> str | None:
    """Why two questions differ whatever their words mean, for a person; None if nothing but words may differ."""
    if one.numbers != other.numbers:
        return f"the numbers differ: {_list(one.numbers)} and {_list(other.numbers)}"
    if one.negations != other.negations:
        return f"the negations differ: {_list(one.negations)} and {_list(other.negations)}"
    careless = not (one.names and other.names) and not (one.capitals and other.capitals)
    if one.names != other.names and not careless:
        return f"the names differ: {_list(sorted(one.names))} and {_list(sorted(other.names))}"
    if len(one.words) != len(other.words):
        return f"the words differ: {_list(one.words)} and {_list(other.words)}"
    return None


def sameness(first: str, second: str, embedder: Embedder | None = None) -> float:
    """How far two questions are the same: 1 with equal words, 0 where numbers, negations, names or order differ.

    Between the two, words may differ where words of the same meaning can stand (purchase, buy): then it is the least
    cosine between two such words, and 0 without an embedder.
    """
    if max(len(first), len(second)) > _LONGEST:
        return float(first == second)
    one, other = read(first), read(second)
    if difference(one, other) is not None:
        return 0.0
    pairs = [(a, b) for a, b in zip(one.words, other.words, strict=True) if a != b]
    if not pairs:
        return 1.0
    if embedder is None or not all(_replaceable(a, b, one.names | other.names) for a, b in pairs):
        return 0.0
    rows = embedder.embed([word for pair in pairs for word in pair])
    return max(0.0, min(float(rows[i] @ rows[i + 1]) for i in range(0, len(rows), 2)))


def calibrate(pairs: Iterable[tuple[str, str, bool]], embedder: Embedder) -> float:
    """The least threshold for `sameness` that takes no pair for the same that is not; above 1 if none does.

    Args:
        pairs: two questions, and whether they are the same.
    """
    worst = max((sameness(a, b, embedder) for a, b, same in pairs if not same), default=0.0)
    return worst + 0.02  # those pairs are a sample


def _spell_out(text: str) -> str:
    text = _THOUSANDS.sub("", text)
    text = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", text)
    text = re.sub(r"\b[Cc]an't\b", "can not", text)
    text = re.sub(r"\b[Ww]on't\b", "will not", text)
    text = re.sub(r"(\w)n't\b", r"\1 not", text)
    text = re.sub(r"\b(what|who|where|when|how|it|that|there|here|he|she)'s\b", r"\1 is", text, flags=re.I)
    text = re.sub(r"'(re|m)\b", " are", text)
    text = _POSSESSIVE.sub(r"\2 of \1", text)
    polite = _POLITE.match(text.casefold())
    if polite is not None and text[polite.end() :].strip(" ?.!"):
        text = text[polite.end() :]
    return text.replace("divided by", "/").replace("cannot", "can not")


def _words(tokens: list[str], *, yes_no: bool) -> tuple[str, ...]:
    words = ["yes/no"] if yes_no else []
    digits = any(token[0].isdigit() for token in tokens)
    before, done = "", False
    for place, token in enumerate(tokens):
        small = token.casefold()
        word = _ONE_WORD.get(small, small)
        if token.isalpha() and token.isupper() and token.casefold() != "i" and (len(token) > 1 or place > 0):
            word = token  # US is not us, and in vitamin A the A is no article
        if _counts(word, before, place, done, digits):
            words.append(_singular(word))
        done = done or small in ("do", "does", "did")
        before = small
    return tuple(words)


def _counts(word: str, before: str, place: int, done: bool, digits: bool) -> bool:
    """Whether a word carries meaning where it stands."""
    if word in _PUNCTUATION or (word in _BRACKETS and not digits):
        return False
    if word == "do":  # the helping verb, or what is done
        return done or before in _PRONOUNS
    if word == "to":
        return before not in _QUESTION_WORDS | {"what", "which", "have", "need"}
    if word in _MODALS:  # "Can I …?" is another question than "Should I …?"; "What can I …?" is not
        return place == 0 or word in ("will", "must")
    if word == "me":
        return before not in _TO_ME
    if word == "you":  # one who does something; else the one who is asked
        return before not in _MODALS | _DOERS
    return word not in _LIGHT


def _singular(word: str) -> str:
    if len(word) > 3 and word.isascii() and word.islower() and word.endswith("s"):
        if word.endswith("ies") and len(word) > 4:
            return word[:-3] + "y"
        if not word.endswith("ss"):
            return word[:-1]
    return word


def _names(tokens: list[str]) -> frozenset[str]:
    return frozenset(
        token.casefold()
        for before, token in pairwise(tokens)
        if token[0].isupper() and token != "I" and before not in (".", "?", "!")
    )


def _replaceable(one: str, other: str, names: frozenset[str]) -> bool:
    """Whether two words are of the kind of which one can mean the other; safe and unsafe, legal and illegal never."""
    for word in (one, other):
        if not (word.isalpha() and word.islower()) or len(word) < 3 or word in _FUNCTION_WORDS or word in names:
            return False
    ends_alike = one[-_SHARED_ENDING:] == other[-_SHARED_ENDING:]
    return not ends_alike and one.endswith("less") == other.endswith("less")


def _list(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
