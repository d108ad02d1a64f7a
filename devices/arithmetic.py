"""An arithmetic expert that computes (see `analysis/arithmetic.py`) and never guesses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devices import embedder_of, main, read_settings
from devices.analysis.arithmetic import solve
from devices.analysis.exact import NoArithmetic
from mqttcollab import Agent, Answer, Request, RequestError, Source

SERVICE = "computation.gpt/arithmetic"
DESCRIPTION = "Arithmetic: computes sums, differences, products, quotients, percentages, powers and roots exactly"
EXAMPLES = (
    "What is 3 + 4?",
    "Calculate 12 times 9",
    "How much is 250 minus 75?",
    "Compute 15% of 80",
    "sqrt(144) + cube root of 27",
    "Divide 100 by 8",
    "Multiply 6 by 7",
    "Subtract 8 from 30",
    "Add 19 and 23",
    "root of 81",
    "What's 11 times 13?",
    "2 to the power of 10",
    "What is half of 90?",
    "(5 + 8) * 4",
    "8 * 9",
    "What is 56 / 7?",
    "17 - 4 + 6",
    "How many are 7 dozen?",
    "What percentage of 60 is 15?",
    "Square of 14",
    "What is the sum of 4, 8 and 15?",
    "The product of 21 and 3",
    "Difference between 90 and 37",
    "What is a third of 120?",
    "Split 84 into 4 equal parts, how much is each?",
    "Increase 200 by 12%",
    "I pay 3.50 for each of 6 tickets, how much is that altogether?",
    "Average of 10, 20 and 60",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the arithmetic expert."""

    name: str = "abacus-1"
    place: str = "anywhere"
    embedder: str | None = None


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError."""
    options = read_settings(Settings, settings)
    agent = Agent(
        options.name,
        description="An arithmetic expert",
        place=options.place,
        embedder=embedder_of(options.embedder),
        hardware={"kind": "software"},
    )

    @agent.service(SERVICE, description=DESCRIPTION, examples=EXAMPLES)
    async def arithmetic(request: Request) -> Answer:
        try:
            result = solve(request.text)
        except NoArithmetic as error:
            raise RequestError("no_capability", str(error)) from error
        return Answer(
            text=f"{result.expression} {result.text}",
            data={"value": result.value, "expression": result.expression, "exact": result.exact},
            confidence=1.0,
            sources=[Source(document="computed with simpleeval on fractions")],
        )

    return agent


if __name__ == "__main__":
    main(build)
