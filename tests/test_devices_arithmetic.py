"""The arithmetic expert's pure part: what it finds in a question, and what it computes."""

from __future__ import annotations

import pytest

from devices.analysis.arithmetic import solve
from devices.analysis.exact import NoArithmetic
from devices.analysis.numerals import replace_numerals


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is 17 + 25?", "17 + 25 = 42"),
        ("17 plus 25", "17 + 25 = 42"),
        ("seventeen plus twenty-five", "17 + 25 = 42"),
        ("half of 90?", "90 / 2 = 45"),
        ("Halve 90.", "90 / 2 = 45"),
        ("15% of 80", "15 / 100 * 80 = 12"),
        ("What is 15 percent of 80 dollars?", "15 / 100 * 80 = 12"),
        ("20% off 250", "250 - 20 / 100 * 250 = 200"),
        ("increase 200 by 10%", "200 + 10 / 100 * 200 = 220"),
        ("What is the square root of 144?", "sqrt(144) = 12"),
        ("√2.25", "sqrt(2.25) = 1.5"),
        ("cube root of 27", "cbrt(27) = 3"),
        ("(3+4)*12", "(3 + 4) * 12 = 84"),
        ("2(3+4)", "2 * (3 + 4) = 14"),
        ("2 to the power of 10", "2^10 = 1024"),
        ("12 squared", "12^2 = 144"),
        ("2^3^2", "2^3^2 = 512"),
        ("divide 144 by 12", "144 / 12 = 12"),
        ("subtract 5 from 20", "20 - 5 = 15"),
        ("the sum of 3, 4 and 5", "3 + 4 + 5 = 12"),
        ("the average of 3, 4 and 8", "(3 + 4 + 8) / 3 = 5"),
        ("difference between 10 and 4", "10 - 4 = 6"),
        ("the remainder of 17 divided by 5", "17 mod 5 = 2"),
        ("minus 5 plus 3", "-5 + 3 = -2"),
        ("10 - 4 - 3", "10 - 4 - 3 = 3"),
        ("10-4% of 100", "10 - (4 / 100 * 100) = 6"),
        ("3 × 4 ÷ 6", "3 * 4 / 6 = 2"),
        ("1,000 * 3", "1000 * 3 = 3000"),
        ("two hundred and five minus five", "205 - 5 = 200"),
        ("2.5 million / 5", "2500000 / 5 = 500000"),
        ("20% of a thousand", "20 / 100 * 1000 = 200"),
        ("60 percent off of $350", "350 - 60 / 100 * 350 = 140"),
        ("3/4 of 18", "3 / 4 * 18 = 13.5"),
        ("18 percent tip on 20 dollars", "18 / 100 * 20 = 3.6"),
        ("5!", "factorial(5) = 120"),
        ("0.1+0.2", "0.1 + 0.2 = 0.3"),
        ("100 / 8", "100 / 8 = 12.5"),
        ("1/3 + 1/6", "1 / 3 + 1 / 6 = 0.5"),
        ("1/3", "1 / 3 ≈ 0.333333333333 (exactly 1/3)"),
        ("sqrt(2)", "sqrt(2) ≈ 1.41421356237"),
        ("2^100", "2^100 = 1267650600228229401496703205376"),
        ("2^-2", "2^-2 = 0.25"),
        ("What is 6 times 7 in Roman numerals?", "6 * 7 = 42"),
    ],
)
def test_computes(question: str, expected: str) -> None:
    result = solve(question)
    assert f"{result.expression} {result.text}" == expected


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("__import__('os')", "no arithmetic expression"),
        ("__import__('os').system('ls') + 1", "no arithmetic expression"),
        ("().__class__.__bases__[0] + 1", "no arithmetic expression"),
        ("9**9**9", "too large"),
        ("9^" * 100 + "9", "too large"),
        ("1000000!", "too large"),
        ("2^99999999999999999999", "too large"),
        ("10 / 0", "division by zero"),
        ("12 / (3 - 3)", "division by zero"),
        ("0^-1", "division by zero"),
        ("(-8)^(1/3)", "no real value"),
        ("sqrt(-4)", "no real value"),
        ("1+" * 10_000 + "1", "longer than"),
        ("(" * 480 + "1+1", "not a complete expression"),
        ("1 +* 2", "not a complete expression"),
        ("2 +", "no arithmetic expression"),
        ("What is 2 + 2 and 3 + 3?", "more than one expression"),
        ("200 + 10%", "not clear"),
        ("my heart rate is 120, what should I do", "no arithmetic expression"),
        ("I have 3-4 headaches a week, what should I do?", "do not seem to be a calculation"),
        ("My blood pressure is 120/80, what does it mean?", "do not seem to be a calculation"),
        ("I took 2 + 3 pills and feel sick", "do not seem to be a calculation"),
        ("Was 9/11 a Tuesday", "do not seem to be a calculation"),
        ("What happened on 2024-05-01?", "no arithmetic expression"),
        ("Take it 3 times a day", "no arithmetic expression"),
        ("What is COVID-19?", "no arithmetic expression"),
        ("hello", "no arithmetic expression"),
        ("", "no arithmetic expression"),
    ],
)
def test_refuses(question: str, reason: str) -> None:
    with pytest.raises(NoArithmetic, match=reason):
        solve(question)


def test_values_are_numbers_that_fit_or_none() -> None:
    assert solve("17 + 25").value == 42
    assert isinstance(solve("17 + 25").value, int)
    assert solve("1/4").value == 0.25
    assert solve("2^100").value == float(2**100)
    assert solve("200!").value is None
    assert solve("1/3").exact is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("twenty five", "25"),
        ("one million two hundred thousand", "1200000"),
        ("two hundred and five", "205"),
        ("five and six", "5 and 6"),
        ("seven eight", "7 8"),
        ("a stone", "a stone"),
    ],
)
def test_number_words(text: str, expected: str) -> None:
    assert replace_numerals(text) == expected
