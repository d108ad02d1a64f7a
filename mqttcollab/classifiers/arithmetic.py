"""Checks the calculations written in an answer, with exact arithmetic."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST_EXPRESSION = 200
# A device may have to read 100 kB of an answer; what counts is in the first part of it.
LONGEST_TEXT = 8000
_NUMBER = re.compile(r"(?<![\w.,])\d[\d,]{0,24}(?:\.\d{1,24})?|(?<![\d.])\.\d{1,24}")
_ANNOTATION = re.compile(r"<<([^<>=]{1,200})=([^<>]{0,80})>>")
_EQUATION = re.compile(
    r"(?<![\w^.)])((?:[\d$(][\d,.$%() ]{0,30})(?:[-+*/x×÷][\d,.$%() ]{1,30}){1,12})=\s{0,3}\$?(-?[\d,]*\.?\d+)"
)
_SPOKEN = {"x": "*", "X": "*", "×": "*", "÷": "/", "−": "-", ",": "", "$": "", "\\": ""}


@dataclass(frozen=True, slots=True)
class Calculation:
    """An expression and the result that was written behind it; `right` is None where it can't be read."""

    expression: str
    result: str
    right: bool | None


def evaluate(expression: str) -> Fraction | None:
    """Return the exact value of + - * / over decimal numbers, parentheses and percents; None if it is not that."""
    text = "".join(_SPOKEN.get(c, c) for c in expression).strip()
    if len(text) > _LONGEST_EXPRESSION or not re.fullmatch(r"[\d.+\-*/()% ]+", text) or "**" in text or "//" in text:
        return None
    if re.search(r"[\d.]\s+[\d.]", text):  # two numbers without an operator
        return None
    text = re.sub(r"(\d+(?:\.\d+)?|\.\d+)\s*%", r"(\1/100)", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)  # Python refuses 007
    text = re.sub(r"(\d+\.?\d*|\.\d+)", r"'\1'", text)  # strings, so that 0.1 stays exact
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and (apply := _OPERATORS.get(type(node.op))) is not None:
        return apply(_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
        return _value(node.operand)
    raise ValueError(f"{type(node).__name__} is not arithmetic")


def _agrees(expression: str, result: str) -> bool | None:
    """Whether they are equal up to the rounding that the written result shows; a whole number must be exact."""
    exact, written = evaluate(expression), evaluate(result)
    if exact is None or written is None:
        return None
    decimals = len(result.strip().partition(".")[2]) if "." in result else 0
    margin = Fraction(51, 100 * 10**decimals) if decimals else Fraction(1, 100)
    return abs(exact - written) <= margin


def noted_calculations(text: str) -> list[Calculation]:
    """Return the calculator annotations, `<<17+25=42>>`, in order."""
    found = _ANNOTATION.findall(text[:LONGEST_TEXT])
    return [Calculation(left, right, _agrees(left, right.rpartition("=")[2])) for left, right in found]


def spelled_calculations(text: str) -> list[Calculation]:
    """Return the calculations spelled out in the prose, `17 + 25 = 42`, in order."""
    prose = re.sub(r"<<[^<>]{0,300}>>", "", text[:LONGEST_TEXT])
    return [Calculation(left, right, _agrees(left, right)) for left, right in _EQUATION.findall(prose)]


def numbers(text: str) -> list[float]:
    """Return the numbers written in digits, in order."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text[:LONGEST_TEXT])]
