"""`mqttcollab agent`, `orchestrator`, `cloud` and `broker`: what runs until it is stopped."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path

from mqttcollab.broker import Broker, BrokerKind
from mqttcollab.cli.children import Child, Children, signal_name
from mqttcollab.cli.fleet import build, choose, read_fleet
from mqttcollab.cli.show import console, errors, print_json
from mqttcollab.cli.signals import stop_event
from mqttcollab.config import BrokerAddress, read_toml
from mqttcollab.errors import BrokerError, ConfigError
from mqttcollab.topics import check_agent, check_service


@dataclass(frozen=True, slots=True)
class Decisions:
    """How an orchestrator decides, as the command line says it; see `OrchestratorOptions`."""

    calibration: Path | None
    fallback: str | None
    strong: str | None
    router: Path | None
    planner: Path | None
    phrasing: str | None
    answers: int
    policy: str
    patience_s: float
    weights: dict[str, float]


def tenant_weights(given: list[str]) -> dict[str, float]:
    """Reads `TENANT=N`; raises ConfigError for anything else."""
    weights: dict[str, float] = {}
    for text in given:
        tenant, _, number = text.rpartition("=")
        try:
            weights[tenant] = float(number)
        except ValueError:
            weights[tenant] = 0.0
        if not tenant or not 0 < weights[tenant] < math.inf:
            raise ConfigError(f"--weight is {text!r}; write TENANT=N with N above 0, e.g. clinic=3")
    return weights


def run_orchestrator(
    name: str,
    embedder: str,
    decisions: Decisions,
    place: str | None,
    broker: str | None,
    *,
    journal: str | None,
    keep_s: float,
) -> None:
    """Runs an orchestrator until SIGINT or SIGTERM."""
    from mqttcollab.agent import AgentOptions
    from mqttcollab.classifiers.calibration_file import read_calibration
    from mqttcollab.classifiers.chain import default_classifiers
    from mqttcollab.classifiers.router import Router
    from mqttcollab.journal import Limits
    from mqttcollab.orchestrator import OrchestratorOptions, orchestrator_agent
    from mqttcollab.runtimes.config import load_runtime
    from mqttcollab.runtimes.embedders import load_embedder
    from mqttcollab.scheduling import make_policy

    check_agent(name)
    for service in (decisions.fallback, decisions.strong, decisions.phrasing):
        if service is not None:
            check_service(service)
    if math.isnan(decisions.patience_s):
        raise ConfigError("--patience is nan; write seconds, 0 or more")
    BrokerAddress.parse(broker)
    embeds = load_embedder(embedder)
    calibration = None if decisions.calibration is None else read_calibration(decisions.calibration)
    planner = decisions.planner
    options = OrchestratorOptions(
        fallback=decisions.fallback,
        strong=decisions.strong,
        router=None if decisions.router is None else Router.load(decisions.router, embeds),
        planner=None if planner is None else load_runtime(read_toml(planner), where=str(planner)),
        phrasing=decisions.phrasing,
        answers=decisions.answers,
        policy=make_policy(decisions.policy),
        weights=decisions.weights,
        patience_s=decisions.patience_s,
    )
    classifiers = default_classifiers(embeds, calibration)
    agent_options = AgentOptions(journal=journal, keep=Limits(keep_s=keep_s))
    agent = orchestrator_agent(
        name, embeds, options=options, classifiers=classifiers, agent_options=agent_options, place=place
    )
    agent.run(broker)


def run_cloud(path: Path, broker: str | None) -> None:
    """Runs an agent in front of a cloud model until SIGINT or SIGTERM."""
    try:
        from mqttcollab.cloud import check_ledger, cloud_agent, read_cloud
    except ModuleNotFoundError as error:
        raise ConfigError(f"the cloud needs {error.name}: pip install 'mqttcollab[cloud]'") from None

    BrokerAddress.parse(broker)
    settings = read_cloud(path)
    agent = cloud_agent(settings)
    asyncio.run(check_ledger(settings))  # before there is a broker to wait for
    agent.run(broker)


def run_fleet(path: Path, names: list[str], broker: str | None) -> int:
    """Runs devices until SIGINT or SIGTERM; one here, several in a process each. Returns the exit code."""
    tables = read_fleet(path)
    chosen = choose(path, tables, names)
    BrokerAddress.parse(broker)
    if len(chosen) > 1:
        return asyncio.run(_run_processes(path, chosen, broker))
    build(path, chosen[0], tables[chosen[0]]).run(broker)
    return 0


async def _run_processes(path: Path, names: list[str], broker: str | None) -> int:
    stop = stop_event()
    running, failed = set(names), set()
    nobody_left = asyncio.Event()

    def on_end(child: Child) -> None:
        running.discard(child.name)
        if child.process.returncode:
            failed.add(child.name)
        rest = f"{len(running)} of {len(names)} devices go on" if running else "no device is left"
        errors.print(f"device {child.name} {child.fate}; {rest}", markup=False)
        if not running:
            nobody_left.set()

    async with Children(on_end=on_end) as children:
        for name in names:
            await children.start(name, "agent", str(path), name, broker=broker)
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, nobody_left)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    return 1 if failed else 0


async def run_broker(
    kind: BrokerKind,
    port: int | None,
    websocket_port: int | None,
    data: Path | None,
    config: Path | None,
    *,
    as_json: bool,
) -> None:
    """Runs a broker until SIGINT or SIGTERM."""
    stop = stop_event()
    if config is None and port is None:
        port = 1883
    async with Broker(kind, port=port, websocket_port=websocket_port, data_dir=data, config=config) as broker:
        info = broker.info
        if as_json:
            print_json({name: getattr(info, name) for name in info.__dataclass_fields__})
        else:
            console.print(f"{info.kind} {info.version} runs as process {info.pid}: {info.url}", markup=False)
            if info.websocket_url:
                console.print(f"WebSocket: {info.websocket_url}")
            console.print(f"watch it with: mqttcollab sub -b {info.url}    (Ctrl-C ends the broker)")
        ended = asyncio.ensure_future(broker.wait())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        died = ended.done() and not stop.is_set()
        for task in (ended, stopping):
            task.cancel()
        await asyncio.gather(ended, stopping, return_exceptions=True)
        if died:
            code = ended.result()
            said = f": {broker.log[-1]}" if code > 0 and broker.log else ""
            how = f"by {signal_name(-code)}" if code < 0 else f"with exit code {code}"
            raise BrokerError(f"{info.kind} (process {info.pid}) was ended {how}{said}; start it again")
