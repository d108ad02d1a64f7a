"""What a call costs, in whole nano-dollars: no sum depends on how a float rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mqttcollab.config import read_toml
from mqttcollab.errors import ConfigError

NANO = 10**9
_SHIPPED = Path(__file__).with_name("prices.toml")
# A token is a byte of UTF-8 at least; beside its text a message has a few tokens for its role and its borders.
_TOKENS_PER_MESSAGE = 16
# A provider's hidden prompt or reasoning may exceed the bound; what is this many times over it is nonsense.
_ABSURD = 4


class PriceEntry(BaseModel):
    """An entry of the table `prices`; raises ValueError where it is neither a price nor `free`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt_usd_per_mtok: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)
    completion_usd_per_mtok: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)
    free: bool = False
    held_on: date | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> PriceEntry:
        given = (self.prompt_usd_per_mtok, self.completion_usd_per_mtok)
        if self.free:
            if any(price is not None for price in given):
                raise ValueError("it is free and has a price: remove one of them")
        elif None in given:
            raise ValueError("it needs prompt_usd_per_mtok and completion_usd_per_mtok, or free = true")
        elif not any(given):
            raise ValueError("both prices are 0: say free = true if the model costs nothing")
        return self


@dataclass(frozen=True, slots=True)
class Bill:
    """What a call is charged with, in nano-dollars and tokens; `estimated` where the endpoint did not say."""

    nano: int
    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens read and written.

    Attributes:
        held_on: the day at which a price that comes along held; None for one's own.
    """

    prompt_usd_per_mtok: float
    completion_usd_per_mtok: float
    held_on: date | None = None

    def nano(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The cost of so many tokens, rounded up."""
        per_token = [Decimal(repr(usd)) * 1000 for usd in (self.prompt_usd_per_mtok, self.completion_usd_per_mtok)]
        cost = per_token[0] * prompt_tokens + per_token[1] * completion_tokens
        return int(cost.to_integral_value(ROUND_CEILING))

    def worst(self, texts: list[str], max_tokens: int) -> Bill:
        """The most that a prompt of these messages and an answer of at most `max_tokens` tokens can cost."""
        prompt = sum(len(text.encode("utf-8", "surrogatepass")) + _TOKENS_PER_MESSAGE for text in texts)
        return Bill(self.nano(prompt, max_tokens), prompt, max_tokens, estimated=True)

    def bill(self, prompt_tokens: int, completion_tokens: int, worst: Bill) -> Bill:
        """What the endpoint's own count for an answer costs; the worst case where that is missing or nonsense."""
        counts = ((prompt_tokens, worst.prompt_tokens), (completion_tokens, worst.completion_tokens))
        if not all(1 <= count <= _ABSURD * bound for count, bound in counts):
            return worst
        return Bill(self.nano(prompt_tokens, completion_tokens), prompt_tokens, completion_tokens)


def price_of(model: str, prices: Mapping[str, PriceEntry], where: str) -> Price:
    """The price of a model, from one's own table or the one that comes along; raises ConfigError where it has none."""
    entry = prices.get(model) or _shipped().get(model)
    if entry is None:
        raise ConfigError(
            f'{where}: prices has none for {model!r}; add [prices."{model}"] with prompt_usd_per_mtok and'
            f" completion_usd_per_mtok, or with free = true"
        )
    return Price(entry.prompt_usd_per_mtok or 0.0, entry.completion_usd_per_mtok or 0.0, entry.held_on)


def _shipped() -> dict[str, PriceEntry]:
    return {model: PriceEntry.model_validate(entry) for model, entry in read_toml(_SHIPPED)["prices"].items()}


def to_nano(usd: float) -> int:
    """Whole nano-dollars, rounded down: for limits and budgets."""
    return int((Decimal(repr(usd)) * NANO).to_integral_value(ROUND_FLOOR))


def to_usd(nano: int) -> float:
    """US dollars, for a message; the float that is nearest."""
    return float(Decimal(nano) / NANO)


def show(nano: int) -> str:
    """US dollars in plain text, exactly: `0.0042`."""
    whole, rest = divmod(nano, NANO)
    return f"{whole}.{rest:09d}".rstrip("0").removesuffix(".")


def seconds_in_ms(seconds: float) -> int:
    """Milliseconds, rounded up."""
    return math.ceil(seconds * 1000)
