"""What is believed of every agent's load."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedulers import book_of, demand, occupy

from mqttcollab.errors import ConfigError
from mqttcollab.scheduling import LoadBook, Terms
from mqttcollab.scheduling.base import AGENT
from mqttcollab.scheduling.learned import Quantiles
from mqttcollab.scheduling.load import REPORT_AGE_S

NUMBERS = [name for name in AGENT.names or () if name not in ("battery", "drain_per_h", "thermal", "link")]


def load(book: LoadBook, now: float = 0.0, row: int = 0) -> tuple[float, float]:
    """(running, queued), as believed."""
    found = book.fleet(book.candidates([row]), now).rows[0]
    return float(found["running"]), float(found["queued"])


# Quantiles


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_those_of_the_latest_values(values: list[float], share: float) -> None:
    known = Quantiles(64)
    for value in values:
        known.add(value)
    latest = np.array(values[-64:])
    assert len(known) == len(latest)
    found = known.at(share)
    assert found in latest
    # At least this share of them is no greater; numpy interpolates between the same two neighbours.
    assert np.mean(latest <= found) >= share
    assert np.quantile(latest, share, method="lower") <= found or len(latest) == 1 or found == latest.min()


def test_quantiles_by_hand() -> None:
    known = Quantiles()
    for value in (5.0, 1.0, 3.0, 2.0, 4.0):
        known.add(value)
    assert [known.at(share) for share in (0.0, 0.1, 0.4, 0.5, 0.9, 1.0)] == [1, 1, 3, 3, 5, 5]


def test_an_outlier_moves_a_median_no_further_than_to_the_next_value() -> None:
    known = Quantiles()
    for value in (1.0, 2.0, 3.0, 1e12):
        known.add(value)
    assert known.at(0.5) == 3.0


# Rows


def test_rows_keep_their_numbers_as_more_come_and_their_terms_are_brought_up_to_date() -> None:
    book = LoadBook()
    rows = [book.row(f"a{n}", "s", Terms(10.0 + n)) for n in range(100)]
    assert rows == list(range(100)) == [book.row(f"a{n}", "s", Terms(10.0 + n)) for n in range(100)]
    assert len(book) == 100
    assert book.row("a5", "s", Terms(99.0, slots=3, price_usd=0.5)) == 5
    fleet = book.fleet(book.candidates(rows), 0.0)
    assert fleet.name(7) == "a7"
    assert fleet.rows["tokens_per_s"].tolist() == [10.0 + n if n != 5 else 99.0 for n in range(100)]
    assert (fleet.rows["slots"][5], fleet.rows["price_usd"][5]) == (3, 0.5)


@pytest.mark.parametrize(("slots", "believed"), [(0, 1), (-3, 1), (10**400, 1e9)])
def test_an_agent_has_slots_within_reason(slots: int, believed: float) -> None:
    book = LoadBook()
    book.row("a", "s", Terms(slots=slots))
    assert book.fleet(book.candidates([0]), 0.0).rows["slots"][0] == believed


def test_candidates_may_be_in_any_order_and_have_scores() -> None:
    book, _ = book_of({"a": 1.0, "b": 2.0, "c": 3.0})
    fleet = book.fleet(book.candidates([2, 0], [0.5, 0.9]), 0.0)
    assert [fleet.name(0), fleet.name(1)] == ["c", "a"]
    assert fleet.rows["score"].tolist() == [0.5, 0.9]
    fleet.rows["running"] = 7
    assert load(book) == (0, 0), "what a policy is given is a copy"


@pytest.mark.parametrize("field", ["tokens_per_s", "prompt_tokens_per_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_an_impossible_speed_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .*; it must be above 0"):
        Terms(**{field: value})


@pytest.mark.parametrize("field", ["overhead_s", "price_usd", "prompt_usd_per_mtok", "completion_usd_per_mtok"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_an_impossible_time_or_price_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .*; it must be finite and at least 0"):
        Terms(**{field: value})


def test_seconds_prices_and_work_by_hand() -> None:
    book = LoadBook()
    terms = Terms(10.0, 100.0, 2.0, slots=2, price_usd=0.1, prompt_usd_per_mtok=1000.0, completion_usd_per_mtok=2000.0)
    rows = [book.row("a", "s", terms), book.row("b", "s", Terms(20.0, 200.0))]
    fleet, one = book.fleet(book.candidates(rows), 0.0), demand(tokens=50.0, prompt_tokens=300.0)
    assert fleet.seconds(one).tolist() == [2 + 3 + 5, 1.5 + 2.5]
    assert [book.expected_s(row, one) for row in rows] == [10.0, 4.0]
    assert fleet.prices(one).tolist() == pytest.approx([0.1 + 0.3 + 0.1, 0.0])
    assert fleet.work_s(one) == pytest.approx(1 / (2 / 10 + 1 / 4))


def test_of_many_agents_some_stand_for_all() -> None:
    book, candidates = book_of({f"a{n}": 10.0 + n % 7 for n in range(5000)})
    fleet, one = book.fleet(candidates, 0.0), demand()
    assert fleet.work_s(one) == pytest.approx(1 / float(np.sum(1 / fleet.seconds(one))), rel=0.02)


# What we see ourselves


def test_what_we_sent_counts_at_once_and_comes_back_to_nothing() -> None:
    book, candidates = book_of({"a": 3.0}, slots=2)
    took = [book.sent(0, demand(tokens=tokens), 0.0) for tokens in (0.1, 0.7, 1.3)]
    fleet = book.fleet(candidates, 0.0)
    assert load(book) == (2, 1)
    assert fleet.rows["own"][0] == 3
    assert fleet.rows["backlog_s"][0] == pytest.approx(sum(took))
    for seconds in took:
        book.ended(0, seconds, 1.0)
    book.ended(0, 1.0, 1.0)  # once too often
    rows = book.fleet(candidates, 1.0).rows
    assert [rows[field][0] for field in ("own", "backlog_s", "running", "queued")] == [0, 0, 0, 0]


def test_a_row_without_requests_has_no_backlog_whatever_the_agents_other_rows_have() -> None:
    book = LoadBook()
    one, other = book.row("a", "s", Terms(3.0)), book.row("a", "t", Terms(3.0))
    book.sent(other, demand(), 0.0)
    took = [book.sent(one, demand(tokens=tokens), 0.0) for tokens in (0.1, 0.7, 1.3)]
    for seconds in took:
        book.ended(one, seconds, 1.0)
    assert book.fleet(book.candidates([one]), 1.0).rows["backlog_s"][0] == 0


def test_speed_is_learnt_from_the_third_answer_on_and_terms_count_until_then() -> None:
    book, candidates = book_of({"a": 50.0})
    for seconds in (5.0, 10.0):
        book.measured(0, seconds, 100, 100)
    book.row("a", "s", Terms(40.0))
    assert book.fleet(candidates, 0.0).rows["tokens_per_s"][0] == 40
    book.measured(0, 20.0, 100, 100)
    assert book.fleet(candidates, 0.0).rows["tokens_per_s"][0] == 10, "of 5, 10 and 20 a second"
    book.row("a", "s", Terms(30.0))
    assert book.fleet(candidates, 0.0).rows["tokens_per_s"][0] == 10
    assert book.tokens("s") == 100


def test_who_writes_more_than_was_expected_takes_longer() -> None:
    book, candidates = book_of({"a": 50.0})
    for tokens in (300.0, 200.0, 1e9):
        book.measured(0, tokens / 10, tokens, 100)
    assert book.fleet(candidates, 0.0).rows["wordiness"][0] == 3
    assert book.expected_s(0, demand()) == book.fleet(candidates, 0.0).seconds(demand())[0] == 30


def test_without_tokens_seconds_are_learnt() -> None:
    book, candidates = book_of({"a": math.inf})
    assert book.tokens("s") == 100, "nobody knows"
    for seconds in (1.0, 3.0, 2.0):
        book.measured(0, seconds, 0, 100)
    assert book.fleet(candidates, 0.0).rows["overhead_s"][0] == 2
    assert book.expected_s(0, demand()) == 2


@pytest.mark.parametrize(
    ("seconds", "tokens"),
    [(0, 5), (-1, 5), (math.nan, 5), (math.inf, 5), (1, -5), (1, math.nan), (1, math.inf)],
)
def test_what_can_not_have_been_measured_is_passed_over(seconds: float, tokens: float) -> None:
    book, candidates = book_of({"a": 50.0})
    for _ in range(5):
        book.measured(0, seconds, tokens, 100)
    rows = book.fleet(candidates, 0.0).rows
    assert (rows["tokens_per_s"][0], rows["overhead_s"][0]) == (50, 0)
    assert math.isinf(book.straggles_s(0, 1.0))


@pytest.mark.parametrize(("seconds", "tokens"), [(5e-324, 1e300), (1e300, 5e-324)])
def test_a_speed_beyond_reason_does_no_harm(seconds: float, tokens: float) -> None:
    book, candidates = book_of({"a": 50.0})
    for _ in range(3):
        book.measured(0, seconds, tokens, 100)
    fleet = book.fleet(candidates, 0.0)
    assert 0 < fleet.seconds(demand())[0] < math.inf
    assert 0 < fleet.work_s(demand()) < math.inf


def test_who_takes_twice_what_nine_of_ten_took_is_late() -> None:
    book, _ = book_of({"a": 50.0})
    for speed in (10.0,) * 9 + (5.0,) * 2:
        book.measured(0, 100 / speed, 100, 100)
    assert book.straggles_s(0, 4.0) == pytest.approx(2 * 4.0 * 10 / 5)
    assert book.straggles_s(0, 0.01) == 0.5, "but nobody is before half a second"
    other, _ = book_of({"b": math.inf})
    for seconds in (1.0, 2.0, 3.0):
        other.measured(0, seconds, 0, 100)
    assert other.straggles_s(0, 0.0) == 6.0


# Reports


def report(book: LoadBook, running: float, queued: float = 0.0, now: float = 0.0, slots: float = 1.0) -> None:
    book.reported("a", now, running=running, queued=queued, slots=slots)


def test_others_work_is_believed_and_fades_in_about_the_time_that_one_takes() -> None:
    book, _ = book_of({"a": 20.0}, slots=2)  # five seconds for a hundred tokens
    report(book, 2, 1, slots=2)
    assert load(book) == (2, 1)
    assert load(book, 5.0) == (pytest.approx(3 * math.exp(-1)), 0)
    assert book.guessing(14.0)
    assert load(book, 16.0) == (0, 0)
    assert not book.guessing(16.0)


def test_our_own_is_not_counted_twice_even_where_a_report_is_old() -> None:
    book, _ = book_of({"a": 20.0}, slots=4)
    took = book.sent(0, demand(), 0.0)
    report(book, 1, now=0.1, slots=4)
    assert load(book, 0.1) == (1, 0)
    book.ended(0, took, 5.0)
    report(book, 1, now=6.0, slots=4)  # it says how things stood a second ago
    assert load(book, 6.0) == (0, 0)
    report(book, 3, now=6.0, slots=4)
    assert load(book, 6.0) == (2, 0)
    late = 5.0 + REPORT_AGE_S + 1
    report(book, 1, now=late, slots=4)  # no report is as old as that
    assert load(book, late) == (1, 0)


def test_a_report_corrects_the_one_before_and_repeating_it_changes_nothing() -> None:
    book, _ = book_of({"a": 20.0})
    for _ in range(3):
        report(book, 1, 2)
    assert load(book) == (1, 2)
    report(book, 0)
    assert load(book) == (0, 0)


def test_clocks_of_agents_are_never_looked_at_and_ours_may_stand_still() -> None:
    book, _ = book_of({"a": 20.0})
    report(book, 1, now=50.0)
    assert load(book, 50.0) == load(book, 40.0) == (1, 0)


def test_what_others_do_on_an_agent_is_spread_over_its_services() -> None:
    book = LoadBook()
    one, other = book.row("a", "s", Terms(20.0, slots=1)), book.row("a", "t", Terms(20.0, slots=3))
    report(book, 2, slots=4)
    assert [load(book, row=row) for row in (one, other)] == [(0.5, 0), (1.5, 0)]


@pytest.mark.parametrize(
    ("running", "queued", "slots"),
    [
        (-1, 0, 1),
        (0, -1, 1),
        (math.nan, 0, 1),
        (0, math.inf, 1),
        (1, 0, math.nan),
        (10, 0, 1),
        (1, 0, -1),
        (0, 10**400, 1),
    ],
)
def test_an_impossible_load_is_passed_over_and_said_once(
    running: float, queued: float, slots: float, caplog: pytest.LogCaptureFixture
) -> None:
    book, _ = book_of({"a": 20.0})
    report(book, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            report(book, running, queued, slots=slots)
    assert load(book) == (1, 0)
    (line,) = caplog.messages
    assert line.startswith("@a reports an impossible load (") and line.endswith("mend its load report")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_an_impossible_condition_is_not_known(value: float | None) -> None:
    book, candidates = book_of({"a": 20.0})
    condition = {"battery": 0.1, "drain_per_h": 0.2, "thermal": 1.5, "link": 0.5}
    book.reported("a", 0.0, running=0, queued=0, slots=1, **condition)
    assert book.fleet(candidates, 0.0).rows["hardship"][0] > 1
    book.reported("a", 0.0, running=0, queued=0, slots=1, **dict.fromkeys(condition, value))
    rows = book.fleet(candidates, 0.0).rows
    assert rows["hardship"][0] == 1
    assert all(math.isnan(rows[field][0]) for field in condition)


def test_a_stranger_reports_in_vain_and_a_new_row_knows_what_the_agent_said() -> None:
    book = LoadBook()
    report(book, 1)
    book.asleep("a", True)
    book.row("a", "s", Terms())
    assert load(book) == (0, 0)
    book.asleep("a", True)
    book.reported("a", 0.0, running=0, queued=0, slots=1, link=0.5)
    book.row("a", "t", Terms())
    rows = book.fleet(book.candidates([0, 1]), 0.0).rows
    assert rows["asleep"].tolist() == [True, True]
    assert rows["hardship"].tolist() == [2, 2]


# Busy


def test_a_busy_one_is_full_and_each_time_in_vain_counts_for_longer() -> None:
    book, candidates = book_of({"a": 100.0}, slots=2)  # a second for a hundred tokens
    spans = []
    for now in (0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0):
        book.busy(0, now)
        assert load(book, now) == (2, 0)
        later = book.fleet(candidates, now + 1.0).rows["running"][0] / 2
        spans.append(-1 / math.log(later))
    assert spans == pytest.approx([1, 2, 4, 8, 16, 30, 30])
    book.measured(0, 0.0, 0.0, 100)  # it answered; how long it took, it does not say
    book.busy(0, 700.0)
    assert load(book, 701.0)[0] == pytest.approx(2 * math.exp(-1))


def test_a_report_frees_a_busy_one_at_once() -> None:
    book, _ = book_of({"a": 100.0})
    for _ in range(5):
        book.busy(0, 0.0)
    report(book, 0)
    assert load(book) == (0, 0)


@pytest.mark.parametrize(
    ("says", "span"), [(5.0, 5.0), (1e9, 30.0), (math.inf, 30.0), (0.0, 1.0), (-3.0, 1.0), (math.nan, 1.0)]
)
def test_what_a_busy_one_says_counts_within_reason(says: float, span: float) -> None:
    book, _ = book_of({"a": 100.0})
    book.busy(0, 0.0, says)
    assert load(book, 1.0)[0] == pytest.approx(math.exp(-1 / span))


def test_busy_never_takes_away_what_is_known_of_our_own() -> None:
    book = LoadBook()
    one, other = book.row("a", "s", Terms()), book.row("a", "t", Terms())
    occupy(book, one, 4)
    book.busy(other, 0.0)
    assert load(book, row=one) == (1, 3)
    assert load(book, row=other) == (1, 0)
    book.busy(one, 0.0)
    assert load(book, row=one) == (1, 3)


# Anything


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["sent", "ended", "busy", "reported", "measured", "asleep", "row"]),
        st.integers(0, 4),
        st.one_of(st.floats(), st.integers(-3, 30)),
        st.one_of(st.floats(), st.integers(-3, 30)),
        st.floats(-1, 40),
    ),
    max_size=60,
)


@given(EVENTS)
def test_nothing_that_is_said_makes_the_book_impossible(events: list[tuple[str, int, float, float, float]]) -> None:
    book, now = LoadBook(), 0.0
    rows = [book.row(f"a{n % 3}", f"s{n // 3}", Terms(10.0 * (n + 1), slots=n + 1)) for n in range(5)]
    out: list[tuple[int, float]] = []
    for kind, row, x, y, passes in events:
        now += passes  # now and then the clock goes backwards
        if kind == "sent":
            out.append((row, book.sent(row, demand(), now)))
        elif kind == "ended" and out:
            book.ended(*out.pop(row % len(out)), now)
        elif kind == "busy":
            book.busy(row, now, x)
        elif kind == "reported":
            book.reported(f"a{row}", now, running=x, queued=y, slots=3, battery=x, drain_per_h=y, thermal=x, link=y)
        elif kind == "measured":
            book.measured(row, x, y, 100)
        elif kind == "asleep":
            book.asleep(f"a{row}", x > 0)
        elif kind == "row":
            book.row(f"a{row % 3}", f"s{row // 3}", Terms(slots=row))
        believed = book.fleet(book.candidates(rows), now).rows
        for field in NUMBERS:
            assert np.isfinite(believed[field].astype(float)).all(), field
        assert (believed["running"] >= 0).all() and (believed["queued"] >= 0).all()
        assert (believed["running"] <= believed["slots"]).all()
        assert (believed["hardship"] >= 1).all()
        assert [sum(where == row for where, _ in out) for row in rows] == believed["own"].tolist()
        assert (believed["running"] + believed["queued"] >= believed["own"] * (1 - 1e-12)).all()
    for row, seconds in out:
        book.ended(row, seconds, now)
    last = book.fleet(book.candidates(rows), now + 1e6).rows
    for field in ("own", "backlog_s", "running", "queued"):
        assert not last[field].any(), field
