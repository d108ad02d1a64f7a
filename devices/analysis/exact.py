"""Compute an arithmetic expression with simpleeval on fractions, so that 0.1 + 0.2 is 0.3 and 1/3 * 3 is 1.

Nothing is passed to `eval`: simpleeval parses and walks the expression with the operators and functions
given here. Every power and factorial is bounded before it is computed.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from fractions import Fraction

import simpleeval

MOST_BITS = 4096
MOST_FACTORIAL = 200
MOST_DECIMALS = 15
_EXACT_IN_FLOAT = 2**53

Number = Fraction | float  # a float only where the true value is irrational


class NoArithmetic(ValueError):
    """There is no expression, more than one, or one without a value; the message says which."""


@dataclass(frozen=True, slots=True)
class Computed:
    """A result.

    Attributes:
        expression: what was computed, for people.
        text: `= 42`, or `≈ 0.333333333333` where it had to be rounded.
        value: the same as a number; None where it is above what a float holds.
        exact: True where `text` is exact.
    """

    expression: str
    text: str
    value: int | float | None
    exact: bool


def compute(expression: str) -> Computed:
    """Compute an expression of numbers, + - * / ^ mod, parentheses, sqrt(), cbrt() and factorial().

    Raises:
        NoArithmetic: it has no value, is incomplete or too large.
    """
    try:
        value = _evaluate(expression)
    except ZeroDivisionError:
        raise NoArithmetic(f"{expression} has no value: division by zero") from None
    except OverflowError:
        raise NoArithmetic(f"{expression} is too large to compute") from None
    except (simpleeval.InvalidExpression, SyntaxError, RecursionError, MemoryError):
        raise NoArithmetic(f"{expression} is not a complete expression") from None
    return _describe(expression, value)


def _evaluate(expression: str) -> Number:
    python = expression.replace("^", "**").replace("mod", "%")
    python = re.sub(r"\d+\.\d+", lambda match: _as_ratio(match.group()), python)
    evaluator = simpleeval.SimpleEval(
        operators={
            ast.Add: lambda a, b: _bounded(a + b),
            ast.Sub: lambda a, b: _bounded(a - b),
            ast.Mult: lambda a, b: _bounded(a * b),
            ast.Div: _divide,
            ast.Mod: lambda a, b: a % b,
            ast.Pow: _power,
            ast.UAdd: lambda a: a,
            ast.USub: lambda a: -a,
        },
        functions={
            "sqrt": lambda a: _root(a, 2, "square root"),
            "cbrt": lambda a: _root(a, 3, "cube root"),
            "factorial": _factorial,
        },
    )
    value = evaluator.eval(python)
    return value if isinstance(value, float) else _bounded(Fraction(value))


def _as_ratio(decimal: str) -> str:
    ratio = Fraction(decimal)
    return f"({ratio.numerator}/{ratio.denominator})"


def _bounded(value: Number) -> Number:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise OverflowError
        return value
    value = Fraction(value)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise OverflowError
    return value


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return _bounded(Fraction(a) / Fraction(b))


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, float) or isinstance(exponent, float) or Fraction(exponent).denominator != 1:
        if base < 0:
            raise NoArithmetic("a negative number to a fractional power has no real value")
        return _bounded(float(base) ** float(exponent))
    base, times = Fraction(base), int(exponent)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(times) > MOST_BITS:
        raise OverflowError
    return base**times


def _root(value: Number, degree: int, name: str) -> Number:
    if value < 0 and degree % 2 == 0:
        raise NoArithmetic(f"the {name} of a negative number has no real value")
    if not isinstance(value, float):
        ratio = Fraction(value)
        sign = -1 if ratio < 0 else 1
        top, bottom = _whole_root(abs(ratio.numerator), degree), _whole_root(ratio.denominator, degree)
        if top is not None and bottom is not None:
            return sign * Fraction(top, bottom)
    return math.sqrt(value) if degree == 2 else math.cbrt(value)


def _whole_root(value: int, degree: int) -> int | None:
    """Return the integer whose power is `value`, if there is one."""
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < value:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == value else None


def _factorial(value: Number) -> Number:
    if isinstance(value, float) or Fraction(value).denominator != 1 or value < 0:
        raise NoArithmetic("a factorial is of a whole number, 0 or more")
    if value > MOST_FACTORIAL:
        raise OverflowError
    return Fraction(math.factorial(int(value)))


def _describe(expression: str, value: Number) -> Computed:
    if isinstance(value, float):
        return Computed(expression, f"≈ {value:.12g}", value, exact=False)
    if value.denominator == 1:
        return Computed(expression, f"= {value.numerator}", _plain(value), exact=True)
    decimal = _terminating(value)
    if decimal is not None:
        return Computed(expression, f"= {decimal}", _plain(value), exact=True)
    approximate = float(value)
    fraction = f" (exactly {value})" if value.denominator < 10**6 else ""
    return Computed(expression, f"≈ {approximate:.12g}{fraction}", approximate, exact=False)


def _plain(value: Fraction) -> int | float | None:
    if value.denominator == 1 and abs(value.numerator) <= _EXACT_IN_FLOAT:
        return value.numerator
    try:
        return float(value)
    except OverflowError:
        return None


def _terminating(value: Fraction) -> str | None:
    """Return the value as a decimal, if it ends within `MOST_DECIMALS` places."""
    scaled = value * 10**MOST_DECIMALS
    if scaled.denominator != 1:
        return None
    digits = str(abs(scaled.numerator)).rjust(MOST_DECIMALS + 1, "0")
    sign = "-" if value < 0 else ""
    return (sign + digits[:-MOST_DECIMALS] + "." + digits[-MOST_DECIMALS:]).rstrip("0")
