"""The router finds exactly the handlers whose filter matches, and forgets what was removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.topics import matches
from mqttcollab.transport.base import TransportMessage
from mqttcollab.transport.router import Router

NAMES = st.sampled_from(["a", "b", "$x", ""])
TOPICS = st.lists(NAMES, min_size=1, max_size=4).map("/".join).filter(bool)
PLAIN = st.builds(
    lambda levels, rest: "/".join([*levels, *rest]),
    st.lists(NAMES | st.just("+"), min_size=1, max_size=4),
    st.sampled_from([[], ["#"]]),
)
FILTERS = (PLAIN | st.just("#") | PLAIN.map("$share/group/{}".format)).filter(bool)


def called(router: Router, seen: list[str], topic: str) -> list[str]:
    seen.clear()
    router.route(TransportMessage(topic, b""))
    return sorted(seen)


@given(st.sets(FILTERS, max_size=12), st.data(), TOPICS)
def test_it_calls_exactly_the_handlers_that_match(filters: set[str], data: st.DataObject, topic: str) -> None:
    router, seen = Router(), []
    for filter_ in filters:
        router.add(filter_, lambda _, f=filter_: seen.append(f), 1)
    assert called(router, seen, topic) == sorted(f for f in filters if matches(f, topic))
    removed = data.draw(st.sets(st.sampled_from(sorted(filters)))) if filters else set()
    for filter_ in removed:
        assert router.remove(filter_)
    assert called(router, seen, topic) == sorted(f for f in filters - removed if matches(f, topic))


@given(st.sets(FILTERS, max_size=12))
def test_removing_everything_leaves_nothing(filters: set[str]) -> None:
    router = Router()
    for filter_ in filters:
        router.add(filter_, lambda _: None, 1)
    for filter_ in filters:
        assert router.remove(filter_)
        assert not router.remove(filter_)
    assert router.filters == {} and router._root.below == {}


def test_a_handler_that_fails_does_not_keep_the_message_from_the_others() -> None:
    router, seen = Router(), []

    def fail(_: TransportMessage) -> None:
        raise ValueError("on purpose")

    router.add("a/+", fail, 1)
    router.add("a/b", lambda message: seen.append(message.topic), 1)
    router.route(TransportMessage("a/b", b""))
    assert seen == ["a/b"]


def test_a_handler_may_subscribe_while_it_is_called() -> None:
    router, seen = Router(), []

    def more(message: TransportMessage) -> None:
        seen.append(message.topic)
        router.add("a/#", lambda _: seen.append("a/#"), 1)

    router.add("a/+", more, 1)
    router.route(TransportMessage("a/b", b""))
    assert seen == ["a/b"]
    router.route(TransportMessage("a/c", b""))
    assert sorted(seen[1:]) == ["a/#", "a/c"]
