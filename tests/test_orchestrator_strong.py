"""A weak model, and a stronger one behind it: who is asked, and what a question that must stay here is kept from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from test_orchestrator_decisions import EXAMPLES, FAR, FIRST_AID, GENERAL, Expert, city, heart, refusing, sums

from mqttcollab import Answer, Request, RequestError
from mqttcollab.broker import Broker
from mqttcollab.classifiers.router import RouteExample, Router
from mqttcollab.orchestrator import OrchestratorOptions
from mqttcollab.runtimes.base import ChatMessage
from mqttcollab.runtimes.embedders import load_embedder
from mqttcollab.runtimes.function import FunctionRuntime
from mqttcollab.transport.memory import MemoryBroker

STRONG = "knowledge.gpt/strong"
EXAMPLES[STRONG] = EXAMPLES[GENERAL]
OPTIONS = OrchestratorOptions(strong=STRONG, share=False)


@pytest.fixture(scope="module", autouse=True)
def _embedder() -> None:
    load_embedder("wordllama")  # before the event loop runs; it is kept


def weak(confidence: float) -> Expert:
    return Expert("phone-1", GENERAL, lambda _: Answer("Maybe the Lions", confidence=confidence))


def cloud(price_usd: float = 0.0) -> Expert:
    return Expert("cloud-1", STRONG, lambda _: Answer("The Tigers", confidence=0.9), price_usd)


@pytest.mark.parametrize(("confidence", "answer"), [(0.2, "The Tigers"), (0.9, "Maybe the Lions")])
async def test_a_strong_model_is_asked_what_the_weak_one_is_not_trusted_with(
    mosquitto: Broker, confidence: float, answer: str
) -> None:
    async with city(mosquitto.info.url, heart(), weak(confidence), cloud(), options=OPTIONS) as test:
        reply = await test.ask(FAR)
    assert (reply.output or "").splitlines()[0] == answer
    assert ("a strong model was asked" in (reply.steps[0].reason or "")) == (confidence < 0.5)


async def test_it_is_not_asked_for_more_than_the_budget_or_what_must_stay_here(memory_broker: MemoryBroker) -> None:
    dear = cloud(0.5)
    async with city(memory_broker, heart(), weak(0.2), dear, options=OPTIONS) as test:
        assert "Lions" in ((await test.ask(FAR, budget_usd=0.1)).output or "")
        assert "Lions" in ((await test.ask(FAR, may_leave_edge=False)).output or "")
        assert not dear.asked
        assert "Tigers" in ((await test.ask(FAR, budget_usd=1.0)).output or "")


async def test_it_answers_where_nobody_else_does_but_never_for_a_sensor(mosquitto: Broker) -> None:
    def broken(_: Request) -> str:
        raise RequestError("internal", "out of memory")

    doctor, phone, strap = Expert("medic-1", FIRST_AID, refusing), Expert("phone-1", GENERAL, broken), heart()
    async with city(mosquitto.info.url, strap, doctor, phone, cloud(), options=OPTIONS) as test:
        for question in (FAR, "What do I do about a burn?"):
            reply = await test.ask(question)
            assert (reply.output or "").startswith("The Tigers")
            assert reply.steps[0].error is None and reply.steps[0].service == STRONG
    broken_strap = Expert("watch-1", "data.gpt/health/heart-rate", broken)
    async with city(mosquitto.info.url, broken_strap, cloud(), options=OPTIONS) as test:
        error = await test.refused("What is my heart rate?")
        assert error.code == "internal" and "out of memory" in error.message


def learned() -> Router:
    """A router that has seen weak answers with wrong sums fail."""
    examples = [
        RouteExample(f"What is {n} plus {n}?", right, True, f"{n} + {n} = {2 * n if right else 2 * n + 1}")
        for n in range(10, 70)
        for right in (True, False)
    ]
    return Router.fit(examples, load_embedder("wordllama"))


async def test_a_router_decides_instead_of_the_verdict(memory_broker: MemoryBroker) -> None:
    router = learned()
    answers = {"What is 31 plus 31?": "31 + 31 = 62", "What is 32 plus 32?": "32 + 32 = 65"}
    phone = Expert("phone-1", GENERAL, lambda request: Answer(answers[request.text], confidence=0.9))
    options = OrchestratorOptions(strong=STRONG, router=router, share=False)
    async with city(memory_broker, heart(), phone, cloud(), options=options) as test:
        kept, replaced = [(await test.ask(question)).output or "" for question in answers]
    assert kept.startswith("31 + 31 = 62") and replaced.startswith("The Tigers")


async def test_a_planner_does_not_see_what_must_not_leave_the_edge(memory_broker: MemoryBroker) -> None:
    seen: list[str] = []

    async def plan(messages: Sequence[ChatMessage]) -> str:
        seen.append(messages[-1].content)
        return json.dumps({"steps": [{"text": "What is my heart rate?"}, {"text": "What is 3 times 4?"}]})

    options = OrchestratorOptions(planner=FunctionRuntime(plan, model="planner-1"), share=False)
    question = "What is my heart rate, and what is 3 times 4?"
    async with city(memory_broker, heart(), sums(), options=options) as test:
        private = await test.ask(question, may_leave_edge=False)
        assert private.plan is not None and private.plan.origin == "clauses" and not seen
        reply = await test.ask(question)
        assert reply.plan is not None and reply.plan.origin == "model" and len(seen) == 1
        assert {step.service for step in reply.steps} == {step.service for step in private.steps}


async def test_who_splits_too_slowly_is_not_waited_for(memory_broker: MemoryBroker) -> None:
    async def plan(messages: Sequence[ChatMessage]) -> str:
        await asyncio.Event().wait()
        return ""

    options = OrchestratorOptions(planner=FunctionRuntime(plan, model="planner-1"), share=False)
    async with city(memory_broker, heart(), sums(), options=options) as test:
        reply = await test.asker.ask("What is my heart rate?", service="computation.gpt/orchestration", ttl_s=1)
    assert reply.plan is not None and reply.plan.reason == "it could not be split in time"
    assert reply.output == "Your heart rate is 72 bpm"
