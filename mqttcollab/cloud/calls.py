"""Calls to the endpoint: each is reserved before and settled after, retried in time, and watched by the breaker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from mqttcollab.cloud.breaker import Breaker
from mqttcollab.cloud.ledger import Ledger, Limits, Outcome
from mqttcollab.cloud.prices import Bill, Price, seconds_in_ms, show
from mqttcollab.cloud.settings import BreakerSettings, RetrySettings
from mqttcollab.errors import DeadlineExceeded, ErrorCode, RequestError, RuntimeFailure
from mqttcollab.runtimes import ChatMessage, Generation, GenerationParameters, Runtime
from mqttcollab.runtimes.openai import Nonsense, Unreachable

_NOTHING = Bill(0, 0, 0)
# What a failure says about the endpoint: it is down, it is up, or neither.
_Says = Literal["down", "up", "neither"]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be sent, and on whose account.

    Attributes:
        budget: nano-dollars that it may take in all, retries included; None for as much as the limits allow.
        deadline: the event loop's time at which it ends.
        redactions: how many places of it were redacted.
    """

    messages: Sequence[ChatMessage]
    parameters: GenerationParameters
    tenant: str
    budget: int | None
    deadline: float
    redactions: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and what all calls for it were charged with."""

    generation: Generation
    bill: Bill


class _Failed(Exception):
    """A call that brought no answer: the error, whether to try again, what it says of the endpoint, its charge."""

    def __init__(self, error: RequestError, says: _Says, *, again: bool = False, bill: Bill = _NOTHING) -> None:
        super().__init__(error.message)
        self.error, self.says, self.again, self.bill = error, says, again, bill


class Caller:
    """Calls one endpoint.

    Args:
        model: the model's key in the ledger.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: str,
        price: Price,
        ledger: Ledger,
        limits: Limits,
        breaker: Breaker,
        retry: RetrySettings,
        patience: BreakerSettings,
    ) -> None:
        self._runtime, self._model, self._price = runtime, model, price
        self._ledger, self._limits, self._breaker = ledger, limits, breaker
        self._retry, self._patience_s = retry, patience.patience_s

    async def call(self, job: Job) -> Answered:
        """Calls until there is an answer, the tries are used up, or what the endpoint wants is past the deadline.

        Raises:
            RequestError: `quota_exceeded` (a limit or the budget), `busy` (the breaker, or 429), `internal` and what
                the endpoint's refusals are called; DeadlineExceeded in time.
        """
        charged: list[Bill] = []
        tries = 0
        while True:
            tries += 1
            try:
                answer = await self._try(job, charged)
            except _Failed as failure:
                wait_s = self._pause_s(tries, failure.error.retry_after_ms)
                late = wait_s >= job.deadline - asyncio.get_running_loop().time()
                if not failure.again or late or tries >= self._retry.tries:
                    _give_up(failure, tries, wait_s)
                await asyncio.sleep(wait_s)
            else:
                return Answered(answer, _sum(charged))

    async def _try(self, job: Job, charged: list[Bill]) -> Generation:
        trial = self._breaker.admit()
        says: _Says = "neither"
        try:
            answer = await self._paid(job, charged)
            says = "up"
            return answer
        except _Failed as failure:
            says = "down" if trial and failure.again else failure.says
            raise
        finally:
            told = {"up": self._breaker.succeeded, "down": self._breaker.failed, "neither": self._breaker.forgotten}
            told[says](trial)

    async def _paid(self, job: Job, charged: list[Bill]) -> Generation:
        """One call, reserved and settled; who is cancelled in its midst has paid the worst case."""
        worst = self._price.worst([message.content for message in job.messages], job.parameters.max_tokens)
        _check_budget(job.budget, worst.nano, sum(bill.nano for bill in charged))
        booked = await self._ledger.reserve(job.tenant, self._model, worst.nano, self._limits)
        loop = asyncio.get_running_loop()
        bill, failed, started = worst, True, loop.time()
        try:
            answer = await self._send(job, worst)
            bill, failed = self._price.bill(answer.prompt_tokens, answer.completion_tokens, worst), False
            return answer
        except _Failed as failure:
            bill = failure.bill
            raise
        finally:
            charged.append(bill)
            tokens = 0 if bill.estimated else bill.prompt_tokens + bill.completion_tokens
            redactions = job.redactions if len(charged) == 1 else 0
            outcome = Outcome(bill.nano, tokens, loop.time() - started, failed, redactions)
            await self._ledger.settle(booked, outcome)

    async def _send(self, job: Job, worst: Bill) -> Generation:
        loop = asyncio.get_running_loop()
        started = loop.time()
        says: _Says
        try:
            async with asyncio.timeout_at(job.deadline):
                answer = await self._runtime.generate(job.messages, job.parameters)
        except DeadlineExceeded as error:  # silence: it may still be at work, and charge for it
            raise _Failed(error, "down", bill=worst) from error
        except TimeoutError as error:
            waited_s = loop.time() - started
            text = f"the cloud's endpoint did not answer within the {waited_s:.1f} s that were left of the request"
            says = "down" if waited_s >= self._patience_s else "neither"
            raise _Failed(DeadlineExceeded(text), says, bill=worst) from error
        except RequestError as error:
            raise _refusal(error) from error
        except Unreachable as error:
            bill = worst if error.sent else _NOTHING
            raise _Failed(RequestError("internal", str(error)), "down", again=True, bill=bill) from error
        except Nonsense as error:
            bill = self._counted(error.prompt_tokens, error.completion_tokens, worst)
            raise _Failed(RequestError("internal", str(error)), "down", bill=bill) from error
        except RuntimeFailure as error:
            raise _Failed(RequestError("internal", str(error)), "neither") from error
        if not answer.text.strip():
            reason = " ".join(str(answer.finish_reason).split())[:40]
            text = f"the cloud's endpoint answered with nothing (it says: {reason})"
            bill = self._counted(answer.prompt_tokens, answer.completion_tokens, worst)
            # Where max_tokens or a filter ended it, the endpoint works.
            says = "down" if answer.finish_reason == "stop" else "up"
            raise _Failed(RequestError("internal", text), says, bill=bill)
        return answer

    def _counted(self, prompt_tokens: int, completion_tokens: int, worst: Bill) -> Bill:
        """What a call without an answer costs: nothing, unless the endpoint says that it used tokens."""
        if not prompt_tokens and not completion_tokens:
            return _NOTHING
        return self._price.bill(prompt_tokens, max(1, completion_tokens), worst)

    def _pause_s(self, tries: int, retry_after_ms: int | None) -> float:
        """A pause that doubles, of which half is by chance; at least what the endpoint asks for."""
        longest = min(self._retry.backoff_s * 2.0 ** (tries - 1), self._retry.backoff_max_s)
        return max(longest * random.uniform(0.5, 1), (retry_after_ms or 0) / 1000)


def _refusal(error: RequestError) -> _Failed:
    status = getattr(error.__cause__, "status_code", None)
    if status is None:  # JSON that is none
        return _Failed(error, "down")
    if status == 429:
        return _Failed(error, "neither", again=error.code == "busy")
    return _Failed(error, "down", again=True) if status >= 500 else _Failed(error, "up")


def _give_up(failure: _Failed, tries: int, wait_s: float) -> NoReturn:
    error = failure.error
    if not failure.again:
        raise error
    code: ErrorCode = "busy" if error.retry_after_ms is not None else error.code
    wait_ms = seconds_in_ms(wait_s) if code == "busy" else None
    times = "once" if tries == 1 else f"{tries} times"
    raise RequestError(code, f"{error.message} (tried {times})", retry_after_ms=wait_ms) from error


def _check_budget(budget: int | None, worst: int, charged: int) -> None:
    if budget is None or (budget > 0 and charged + worst <= budget):
        return
    spent = f", {show(charged)} are spent on it" if charged else ""
    text = f"the request's budget_usd is {show(budget)}{spent}, and a call may take {show(worst)}: nothing was sent"
    raise RequestError("quota_exceeded", text)


def _sum(bills: Sequence[Bill]) -> Bill:
    return Bill(
        sum(bill.nano for bill in bills),
        sum(bill.prompt_tokens for bill in bills),
        sum(bill.completion_tokens for bill in bills),
        any(bill.estimated for bill in bills),
    )
