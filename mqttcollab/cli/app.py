"""The commands and their options."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mqttcollab import __version__
from mqttcollab.cli.eval import app as evaluations
from mqttcollab.cli.signals import die_at_once, end_with_stdin, run
from mqttcollab.config import BROKER_VARIABLE, JOURNAL_VARIABLE

app = typer.Typer(
    name="mqttcollab",
    help="Small language models on many devices answer together, over MQTT.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # In a pipe plain lines; rich's boxes are for terminals.
    rich_markup_mode="rich" if sys.stdout.isatty() and sys.stderr.isatty() else None,
)

app.add_typer(evaluations, name="eval")

Url = Annotated[
    str | None,
    typer.Option(
        "--broker",
        "-b",
        envvar=BROKER_VARIABLE,
        help="mqtt://[user:password@]host[:port], mqtts://, ws:// or wss://; ?version=3.1.1&ca=FILE&cert=FILE&key=FILE",
        show_default="mqtt://127.0.0.1:1883",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Fleet = Annotated[
    Path, typer.Argument(metavar="FLEET", help="A TOML file with a table per device, such as devices/fleet.toml.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mqttcollab {__version__}")
        raise typer.Exit


def _question(question: str) -> str:
    if not question.strip():
        raise typer.BadParameter("the question is empty")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("the question is not valid UTF-8") from None
    return question


def _questions(questions: list[str] | None) -> list[str] | None:
    return [_question(question) for question in questions] if questions else None


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the library does.")] = False,
    until_stdin_ends: Annotated[
        bool, typer.Option("--until-stdin-ends", hidden=True, help="For programs that start this one.")
    ] = False,
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Small language models on many devices answer together, over MQTT."""
    if until_stdin_ends:
        end_with_stdin()
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)


@app.command()
def demo(
    ask: Annotated[
        list[str] | None, typer.Option("--ask", callback=_questions, help="A question of your own; may be repeated.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option("--broker", "-b", help="Use this broker instead of starting one.")
    ] = None,
    fleet: Annotated[Path | None, typer.Option(help="Another fleet than the repository's devices/fleet.toml.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up after the questions, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a broker, the devices and an orchestrator, and ask them three questions."""
    from mqttcollab.cli.demo import QUESTIONS, Demo, find_fleet
    from mqttcollab.config import BrokerAddress

    if broker is not None:
        BrokerAddress.parse(broker)
    show = Demo(find_fleet(fleet), as_json=as_json)
    raise typer.Exit(run(show.run(ask or list(QUESTIONS), broker, keep=keep)))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(callback=_question, metavar="QUESTION", help="The question.")],
    service: Annotated[
        str | None,
        typer.Option(help="Ask this service (or filter, knowledge.gpt/medicine/#) instead of an orchestrator."),
    ] = None,
    agent: Annotated[
        str | None, typer.Option(help="Ask this agent; it need not be told which service if it has one only.")
    ] = None,
    ttl: Annotated[float, typer.Option(min=0.001, help="Seconds until the question is void.")] = 30.0,
    budget: Annotated[float | None, typer.Option(help="The most that it may cost, in US dollars.")] = None,
    on_edge: Annotated[bool, typer.Option("--on-edge", help="It must not be passed on to a cloud.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Who pays.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=9, help="Higher goes first where requests wait.", show_default="4")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Who asks; default: the broker's user name, else a random one.")
    ] = None,
    broker: Url = None,
    as_json: AsJson = False,
) -> None:
    """Ask the orchestrator, or one service, and show how the answer came about."""
    from mqttcollab.cli.ask import ask_question

    terms = {"budget_usd": budget, "tenant": tenant, "priority": priority, "may_leave_edge": False if on_edge else None}
    given = {field: value for field, value in terms.items() if value is not None}
    run(ask_question(question, service, agent, ttl, given, name=name, broker=broker, as_json=as_json))


@app.command()
def agents(
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and print what changes.")] = False,
    broker: Url = None,
    as_json: AsJson = False,
) -> None:
    """Who is there, what they offer and how loaded they are."""
    from mqttcollab.cli.agents import show_agents

    die_at_once()
    asyncio.run(show_agents(broker, watch=watch, as_json=as_json))


@app.command()
def sub(
    filters: Annotated[list[str] | None, typer.Argument(metavar="FILTER", help="MQTT filters; default: #")] = None,
    count: Annotated[int | None, typer.Option("--count", "-C", min=1, help="End after so many messages.")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", "-W", min=0.001, help="End after so many seconds.")
    ] = None,
    retained: Annotated[bool, typer.Option(help="Also show what was retained before.")] = True,
    broker: Url = None,
    as_json: AsJson = False,
) -> None:
    """Like mosquitto_sub, but CBOR and embeddings are decoded."""
    from mqttcollab.cli.sub import subscribe

    run(subscribe(filters or ["#"], broker, count=count, seconds=seconds, retained=retained, as_json=as_json))


@app.command()
def orchestrator(
    name: Annotated[str, typer.Option(help="The agent's name.")] = "orchestrator",
    embedder: Annotated[str, typer.Option(help="wordllama, or llama:PATH of a GGUF.")] = "wordllama",
    calibration: Annotated[
        Path | None, typer.Option(help="What `calibrate` wrote for this embedder.", show_default="comes along")
    ] = None,
    fallback: Annotated[
        str, typer.Option(help="Service asked where nobody covers a question; empty: none.")
    ] = "knowledge.gpt/general",
    strong: Annotated[
        str | None, typer.Option(help="Service asked where the fallback's answer can't be trusted.")
    ] = None,
    router: Annotated[
        Path | None, typer.Option(help="What `eval route --save` wrote: decides between fallback and strong.")
    ] = None,
    planner: Annotated[
        Path | None, typer.Option(help="TOML of a language model that splits questions: kind, path, base_url …")
    ] = None,
    phrasing: Annotated[str | None, typer.Option(help="Service of a language model that phrases answers.")] = None,
    answers: Annotated[int, typer.Option(min=1, help="How many agents answer the same, and vote.")] = 1,
    policy: Annotated[str, typer.Option(help="Who gets a subtask: see docs/scheduling.md.")] = "frugal",
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds that a subtask waits for a free agent before it goes to the cloud.")
    ] = 3.0,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="TENANT=N", help="A tenant's share where requests wait; 1 for those not named."),
    ] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            envvar=JOURNAL_VARIABLE,
            metavar="WHERE",
            help="A file, or postgresql://…: questions are written down there, and outlive this process.",
            show_default="none: they end with it",
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="How long the journal keeps what has ended.")
    ] = 7.0,
    place: Annotated[str | None, typer.Option(help="Where it is.")] = None,
    broker: Url = None,
) -> None:
    """Run an orchestrator."""
    from mqttcollab.cli.run import Decisions, run_orchestrator, tenant_weights

    logging.getLogger().setLevel(logging.INFO)
    placing = (policy, patience, tenant_weights(weight or []))
    decisions = Decisions(calibration, fallback or None, strong, router, planner, phrasing, answers, *placing)
    run_orchestrator(name, embedder, decisions, place, broker, journal=journal, keep_s=86400 * keep)


@app.command()
def agent(
    fleet: Fleet,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Which of its devices; default: all.")
    ] = None,
    broker: Url = None,
) -> None:
    """Run the devices of a TOML file: one in this process, several in a process each."""
    from mqttcollab.cli.run import run_fleet

    logging.getLogger().setLevel(logging.INFO)
    raise typer.Exit(run_fleet(fleet, names or [], broker))


@app.command()
def cloud(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A TOML file such as devices/cloud.toml: endpoint, limits, prices.")
    ],
    broker: Url = None,
) -> None:
    """Run an agent in front of a model in the cloud, within spending limits."""
    from mqttcollab.cli.run import run_cloud

    logging.getLogger().setLevel(logging.INFO)
    run_cloud(file, broker)


@app.command()
def broker(
    kind: Annotated[
        Literal["auto", "mosquitto", "nats"], typer.Option(help="auto: Mosquitto where installed, else nats-server.")
    ] = "auto",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The MQTT port; 0 takes a free one.", show_default="1883")
    ] = None,
    websocket_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The WebSocket port.", show_default="a free one")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Keep retained messages and sessions in this folder.")] = None,
    config: Annotated[Path | None, typer.Option(help="A configuration file of your own, used as it is.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a broker on loopback and run it until Ctrl-C."""
    from mqttcollab.cli.run import run_broker

    run(run_broker(kind, port, websocket_port, data, config, as_json=as_json))


@app.command()
def schema(
    type_: Annotated[str | None, typer.Argument(metavar="TYPE", help="One type; default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a file per type into this folder.")] = None,
) -> None:
    """Print the JSON Schema of the messages, for those who write devices without this library."""
    from mqttcollab.cli.schema import write_schemas

    write_schemas(type_, out)


@app.command()
def calibrate(
    train: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines with text, domain and intent.")],
    embedder: Annotated[
        str, typer.Option(help="wordllama, wordllama:128, wordllama:64, or llama:PATH of a GGUF.")
    ] = "wordllama",
    target: Annotated[
        float, typer.Option(help="Share of the questions in scope that may be handed over, above 0 to 0.5.")
    ] = 0.05,
    fleets: Annotated[int, typer.Option(min=2, help="Fleets drawn to fit to, and as many to measure on.")] = 120,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the calibration there.")] = None,
    source: Annotated[str | None, typer.Option(help="The data's name and licence, kept in the calibration.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit what tells which services a question touches to simulated fleets, and print how well it does."""
    from mqttcollab.cli.calibrate import run_calibration

    run_calibration(train, embedder, target, fleets, output, source, as_json=as_json)


@app.command()
def simulate(
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="random, weighted, least-connections, power-of-two, load-aware, fastest-free or frugal; "
            "may be repeated, as all that is varied.",
            show_default="all",
        ),
    ] = None,
    load: Annotated[
        list[float] | None,
        typer.Option(help="Work that comes, as a share of what the fleet can do.", show_default="0.5"),
    ] = None,
    report_delay: Annotated[
        list[float] | None, typer.Option(help="Age of a load report when it arrives, in seconds.", show_default="0")
    ] = None,
    orchestrators: Annotated[
        list[int] | None, typer.Option(help="How many orchestrators share the fleet.", show_default="1")
    ] = None,
    length_error: Annotated[
        list[float] | None,
        typer.Option(help="How far expected lengths are off at most, as a share of the true ones.", show_default="0"),
    ] = None,
    patience: Annotated[
        list[float] | None, typer.Option(help="Seconds that a request may wait until it begins.", show_default="0")
    ] = None,
    arrivals: Annotated[Literal["paper"], typer.Option(help="The paper's bursts; see --trace.")] = "paper",
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV with TIMESTAMP, ContextTokens and GeneratedTokens instead.")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(help="How long requests come.", show_default="1, or the whole trace")
    ] = None,
    fleet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TOML file of devices.", show_default="eight like the paper's")
    ] = None,
    crash: Annotated[
        bool, typer.Option("--crash", help="The second fastest device is down from a third to half of the time.")
    ] = False,
    down: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:FROM-TO", help="A device is down between these seconds; may be repeated."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.", show_default="10; of --validate 1")] = None,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    jobs: Annotated[int | None, typer.Option(help="How many processes.", show_default="the cores")] = None,
    bound: Annotated[bool, typer.Option(help="Solve for the least that the cloud can cost.")] = True,
    plot: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Draw it as .png or .svg; a folder, or no ending: both. May be repeated."),
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Replay it over a broker as well, and compare; no bound, no plot.")
    ] = False,
    speed_up: Annotated[
        float | None, typer.Option(help="Simulated seconds in a second of --validate.", show_default="60")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(help="URL of a broker for --validate.", show_default="starts a Mosquitto")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a fleet's hour under scheduling policies, beside the least that the cloud could cost."""
    from mqttcollab.cli.simulate import Grid, run_simulation, validate_simulation

    grid = Grid(
        policy or [],
        load or [0.5],
        report_delay or [0.0],
        orchestrators or [1],
        length_error or [0.0],
        patience or [0.0],
    )
    if validate:
        # One seed takes a minute per policy.
        return validate_simulation(
            grid,
            outages=crash or bool(down),
            fleet=fleet,
            trace=trace,
            hours=hours,
            seeds=range(seed, seed + (1 if seeds is None else seeds)),
            speed_up=speed_up,
            broker=broker,
            json_wanted=as_json,
        )
    run_simulation(
        grid,
        fleet=fleet,
        trace=trace,
        hours=hours,
        crash=crash,
        down=down or [],
        seeds=10 if seeds is None else seeds,
        seed=seed,
        jobs=jobs,
        bound=bound,
        plots=plot or [],
        json_wanted=as_json,
    )
