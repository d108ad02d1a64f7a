from __future__ import annotations

import asyncio

import pytest
from harness import eventually
from test_orchestrator_scheduling import (  # noqa: F401
    CLOUD, QUESTION, TIDES, WIND, WINDY, Worker, _embedder, city, cloud, occupied, text, EXAMPLES,
)
from fleet import known
from mqttcollab import Agent, Answer, Request, RequestError, Service, Usage
from mqttcollab.broker import Broker
from mqttcollab.rpc import Requester
from mqttcollab.scheduling import make_policy
from mqttcollab.topics import ORCHESTRATION


class Failing(Worker):
    async def handle(self, request: Request) -> Answer:
        await super().handle(request)
        raise RequestError("quota_exceeded", "the limit over all is 1 USD a day")


def far(cls=Worker, name="cloud-1", service=CLOUD):
    w = cls(name, service)
    w.leaves_edge, w.completion_usd_per_mtok, w.concurrency = True, 60.0, 8
    return w


async def test_dead_cloud(mosquitto: Broker) -> None:
    harbour, c = Worker("harbour-1"), far(Failing)
    async with city(mosquitto.info.url, harbour, c, patience_s=0.2) as test:
        first = await occupied(test, harbour)
        with pytest.raises(RequestError) as e:
            await test.ask()
        print(e.value.code, e.value)
        harbour.gate.set()
        await first
        assert "limit over all" in str(e.value)


def dear(name: str, service: str, usd=0.5) -> Worker:
    worker = Worker(name, service)
    worker.agent.update(service, price_usd=usd)
    return worker


async def test_parallel_budget(mosquitto: Broker) -> None:
    workers = [dear("harbour-1", TIDES), dear("vane-1", WIND)]
    async with city(mosquitto.info.url, *workers) as test:
        try:
            r = await test.ask(f"{QUESTION} {WINDY}", budget_usd=0.6)
            print(r.output, r.missing)
        except RequestError as e:
            print(e)
        assert sum(len(w.asked) for w in workers) == 1
        r = await test.ask(f"{QUESTION} {WINDY}", budget_usd=1.2)
        assert not r.missing and sum(len(w.asked) for w in workers) == 3
        print([w.asked[-1].budget_usd for w in workers])


async def test_votes_budget(mosquitto: Broker) -> None:
    workers = [dear("harbour-1", TIDES), dear("harbour-2", TIDES), dear("harbour-3", TIDES)]
    async with city(mosquitto.info.url, *workers, answers=2) as test:
        try:
            print(text(await test.ask(budget_usd=0.6)))
        except RequestError as e:
            print(e)
        assert sum(len(w.asked) for w in workers) <= 1


async def test_hedge_paid(mosquitto: Broker) -> None:
    a, b = far(name="cloud-1"), far(name="cloud-2")
    async with city(mosquitto.info.url, a, b) as test:
        for w in (a, b):
            w.gate.clear()
        asking = test.ask("Tell me about ancient Rome", ttl_s=4.0)
        await asyncio.sleep(3.0)
        n = len(a.asked) + len(b.asked)
        a.gate.set(), b.gate.set()
        await asking
        assert n == 1


async def test_gains(mosquitto: Broker) -> None:
    harbour = Worker("harbour-1")
    async with city(mosquitto.info.url, harbour, patience_s=8.0) as test:
        first = await occupied(test, harbour)
        second = test.ask(may_leave_edge=False)
        await eventually(lambda: test.orchestrator.waiting == 1)
        harbour.leaves_edge = True
        harbour.agent.update(TIDES, description="now in the cloud")
        reg = await test.heads[0].follow()
        await known(lambda: reg.agents["harbour-1"].records[TIDES].leaves_edge)
        harbour.gate.set()
        await first
        with pytest.raises(RequestError) as e:
            await second
        print(e.value.code, e.value)
        assert len(harbour.asked) == 1


@pytest.mark.parametrize("fields", [{"may_leave_edge": False}, {"budget_usd": 0.0}])
async def test_phrasing(mosquitto: Broker, fields) -> None:
    harbour, c = Worker("harbour-1"), far()
    async with city(mosquitto.info.url, harbour, c, phrasing=CLOUD) as test:
        r = await test.ask(**fields)
        print(r.output, r.missing)
        assert not c.asked


async def test_share(mosquitto: Broker) -> None:
    class Slow(Worker):
        async def handle(self, request: Request) -> Answer:
            await asyncio.sleep(0.6)
            return await super().handle(request)

    harbour, c = Slow("harbour-1"), far()
    g1, g2 = Worker("general-1", CLOUD), Worker("general-2", CLOUD)
    for g in (g1, g2):
        g.name = "knowledge.gpt/general"
        g.agent = Agent(g.agent.name)
        g.agent.add(g)
    async with city(mosquitto.info.url, harbour, c, g1, g2, patience_s=0.0) as test:
        for _ in range(3):
            assert text(await test.ask()) == "@harbour-1"
        r = await test.ask(ttl_s=1.6)
        print(r.steps[0].reason)
        assert text(r) == "@harbour-1"


async def test_classic_patience(mosquitto: Broker) -> None:
    harbour, c = Worker("harbour-1"), far()
    async with city(mosquitto.info.url, harbour, c, patience_s=0.3, policy=make_policy("load-aware")) as test:
        first = await occupied(test, harbour)
        try:
            assert text(await test.ask(ttl_s=4)) == "@cloud-1"
        finally:
            harbour.gate.set()
            await first


async def test_same_id(mosquitto: Broker) -> None:
    harbour = Worker("harbour-1")
    from fleet import client
    async with city(mosquitto.info.url, harbour, patience_s=5.0) as test:
        harbour.gate.clear()
        other = Agent("other-1", options=test.asker.options)
        async with other.running(mosquitto.info.url):
            tasks = []
            for a in (test.asker, other):
                rq = a._life.requester
                req = rq.new_request(QUESTION, service=ORCHESTRATION, ttl_ms=9000)
                req.id = "same-1"
                req.reply_to = rq._prefix + "same-1"
                tasks.append(asyncio.create_task(rq.ask(f"computation.gpt/orchestration/@head-0/request", req)))
            await eventually(lambda: len(harbour.asked) == 1)
            await asyncio.sleep(0.3)
            harbour.gate.set()
            print(await asyncio.gather(*tasks, return_exceptions=True))
            assert [text(await t) for t in tasks] == ["@harbour-1"] * 2


async def test_own(mosquitto: Broker) -> None:
    harbour, h2, c = Worker("harbour-1"), Failing("harbour-2"), far()
    async with city(mosquitto.info.url, harbour, h2, c, patience_s=0.5) as test:
        await test.ask()
        h2.gate.clear()
        first = await occupied(test, harbour)
        tasks = [test.ask(ttl_s=1.5) for _ in range(6)]
        await asyncio.sleep(0.4)
        tasks[0].cancel(), first.cancel()
        await h2.agent.stop()
        c.gate.clear()
        await asyncio.sleep(0.3)
        await asyncio.gather(*tasks, first, return_exceptions=True)
        book = test.orchestrator._fleet._book
        await eventually(lambda: not book._rows["own"].any(), 5)
        assert not any(a.own for a in book._agents.values()) and not book._rows["backlog_s"].any()
        assert not test.orchestrator._fleet.placer.scheduler._open
        harbour.gate.set(), c.gate.set()


async def test_too_dear(mosquitto: Broker) -> None:
    harbour = dear("harbour-1", TIDES)
    async with city(mosquitto.info.url, harbour) as test:
        with pytest.raises(RequestError) as e:
            await test.ask(budget_usd=0.1)
        print(e.value.code, e.value)
        assert e.value.code == "quota_exceeded"


async def test_sleeper(mosquitto: Broker) -> None:
    harbour, c = Worker("harbour-1"), far()
    async with city(mosquitto.info.url, harbour, c, patience_s=4.0) as test:
        await harbour.agent.sleep()
        reg = await test.heads[0].follow()
        await known(lambda: reg.agents["harbour-1"].asleep)
        asking = test.ask()
        await eventually(lambda: test.orchestrator.waiting == 1)
        await harbour.agent.wake()
        assert text(await asking) == "@harbour-1"


async def test_mixed(mosquitto: Broker) -> None:
    class Slow(Worker):
        async def handle(self, request: Request) -> Answer:
            await asyncio.sleep(0.1)
            return await super().handle(request)
    harbour, c = Slow("harbour-1"), far(service=TIDES)
    async with city(mosquitto.info.url, harbour, c, patience_s=0.2) as test:
        for _ in range(6):
            await test.ask()
        print(len(harbour.asked), len(c.asked))
        assert not c.asked
        first = await occupied(test, harbour)
        assert text(await test.ask()) == "@cloud-1"
        harbour.gate.set()
        await first


async def test_notes(mosquitto: Broker) -> None:
    harbour = Worker("harbour-1")
    async with city(mosquitto.info.url, harbour, share=True) as test:
        await test.ask(may_leave_edge=False)
        print(test.orchestrator.knowledge.questions())
        assert not test.orchestrator.knowledge.questions()


async def test_reason(mosquitto: Broker) -> None:
    harbour = Worker("harbour-1")
    async with city(mosquitto.info.url, harbour) as test:
        r = await test.ask()
        print(r.steps[0].reason)
        assert "is free" in r.steps[0].reason




async def test_orch_stopped_in_the_middle(mosquitto: Broker) -> None:
    harbour, c = Worker("harbour-1"), far()
    async with city(mosquitto.info.url, harbour, c, patience_s=8.0) as test:
        first = await occupied(test, harbour)
        waits = [test.ask() for _ in range(3)]
        await eventually(lambda: test.orchestrator.waiting == 3)
        orch = test.orchestrator
        test.heads[0].options  # noqa
        object.__setattr__(test.heads[0].options, "grace_s", 0.1)
        await test.heads[0].stop()
        print(await asyncio.gather(first, *waits, return_exceptions=True))
        book = orch._fleet._book
        assert not book._rows["own"].any() and not orch._fleet.placer.scheduler._open and not orch.waiting
        await eventually(lambda: harbour.given_up == [QUESTION])


async def test_parallel_cloud(mosquitto: Broker) -> None:
    tok = [Worker("harbour-1"), Worker("vane-1", WIND)]
    for w in tok:
        w.completion_usd_per_mtok = 10.0
    async with city(mosquitto.info.url, *tok) as test:
        r = await test.ask(f"{QUESTION} {WINDY}", budget_usd=0.5)
        assert not r.missing and [len(w.asked) for w in tok] == [1, 1]
        print([w.asked[-1].budget_usd for w in tok])


async def test_dead_agent_waiting(mosquitto: Broker) -> None:
    a, b = Worker("harbour-1"), Worker("harbour-2")
    async with city(mosquitto.info.url, a, b, patience_s=8.0) as test:
        for w in (a, b):
            w.gate.clear()
        f = [test.ask(ttl_s=20) for _ in range(4)]
        await eventually(lambda: test.orchestrator.waiting == 2)
        a.gate.set()
        import os
        a.agent._life.transport  # noqa
        stop = asyncio.create_task(a.agent.stop())
        b.gate.set()
        rs = await asyncio.gather(*f, return_exceptions=True)
        print(rs)
        await stop
        assert all(not isinstance(r, Exception) for r in rs)


async def test_peer_meaning(mosquitto: Broker) -> None:
    c = far()
    async with city(mosquitto.info.url, c) as test:
        for kw in ({"service": "computation.gpt/cloud"}, {"service": "computation.gpt/cl+"} if 0 else {"service": "computation.gpt/#"},):
            with pytest.raises(RequestError, match="leave the edge"):
                await test.asker.ask("Anything", may_leave_edge=False, **kw)
        assert not c.asked


async def test_spin(mosquitto: Broker) -> None:
    a, b = Worker("harbour-1"), Worker("harbour-2")
    async with city(mosquitto.info.url, a, b) as test:
        for w in (a, b):
            w.gate.clear()
        held = test.ask(ttl_s=9)
        await eventually(lambda: len(a.asked) + len(b.asked) == 1)
        n = 0
        placer = test.orchestrator._fleet.placer
        old = placer.beside
        def count(d):
            nonlocal n
            n += 1
            return old(d)
        placer.beside = count
        r = await asyncio.gather(test.ask(ttl_s=2), return_exceptions=True)
        print(r, n)
        assert n < 100
        a.gate.set(), b.gate.set()
        await held
