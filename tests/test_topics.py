"""Names, topics and filters: what is built parses, what is wrong is refused by name."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.errors import TopicError
from mqttcollab.topics import (
    MAX_LEVELS,
    ZONES,
    Status,
    Topic,
    agent_topic,
    anycast_filter,
    cancel_topic,
    check_agent,
    check_id,
    check_service,
    data_topic,
    matches,
    parse,
    parse_reply_topic,
    parse_status,
    record_filters,
    record_topic,
    reply_topic,
    request_topic,
    slm_topic,
)

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
SERVICE = st.builds(
    lambda zone, labels: "/".join([zone, *labels]),
    st.sampled_from(ZONES),
    st.lists(LABEL, min_size=1, max_size=4),
)
ID = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True)


# --- what is built parses to what it was built from


@given(SERVICE, LABEL)
def test_service_topics_parse_to_what_they_were_built_from(service: str, agent: str) -> None:
    assert parse(record_topic(service, agent)) == Topic("record", service, agent)
    assert parse(request_topic(service, agent)) == Topic("request", service, agent)
    assert parse(request_topic(service)) == Topic("anycast", service)
    assert parse(cancel_topic(service, agent)) == Topic("cancel", service, agent)


@given(st.lists(LABEL, min_size=1, max_size=4), LABEL, st.sampled_from(["embedding", "observation"]))
def test_data_topics_parse_to_what_they_were_built_from(labels: list[str], agent: str, kind: str) -> None:
    service = "/".join(["data.gpt", *labels])
    assert parse(data_topic(service, agent, kind)) == Topic(kind, service, agent)  # type: ignore[arg-type]


@given(LABEL, ID, st.sampled_from(["status", "profile", "load"]))
def test_agent_topics_parse_to_what_they_were_built_from(agent: str, request_id: str, leaf: str) -> None:
    topic = reply_topic(agent, request_id)
    assert parse(topic) == parse_reply_topic(topic) == Topic("reply", agent=agent, leaf=request_id)
    assert parse(agent_topic(agent, leaf)) == Topic(leaf, agent=agent)  # type: ignore[arg-type]


@given(ID, st.lists(ID, min_size=1, max_size=8))
def test_store_topics_parse_or_are_refused_when_built(model: str, key: list[str]) -> None:
    if 3 + len(key) > MAX_LEVELS:
        with pytest.raises(TopicError, match="levels"):
            slm_topic("models", model, "/".join(key))
    else:
        topic = slm_topic("models", model, "/".join(key))
        assert parse(topic) == Topic("slm", leaf="/".join(["models", model, *key]))


@given(SERVICE, LABEL)
def test_no_topic_has_more_than_eight_levels(service: str, agent: str) -> None:
    for topic in (request_topic(service, agent), cancel_topic(service, agent), request_topic(service)):
        assert len(topic.split("/")) <= MAX_LEVELS


@given(SERVICE, LABEL)
def test_filters_match_what_they_are_for_and_nothing_else(service: str, agent: str) -> None:
    assert matches(anycast_filter(service), request_topic(service))
    assert not matches(anycast_filter(service), request_topic(service, agent))
    topics = [record_topic(service, agent), request_topic(service, agent), agent_topic(agent, "status")]
    assert [sum(matches(f, topic) for f in record_filters(agent)) for topic in topics] == [1, 0, 0]


@given(st.text(max_size=40) | st.text("@+#/.adgptrqueslm-", max_size=40))
def test_any_text_parses_or_is_refused_by_name(text: str) -> None:
    for check in (parse, check_agent, check_service, check_id, parse_reply_topic):
        try:
            check(text)
        except TopicError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 400


@given(st.data(), SERVICE, LABEL, ID)
def test_whatever_parses_can_be_published_to(data: st.DataObject, service: str, agent: str, key: str) -> None:
    topic = data.draw(
        st.sampled_from([request_topic(service, agent), reply_topic(agent, key), slm_topic("models", key, key)])
    )
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(topic))] * 2)))
    changed = topic[:start] + data.draw(st.text(max_size=2) | st.text("/+#@.", max_size=2)) + topic[end:]
    try:
        parse(changed)
    except TopicError:
        return
    assert set(changed) <= set(string.ascii_letters + string.digits + "@./_-")
    assert "" not in changed.split("/")


# --- what is wrong is said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "starts with no zone"),
        ("medicine/cardiology", "starts with no zone"),
        ("Knowledge.gpt/medicine", "starts with no zone"),
        ("knowledge.gpt", "come 1 to 4 labels"),
        ("knowledge.gpt/", "come 1 to 4 labels"),
        ("knowledge.gpt/a/b/c/d/e", "come 1 to 4 labels"),
        ("knowledge.gpt/Medicine", "come 1 to 4 labels"),
        ("knowledge.gpt/-medicine", "come 1 to 4 labels"),
        ("knowledge.gpt/medicine-", "come 1 to 4 labels"),
        ("knowledge.gpt/" + "a" * 64, "come 1 to 4 labels"),
        ("knowledge.gpt/medicine\n", "come 1 to 4 labels"),
        ("knowledge.gpt/médecine", "come 1 to 4 labels"),
        ("knowledge.gpt/@watch-7", "come 1 to 4 labels"),
        ("knowledge.gpt/+", "has a wildcard"),
        ("knowledge.gpt/#", "has a wildcard"),
        ("knowledge.gpt/medicine/#", "has a wildcard"),
    ],
)
def test_service_names_that_are_refused(name: str, reason: str) -> None:
    with pytest.raises(TopicError, match=reason):
        check_service(name)


@pytest.mark.parametrize("name", ["", "@watch-7", "Watch", "watch_7", "-w", "w-", "a/b", "+", "#", "a" * 64, "w\n"])
def test_agent_names_that_are_refused(name: str) -> None:
    with pytest.raises(TopicError, match="is not a DNS label"):
        check_agent(name)


@pytest.mark.parametrize("key", ["", "a/b", "+", "#", ".", "-a", "a" * 129, "a b", "é"])
def test_ids_that_are_refused(key: str) -> None:
    with pytest.raises(TopicError, match="can't be a topic level"):
        check_id(key)


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("", "none of the protocol's"),
        ("sport/tennis", "none of the protocol's"),
        ("reply.gpt/@a", "none of the protocol's"),
        ("reply.gpt/a/b", "none of the protocol's"),
        ("reply.gpt/@a/b/c", "none of the protocol's"),
        ("slm/agents/watch-7/status", "none of the protocol's"),
        ("slm/agents/@watch-7/mood", "none of the protocol's"),
        ("slm/models", "none of the protocol's"),
        ("slm/models//x", "can't be a topic level"),
        ("slm/models/+/x", "can't be a topic level"),
        ("slm/models/m/#", "can't be a topic level"),
        ("knowledge.gpt/medicine", "names no agent"),
        ("knowledge.gpt/request", "names no agent"),
        ("knowledge.gpt/medicine/@a/answer", "ends in 'answer'"),
        ("knowledge.gpt/medicine/@a/@b", "ends in '@b'"),
        ("knowledge.gpt/+/@a/request", "has a wildcard"),
        ("knowledge.gpt/medicine/@+/request", "is not a DNS label"),
        ("knowledge.gpt/@a", "come 1 to 4 labels"),
        ("/".join(["knowledge.gpt", *"abcdefgh"]), "has 9 levels; at most 8"),
    ],
)
def test_topics_that_are_refused(topic: str, reason: str) -> None:
    with pytest.raises(TopicError, match=reason):
        parse(topic)


@pytest.mark.parametrize(
    "topic", ["knowledge.gpt/medicine/@a/request", "slm/agents/@a/status", "sport", "reply.gpt/@a/+", "#"]
)
def test_nobody_is_made_to_publish_anywhere_but_to_a_reply_topic(topic: str) -> None:
    with pytest.raises(TopicError):
        parse_reply_topic(topic)


@pytest.mark.parametrize("kind", ["embedding", "observation"])
def test_only_data_services_have_observations(kind: str) -> None:
    with pytest.raises(TopicError, match=r"under data\.gpt/"):
        data_topic("knowledge.gpt/medicine", "a", kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (("models", "+", "x"), "can't be a topic level"),
        (("models", "m", ""), "can't be a topic level"),
        (("models", "smol/lm", "x"), "can't be a topic level"),
        (("mo/#", "m", "x"), "can't be a topic level"),
        (("agents", "@watch-7", "status"), "can't be a topic level"),
        (("agents", "watch-7", "mood"), "none of the protocol's"),
    ],
)
def test_keys_of_the_store_that_are_refused(key: tuple[str, str, str], reason: str) -> None:
    with pytest.raises(TopicError, match=reason):
        slm_topic(*key)


# --- presence


@given(st.sampled_from(["online", "sleeping", "offline"]), st.integers(0, 10**19))
def test_status_round_trip(state: str, epoch: int) -> None:
    assert parse_status(f"{state} {epoch}\n".encode()) == (state, epoch, "")


@given(st.integers(0, 10**19), st.text())
def test_a_degraded_status_gives_its_reason_in_one_short_line(epoch: int, reason: str) -> None:
    status = parse_status(Status("degraded", epoch, reason).payload)
    assert status[:2] == ("degraded", epoch)
    assert status == parse_status(status.payload) == parse_status(f"degraded {epoch} {status.reason}".encode())
    assert len(status.reason) <= 200 and status.reason == status.reason.strip()
    assert all(c.isprintable() for c in status.reason)
    if len(reason) <= 200:
        assert status.reason.split() == "".join(c if c.isprintable() else " " for c in reason).split()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"degraded 7", ""),
        (b"degraded 7 \n", ""),
        (b"degraded 7 disk full", "disk full"),
        (b"degraded 7  a\x00b\r\nc\x1b[2J\tsd", "a b c [2J sd"),
        ("degraded 7 Gerät heiß; \u202eevil".encode(), "Gerät heiß; evil"),
        (b"degraded 7 \xff\xfe!", "\ufffd\ufffd!"),
        (b"degraded 7 " + b"x" * 100_000, "x" * 200),
    ],
)
def test_reasons(payload: bytes, reason: str) -> None:
    assert parse_status(payload) == ("degraded", 7, reason)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_status_or_refused(payload: bytes) -> None:
    try:
        assert parse_status(payload).state in ("online", "sleeping", "degraded", "offline")
    except TopicError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"online",
        b"online -1",
        b"awake 1",
        b"online 1 2",
        b"degraded",
        b"degraded disk full",
        b"degraded x 7",
        b"online \xd9\xa1",
    ],
)
def test_statuses_that_are_refused(payload: bytes) -> None:
    with pytest.raises(TopicError, match="is not 'online"):
        parse_status(payload)


# --- filters, with the examples of MQTT 5, section 4.7


@pytest.mark.parametrize(
    ("filter_", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/player1/#", "sport/tennis/player2", False),
        ("sport/#", "sport", True),
        ("#", "any/thing/at/all", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("sport", "sport", True),
        ("sport", "sport/tennis", False),
        ("$share/group/sport/+", "sport/tennis", True),
        ("$share/group/sport/+", "group/sport/tennis", False),
    ],
)
def test_filters(filter_: str, topic: str, expected: bool) -> None:
    assert matches(filter_, topic) is expected
