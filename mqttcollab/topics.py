"""The topic tree: names, templates, parsing and MQTT filters. `topics.md` is its normative description."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from mqttcollab.errors import TopicError

ZONES = ("data.gpt", "computation.gpt", "knowledge.gpt")
ORCHESTRATION = "computation.gpt/orchestration"
MAX_LEVELS = 8
MAX_REASON = 200

# Every topic of the protocol; topics.md lists the same ones, and a test holds the two together.
TEMPLATES: dict[str, str] = {
    "record": "<service>/@<agent>",
    "request": "<service>/@<agent>/request",
    "anycast": "<service>/request",
    "cancel": "<service>/@<agent>/cancel",
    "embedding": "data.gpt/<domain>/@<agent>/embedding",
    "observation": "data.gpt/<domain>/@<agent>/observation",
    "reply": "reply.gpt/@<requester>/<request id>",
    "status": "slm/agents/@<agent>/status",
    "profile": "slm/agents/@<agent>/profile",
    "load": "slm/agents/@<agent>/load",
    "model": "slm/models/<model>/<key>",
    "metric": "slm/metrics/<model>/<key>",
    "inference": "slm/inference/<task>/<key>",
}

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
LABEL_RE = re.compile(_LABEL)
SERVICE_RE = re.compile(rf"(?:data|computation|knowledge)\.gpt(?:/{_LABEL}){{1,4}}")
KEY_RE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPLY_RE = re.compile(rf"reply\.gpt/@({_LABEL})/({KEY_RE.pattern})")

TopicKind = Literal[
    "record", "request", "anycast", "cancel", "embedding", "observation",
    "reply", "status", "profile", "load", "slm",
]  # fmt: skip


class Status(NamedTuple):
    """An agent's presence, as it stands in its status topic: `online 1732178400123`.

    Attributes:
        reason: what is wrong with one that is `degraded`, in one line of at most 200 characters; empty for the others,
            or where it does not say.
    """

    state: Literal["online", "sleeping", "degraded", "offline"]
    epoch: int
    reason: str = ""

    @property
    def payload(self) -> bytes:
        """What is published for it; a reason is put into one line, and cut where it is too long."""
        reason = f" {_one_line(self.reason)}" if self.state == "degraded" else ""
        return f"{self.state} {self.epoch}{reason}".rstrip().encode()


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic; fields that its kind lacks are empty."""

    kind: TopicKind
    service: str = ""
    agent: str = ""
    leaf: str = ""


def check_agent(name: str) -> str:
    """Returns an agent's name (without `@`) if it is one DNS label, else raises TopicError."""
    if not LABEL_RE.fullmatch(name):
        rule = "use 1 to 63 of a-z, 0-9 and '-', no '-' at either end"
        raise TopicError(f"agent name {_show(name)} is not a DNS label: {rule}")
    return name


@lru_cache(maxsize=4096)
def check_service(name: str) -> str:
    """Returns a service name if it is a zone and one to four DNS labels, else raises TopicError."""
    if SERVICE_RE.fullmatch(name):
        return name
    zone, _, _ = name.partition("/")
    if zone not in ZONES:
        raise TopicError(f"service name {_show(name)} starts with no zone: use one of {', '.join(ZONES)}")
    if any(c in name for c in "+#"):
        raise TopicError(f"service name {_show(name)} has a wildcard: a service is one name, without + or #")
    raise TopicError(
        f"service name {_show(name)} does not parse: after {zone}/ come 1 to 4 labels of a-z, 0-9 and '-',"
        f" e.g. {zone}/medicine/cardiology"
    )


def check_id(request_id: str) -> str:
    """Returns a request id that can be one topic level (1 to 128 of A-Z a-z 0-9 . _ -), else raises TopicError."""
    return _check_key(request_id, "request id")


def record_topic(service: str, agent: str) -> str:
    """Where an agent's service record is retained."""
    return f"{check_service(service)}/@{check_agent(agent)}"


def request_topic(service: str, agent: str | None = None) -> str:
    """Where requests go: to one agent, or (anycast) to whoever serves the name."""
    return f"{check_service(service)}/request" if agent is None else f"{record_topic(service, agent)}/request"


def anycast_filter(service: str) -> str:
    """The shared subscription on which the agents of a service take its anycast requests in turn."""
    return f"$share/{check_service(service).replace('/', '.')}/{service}/request"


def cancel_topic(service: str, agent: str) -> str:
    """Where a requester gives a request up; the payload is its id."""
    return f"{record_topic(service, agent)}/cancel"


def data_topic(service: str, agent: str, kind: Literal["embedding", "observation"]) -> str:
    """Where an agent publishes what it senses; only `data.gpt` services have observations and embeddings."""
    if not service.startswith("data.gpt/"):
        raise TopicError(f"{kind}s are published under data.gpt/…, not under {_show(service)}")
    return f"{record_topic(service, agent)}/{kind}"


def reply_topic(requester: str, request_id: str) -> str:
    """Where the replies to one request go."""
    return f"reply.gpt/@{check_agent(requester)}/{check_id(request_id)}"


def agent_topic(agent: str, leaf: Literal["status", "profile", "load"]) -> str:
    """Where an agent says that it lives, what it is and how busy it is."""
    return f"slm/agents/@{check_agent(agent)}/{leaf}"


def slm_topic(category: str, name: str, key: str) -> str:
    """A key of the Capability Metadata Store, `slm/<category>/<name>/<key>`."""
    topic = "/".join(("slm", _check_key(category, "category"), _check_key(name, "key"), key))
    parse(topic)
    return topic


def record_filters(agent: str) -> list[str]:
    """The filters that match this agent's service records and nothing else of it (no requests or embeddings)."""
    check_agent(agent)
    return [f"{'/'.join('+' * depth)}/@{agent}" for depth in range(2, 6)]


def parse(topic: str) -> Topic:
    """Takes a topic apart.

    Raises:
        TopicError: it is none of the protocol's topics.
    """
    levels = topic.split("/")
    if len(levels) > MAX_LEVELS:
        raise TopicError(f"topic {_show(topic)} has {len(levels)} levels; at most {MAX_LEVELS} are allowed")
    if levels[0] in ZONES:
        return _parse_service_topic(topic, levels)
    if levels[0] == "reply.gpt" and len(levels) == 3 and levels[1].startswith("@"):
        return Topic("reply", agent=check_agent(levels[1][1:]), leaf=check_id(levels[2]))
    if levels[0] == "slm" and len(levels) > 2:
        if levels[1] != "agents":
            return Topic("slm", leaf="/".join(_check_key(level, "key") for level in levels[1:]))
        if len(levels) == 4 and levels[2].startswith("@") and levels[3] in ("status", "profile", "load"):
            return Topic(levels[3], agent=check_agent(levels[2][1:]))  # type: ignore[arg-type]
    raise TopicError(f"topic {_show(topic)} is none of the protocol's: see topics.md")


def _parse_service_topic(topic: str, levels: list[str]) -> Topic:
    host = next((i for i, level in enumerate(levels) if level.startswith("@")), None)
    if host is None:
        if levels[-1] == "request" and len(levels) > 2:
            return Topic("anycast", check_service("/".join(levels[:-1])))
        raise TopicError(f"topic {_show(topic)} names no agent: expected {TEMPLATES['record']}[/…]")
    service, agent = check_service("/".join(levels[:host])), check_agent(levels[host][1:])
    match levels[host + 1 :]:
        case []:
            return Topic("record", service, agent)
        case ["request" | "cancel" | "embedding" | "observation" as leaf]:
            return Topic(leaf, service, agent)
        case rest:
            raise TopicError(f"topic {_show(topic)} ends in {_show('/'.join(rest))}: see topics.md")


def parse_reply_topic(topic: str) -> Topic:
    """Takes a `reply_to` apart; anything but a reply topic raises TopicError (nobody is made to publish elsewhere)."""
    if found := _REPLY_RE.fullmatch(topic):
        return Topic("reply", agent=found[1], leaf=found[2])
    parsed = parse(topic)  # says what is wrong with it
    if parsed.kind != "reply":
        raise TopicError(f"reply_to {_show(topic)} is no reply topic: expected {TEMPLATES['reply']}")
    return parsed


def parse_status(payload: bytes) -> Status:
    """Reads `online|sleeping|offline <epoch>` or `degraded <epoch> [<reason>]`; raises TopicError for anything else."""
    state, _, rest = payload.decode("utf-8", "replace").strip().partition(" ")
    epoch, _, reason = rest.partition(" ") if state == "degraded" else (rest, "", "")
    if state not in ("online", "sleeping", "degraded", "offline") or not re.fullmatch("[0-9]{1,20}", epoch):
        raise TopicError(
            f"status {payload[:40]!r} is not 'online|sleeping|offline <epoch>' or 'degraded <epoch> <reason>'"
        )
    return Status(state, int(epoch), _one_line(reason))  # type: ignore[arg-type]


def matches(filter_: str, topic: str) -> bool:
    """Whether an MQTT filter (also a `$share/<group>/…` one) matches a topic."""
    if filter_.startswith("$share/"):
        filter_ = filter_.split("/", 2)[2]
    if topic.startswith("$") and filter_[:1] in ("+", "#"):
        return False
    wanted, levels = filter_.split("/"), topic.split("/")
    for i, want in enumerate(wanted):
        if want == "#":
            return True
        if i >= len(levels) or want not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)


def _one_line(reason: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in reason[: 4 * MAX_REASON])
    return " ".join(shown.split())[:MAX_REASON].rstrip()


def _check_key(key: str, what: str) -> str:
    if not KEY_RE.fullmatch(key):
        raise TopicError(f"{what} {_show(key)} can't be a topic level: use 1 to 128 of A-Z a-z 0-9 . _ -")
    return key


def _show(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
