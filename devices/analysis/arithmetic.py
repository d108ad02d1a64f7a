"""Find the arithmetic in an English question and compute it exactly.

Words are rewritten to symbols ("15% of 80", "divide 144 by 12", "square root of 144"), the one expression
in the text is cut out by a tokenizer that knows numbers, operators, parentheses and three functions only;
`exact.py` computes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from devices.analysis.exact import Computed, NoArithmetic, compute
from devices.analysis.numerals import replace_numerals

MOST_CHARACTERS = 500

_N = r"(?:(?:(?<![\d)])-)?\d+(?:\.\d+)?|(?:sqrt|cbrt|factorial)\([^()]*\)|\((?:[^()]|\([^()]*\))*\))"
_LIST = rf"({_N}(?:(?: *, *(?:and )?| and ){_N})+)"


def _joined(operator: str) -> Callable[[re.Match[str]], str]:
    def join(match: re.Match[str]) -> str:
        parts = re.split(r" *, *(?:and )?| and ", match.group(1))
        return "(" + f" {operator} ".join(parts) + ")"

    return join


def _average(match: re.Match[str]) -> str:
    parts = re.split(r" *, *(?:and )?| and ", match.group(1))
    return f"(({' + '.join(parts)}) / {len(parts)})"


# In order: a later rule sees what an earlier one made.
_REWRITES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"[×·∗]", "*"),
    (r"[÷∕]", "/"),
    (r"[−–—]", "-"),
    (r"²", "^2"),
    (r"³", "^3"),
    (r"√", " sqrt "),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"\*\*", "^"),
    (r"[$€£] ?(?=\d)|\ba (?=\d)", ""),
    (r"(?<![\w.])\.(?=\d)", "0."),
    (r"\bpercent\b|\bper cent\b", "%"),
    (r"\b(?:negative|minus) (?=\d)(?<!\d minus )(?<!\d negative )", "-"),
    (r"\b(?:the )?square root(?: of)?\b|\bsqrt(?: of)?\b", " sqrt "),
    (r"\b(?:the )?cube root(?: of)?\b|\bcbrt(?: of)?\b", " cbrt "),
    (r"\b(sqrt|cbrt)\s+(?=\()", r"\1"),
    (rf"\b(sqrt|cbrt)\s+({_N})", r"\1(\2)"),
    (r"(?<![\w.])(\d+(?:\.\d+)?)\(", r"\1 * ("),
    (r"\)\(", ") * ("),
    (rf"\b(?:the )?factorial of ({_N})|(?<![\w.])(\d+)(?:!(?!=)| factorial\b)", r"factorial(\1\2)"),
    (rf"({_N}) squared\b", r"\1^2"),
    (rf"({_N}) cubed\b", r"\1^3"),
    (rf"\b(?:the )?square of ({_N})", r"\1^2"),
    (rf"\b(?:the )?cube of ({_N})", r"\1^3"),
    (rf"({_N}) (?:raised )?to the (\d+)(?:st|nd|rd|th)(?: power)?\b", r"\1^\2"),
    (rf"({_N}) (?:raised )?to the (?:power (?:of )?)?({_N})", r"\1^\2"),
    (rf"({_N}) ?% of ({_N})", r"(\1/100 * \2)"),
    (rf"({_N}) ?% tip on ({_N})", r"(\1/100 * \2)"),
    (rf"(?<![\w./])(\d+/\d+) of ({_N})", r"(\1 * \2)"),
    (rf"\b(?:3 quarters|three quarters) of ({_N})", r"(3 / 4 * \1)"),
    (rf"({_N}) ?% off (?:of )?({_N})", r"(\2 - \1/100 * \2)"),
    (rf"\bincrease ({_N}) by ({_N}) ?%", r"(\1 + \2/100 * \1)"),
    (rf"\b(?:decrease|reduce) ({_N}) by ({_N}) ?%", r"(\1 - \2/100 * \1)"),
    (rf"\b(?:(?:one |1 |a )?half (?:of )?|halve )({_N})", r"(\1 / 2)"),
    (rf"\b(?:one |1 |a )third of ({_N})", r"(\1 / 3)"),
    (rf"\b(?:one |1 |a )quarter of ({_N})", r"(\1 / 4)"),
    (rf"\b(?:double|twice) ({_N})", r"(2 * \1)"),
    (rf"\btriple ({_N})", r"(3 * \1)"),
    (
        rf"\b(?:the )?remainder (?:of|when|after|if)(?: dividing)? ({_N}) (?:is )?(?:divided )?by ({_N})",
        r"(\1 mod \2)",
    ),
    (rf"\bdivide ({_N}) by ({_N})", r"(\1 / \2)"),
    (rf"\bmultiply ({_N}) (?:by|with|and|times) ({_N})", r"(\1 * \2)"),
    (rf"\bsubtract ({_N}) from ({_N})", r"(\2 - \1)"),
    (rf"\badd ({_N}) to ({_N})", r"(\2 + \1)"),
    (rf"\b(?:add|add up|sum|sum up) {_LIST}", _joined("+")),
    (rf"\b(?:the )?(?:sum|total) of {_LIST}", _joined("+")),
    (rf"\b(?:the )?product of {_LIST}", _joined("*")),
    (rf"\b(?:the )?difference (?:between|of) {_LIST}", _joined("-")),
    (rf"\b(?:the )?quotient of {_LIST}", _joined("/")),
    (rf"\b(?:the )?(?:average|mean) of {_LIST}", _average),
    (r"\bplus\b", "+"),
    (r"\bminus\b", "-"),
    (r"\b(?:times|multiplied (?:by|with))\b", "*"),
    (r"\bdivided by\b", "/"),
    (r"(?<=[\d)]) ?x ?(?=[\d(])", " * "),
    (r"\bmodulo\b", "mod"),
)
_COMPILED = tuple((re.compile(pattern), new) for pattern, new in _REWRITES)

_TOKEN = re.compile(
    r"(?P<number>(?<![\w.])(?:0|[1-9]\d*)(?:\.\d+)?(?![\w.]*\w))|(?P<function>(?:sqrt|cbrt|factorial)(?=\())"
    r"|(?P<operator>mod\b|[-+*/^])|(?P<open>\()|(?P<close>\))|(?P<word>[^\W\d][\w']*|\d\w*)|(?P<other>\S)"
)
# Words that may stand around an expression without making it part of something else.
_FILLER_WORDS = """
what what's whats is are the of result value answer to for calculate compute evaluate determine work out
solve find tell provide show me us please can could you would how much many equal equals give do does a an i need want
know quickly exactly now hey hi hello ok okay together s this that sum math maths problem question
expression be if we get quick help with my so and then dollars euros pounds cents
"""
_FILLER = frozenset(_FILLER_WORDS.split())
_CUE = re.compile(r"(?:what is|what's|whats|how much is|calculate|compute|evaluate|work out|solve) *:? *(?:the )?$")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def solve(text: str) -> Computed:
    """Compute the one expression in `text`.

    Raises:
        NoArithmetic: see `find_expression` and `exact.compute`.
    """
    return compute(find_expression(text))


def find_expression(text: str) -> str:
    """Return the one arithmetic expression in `text`, in symbols.

    Raises:
        NoArithmetic: none, more than one, or one that seems to be part of something else (a date, a range).
    """
    if len(text) > MOST_CHARACTERS:
        raise NoArithmetic(f"the text is longer than {MOST_CHARACTERS} characters")
    plain = _rewrite(text)
    tokens = [
        _Token(match.lastgroup or "", match.group(), match.start(), match.end()) for match in _TOKEN.finditer(plain)
    ]
    runs = _runs(tokens)
    if not runs:
        raise NoArithmetic("there is no arithmetic expression in the text")
    if len(runs) > 1:
        raise NoArithmetic("there is more than one expression in the text; ask for one at a time")
    run = runs[0]
    rest = [token for token in tokens if token not in run]
    if any(token.kind == "number" or token.text == "%" for token in rest):
        raise NoArithmetic("it is not clear which of the numbers belong to the expression")
    strange = [token for token in rest if token.kind == "word" and token.text not in _FILLER]
    if strange and not _is_meant(plain, run):
        raise NoArithmetic("the numbers in the text do not seem to be a calculation")
    return _pretty(run)


def _rewrite(text: str) -> str:
    plain = replace_numerals(re.sub(r"\s+", " ", text.lower()).strip())
    for pattern, new in _COMPILED:
        # Twice, since "half of 10% of 80" needs the inner one first.
        for _ in range(2):
            plain = pattern.sub(new, plain)
    return plain


def _runs(tokens: list[_Token]) -> list[list[_Token]]:
    """Return the stretches of tokens that look like an expression with something to compute."""
    runs: list[list[_Token]] = [[]]
    previous = ""
    for token in tokens:
        if token.kind in ("word", "other"):
            runs.append([])
            previous = ""
            continue
        operand_follows_operand = token.kind in ("number", "function") and previous in ("number", "close")
        if operand_follows_operand:
            runs.append([])
        runs[-1].append(token)
        previous = token.kind
    return [trimmed for run in runs if (trimmed := _trim(run))]


def _trim(run: list[_Token]) -> list[_Token]:
    """Cut operators off the end and what can't begin an expression; empty where nothing is left to compute."""
    while run and run[-1].kind in ("operator", "open", "function"):
        run = run[:-1]
    while run and (run[0].kind == "close" or (run[0].kind == "operator" and run[0].text not in "-+")):
        run = run[1:]
    computes = any(token.kind == "function" for token in run) or any(
        token.kind == "operator" and run[index].kind in ("number", "close") for index, token in enumerate(run[1:])
    )
    return run if computes else []


def _is_meant(plain: str, run: list[_Token]) -> bool:
    """Tell whether the expression is asked for although other words stand around it."""
    weak = all(
        token.text in "-/" and plain[token.start - 1] != " " for token in run if token.kind == "operator"
    ) and not any(token.kind == "function" for token in run)
    return not weak and _CUE.search(plain[: run[0].start]) is not None


def _pretty(run: list[_Token]) -> str:
    parts: list[str] = []
    previous = ""
    for token in run:
        binary = token.kind == "operator" and previous in ("number", "close")
        parts.append(f" {token.text} " if binary and token.text != "^" else token.text)
        previous = token.kind
    text = "".join(parts)
    inner = text[1:-1]
    # (3 + 4) alone needs no parentheses, (3 + 4) * (1 + 2) does.
    return inner if text.startswith("(") and text.endswith(")") and _balanced(inner) else text


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0
