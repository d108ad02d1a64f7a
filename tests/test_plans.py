"""Task graphs: order, shared subtasks, references, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.errors import RequestError
from mqttcollab.messages import MAX_STEP_TEXT, MAX_STEPS, PlanStep
from mqttcollab.plans.plan import (
    MAX_OWN_STEPS,
    MAX_RESULT,
    TaskGraph,
    fill,
    literal,
    make_graph,
    parse,
    references,
    requested,
    whole,
)


def steps(*texts: str) -> list[PlanStep]:
    return [PlanStep(text=text) for text in texts]


def texts(graph: TaskGraph) -> list[str]:
    return [step.text for step in graph.steps]


def test_references_are_found_and_doubled_signs_are_none() -> None:
    assert references("Is #1 greater than #12? ##3, ###4 and # 5") == {1, 12, 4}


def test_a_literal_text_refers_to_nothing_and_is_itself_when_filled() -> None:
    graph = make_graph(steps(literal("Who sang #1 in ##2?")))
    assert references(graph.steps[0].text) == set()
    assert fill(graph.steps[0].text, {}) == "Who sang #1 in ##2?"


@given(st.text(alphabet="#12 a", max_size=40))
def test_any_text_survives_being_made_literal(text: str) -> None:
    graph = whole(text)
    assert fill(graph.steps[0].text, {}) == text
    assert graph.edges == frozenset()


def test_results_are_put_in_but_never_resolved_again() -> None:
    assert fill("Is #1 over #2, ##1?", {1: "#2 of #1", 2: "3"}) == "Is #2 of #1 over 3, #1?"


def test_a_result_is_cut_short() -> None:
    assert fill("See #1", {1: "x" * 10_000}) == "See " + "x" * MAX_RESULT


def test_steps_are_put_in_order_and_renumbered() -> None:
    graph = make_graph(steps("Is #2 over #3?", "A?", "What of #2, ##2?"))
    assert texts(graph) == ["A?", "What of #1, ##2?", "Is #1 over #2?"]
    assert graph.edges == {(2, 1), (3, 1), (3, 2)}


def test_what_is_asked_twice_is_done_once() -> None:
    graph = make_graph(steps("What is my pulse?", "what is  my pulse", "Is #1 over #2?"))
    assert texts(graph) == ["What is my pulse?", "Is #1 over #1?"]
    assert graph.steps[1].after == [1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PlanStep(text="Is 5 mW much?"), PlanStep(text="Is 5 MW much?")),
        (PlanStep(text="What is 3.4 * 2?"), PlanStep(text="What is 3 4 * 2?")),
        (PlanStep(text="A?"), PlanStep(text="A?", service="data.gpt/a")),
        (PlanStep(text="##1?"), PlanStep(text="1?")),
    ],
)
def test_what_only_looks_alike_is_done_twice(one: PlanStep, other: PlanStep) -> None:
    assert len(make_graph([one, other]).steps) == 2


def test_steps_after_another_without_naming_it_keep_their_order() -> None:
    graph = make_graph([PlanStep(text="Is that much?", after=[2]), PlanStep(text="A?")])
    assert texts(graph) == ["A?", "Is that much?"]
    assert graph.steps[1].after == [1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "has no steps"),
        (steps(*(f"step {i}" for i in range(MAX_OWN_STEPS + 1))), f"has {MAX_OWN_STEPS + 1} steps, at most"),
        (steps("A?", "  \n"), "step 2 of the plan is empty"),
        (
            [PlanStep.model_construct(text="x" * (MAX_STEP_TEXT + 1), after=[])],
            "step 1 of the plan has 4001 characters",
        ),
        (steps("A?", "Is #3 so?"), "step 2 refers to #3; the plan has steps #1 to #2"),
        (steps("Is #0 so?"), "step 1 refers to #0"),
        (steps("Is #99999999999999999999 so?"), "step 1 refers to #999999999"),
        ([PlanStep(text="A?", after=[4])], "step 1 refers to #4"),
        (steps("Is #1 so?"), "in a circle, among #1"),
        (steps("A?", "#3", "#4", "#2"), "in a circle, among #2, #3, #4"),
    ],
)
def test_a_bad_plan_is_refused_with_the_step(given: list[PlanStep], message: str) -> None:
    with pytest.raises(RequestError) as error:
        make_graph(given)
    assert error.value.code == "bad_request"
    assert message in error.value.message
    assert "\n" not in error.value.message


def test_a_requester_may_give_more_steps_but_decides_nothing_else() -> None:
    given = [PlanStep(text=f"step {i}", service="data.gpt/a", reason="trust me") for i in range(MAX_STEPS)]
    graph = requested(given)
    assert len(graph.steps) == MAX_STEPS
    assert {(step.service, step.reason) for step in graph.steps} == {("data.gpt/a", None)}
    with pytest.raises(RequestError, match="at most 16"):
        requested([*given, PlanStep(text="one more")])


@pytest.mark.parametrize("shape", [lambda s: json.dumps(s), lambda s: json.dumps({"steps": s}), lambda s: s])
def test_plans_are_read_in_every_form(shape: object) -> None:
    given = ["A?", {"text": "B?", "service": "data.gpt/b", "other": 1}, {"text": "Is #1 so?", "after": [2]}]
    graph = parse(shape(given))  # type: ignore[operator]
    assert texts(graph) == ["A?", "B?", "Is #1 so?"]
    assert [step.service for step in graph.steps] == [None, "data.gpt/b", None]
    assert graph.steps[2].after == [1, 2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "is not JSON"),
        ('{"steps": [{"text": "A', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\x00\xff", "is not JSON"),
        ('"A?"', "no list of steps"),
        ("{}", "no list of steps"),
        ("null", "no list of steps"),
        ("[]", "has no steps"),
        ("[1]", "step 1 of the plan is neither"),
        ('["A?", {"service": "data.gpt/a"}]', "step 2 of the plan is neither"),
        ('[{"text": "A?", "service": "weather"}]', "step 1 of the plan names no service"),
        ('[{"text": "A?", "service": 3}]', "step 1 of the plan names no service"),
        ('[{"text": "A?", "after": "1"}]', 'step 1 of the plan has an "after"'),
        ('[{"text": "A?", "after": [true]}]', 'step 1 of the plan has an "after"'),
        ('[{"text": "A?", "after": [-1]}]', "step 1 refers to #-1"),
        (json.dumps(["A?"] * 9), "has 9 steps, at most 8"),
        (json.dumps(["x" * 5000]), "has 5000 characters"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(source: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        parse(source)
    assert error.value.code == "bad_request"
    assert message in error.value.message
    assert "\n" not in error.value.message
    assert len(error.value.message) < 400


def test_a_whole_question_is_cut_where_a_step_ends() -> None:
    graph = whole("#" * 100_000)
    assert len(graph.steps[0].text) <= MAX_STEP_TEXT
    assert graph.edges == frozenset()
