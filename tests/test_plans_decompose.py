"""Decomposition without a model: clauses, operands, relevance, learned structure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mqttcollab.errors import ConfigError, RequestError
from mqttcollab.messages import MAX_STEP_TEXT, Plan, Relevance
from mqttcollab.plans.decompose import ClauseDecomposer, Decomposer, Decomposition
from mqttcollab.plans.structure import Structure, StructureModel, structure_of
from mqttcollab.plans.wording import worded

WORDS = {
    "data.gpt/weather": ("temperature", "hot", "rain", "weather"),
    "data.gpt/health/heart": ("pulse", "heart"),
    "computation.gpt/arithmetic": ("17+25", "80", "multiply"),
}


def touched(text: str) -> list[Relevance]:
    """A service is touched where one of its words stands in the text."""
    return [
        Relevance(service=service, score=1.0, probability=0.9, reason="")
        for service, words in WORDS.items()
        if any(word in text.lower() for word in words)
    ]


def told(found: Decomposition) -> list[tuple[str, list[int]]]:
    return [(step.text, step.after) for step in found.graph.steps]


async def test_the_default_is_a_decomposer_and_its_plan_fits_a_message() -> None:
    decomposer = ClauseDecomposer()
    assert isinstance(decomposer, Decomposer)
    found = await decomposer.decompose("How hot is it and is that too hot to run?")
    assert (found.origin, found.reason) == ("clauses", "it asks 2 things")
    assert told(found) == [("How hot is it?", []), ("Is that too hot to run?", [1])]
    plan = Plan(origin=found.origin, reason=found.reason, steps=list(found.graph.steps))
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is my heart rate and multiply it by 2", [("What is my heart rate?", []), ("Multiply #1 by 2.", [1])]),
        (
            "Tell me my pulse and compare it with the weather.",
            [("Tell me my pulse.", []), ("What is the weather?", []), ("Compare #1 with #2.", [1, 2])],
        ),
        (
            "What is the temperature and what is 2 times the temperature?",
            [("What is the temperature?", []), ("What is 2 times #1?", [1])],
        ),
        (
            "What is 2 times the temperature and is that more than my pulse?",
            [("What is the temperature?", []), ("What is 2 times #1?", [1]), ("Is that more than my pulse?", [2])],
        ),
        ("Who sang #1 and what is 2+2?", [("Who sang ##1?", []), ("What is 2+2?", [])]),
        ("What is my pulse, and what is twice that?", [("What is my pulse?", []), ("What is twice #1?", [1])]),
        ("What is my pulse and double it", [("What is my pulse?", []), ("What is twice #1?", [1])]),
        ("How hot is it? And half of it?", [("How hot is it?", []), ("What is half of #1?", [1])]),
        (
            "What is 3 times 4 and what is the square root of that?",
            [("What is 3 times 4?", []), ("What is the square root of #1?", [1])],
        ),
    ],
)
def test_clauses_and_their_calculations_become_one_graph(question: str, expected: list[tuple[str, list[int]]]) -> None:
    assert told(ClauseDecomposer().split(question)) == expected


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("What is my pulse?", "it asks one thing"),
        ("What is #1?", "it asks one thing"),
        ("What is my pulse? What is my pulse?", "it asks one thing twice"),
        ("".join(f"What is {i}+1? " for i in range(9)), "it takes 9 steps, more than 8: not split"),
        ("What is 17+25? " * 7000, "it has 105000 characters: not split"),
        ("#" * 100_000, "it has 100000 characters: not split"),
    ],
)
def test_what_stays_whole_says_why(question: str, reason: str) -> None:
    found = ClauseDecomposer().split(question)
    assert (found.origin, found.reason) == ("whole", reason)
    assert len(found.graph.steps) == 1
    assert len(found.graph.steps[0].text) <= MAX_STEP_TEXT
    assert found.graph.edges == frozenset()


def test_the_longest_question_that_is_split_fits_its_steps() -> None:
    lead = "If " + "#" * 1380 + ", "
    found = ClauseDecomposer().split(lead + "what should I wear and how much should I drink?")
    assert found.origin == "clauses"
    assert max(len(step.text) for step in found.graph.steps) <= MAX_STEP_TEXT


@pytest.mark.parametrize("question", ["", "  \n\t "])
async def test_an_empty_question_is_refused(question: str) -> None:
    with pytest.raises(RequestError, match="the question is empty") as error:
        await ClauseDecomposer().decompose(question)
    assert error.value.code == "bad_request"


@pytest.mark.parametrize(
    "question",
    [
        "What is my pulse and is half of it enough?",
        "How do I proof the dough and double it?",
        "Are bunk and double beds dear?",
    ],
)
def test_a_share_that_is_not_asked_for_is_no_step(question: str) -> None:
    assert ClauseDecomposer().split(question).origin == "whole"


# --- turns to something else


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("rain at the road? and how fast does my heart beat?", ["rain at the road?", "how fast does my heart beat?"]),
        ("a hot day, and by the way 17+25?", ["a hot day", "17+25?"]),
        ("my pulse. One more thing, the weather", ["my pulse", "the weather"]),
        ("rain? my pulse? 17+25?", ["rain?", "my pulse?", "17+25?"]),
        ("no rain! Incidentally, my pulse", ["no rain!", "my pulse"]),
    ],
)
def test_a_turn_to_another_service_splits(question: str, parts: list[str]) -> None:
    found = ClauseDecomposer(touched).split(question)
    assert told(found) == [(part, []) for part in parts]
    assert found.origin == "clauses"


@pytest.mark.parametrize(
    "question",
    [
        "I feel my pulse! Is my heart in order?",  # one service for both
        "so hot? and by the way such rain?",
        "rain, by the way jazz",  # nobody for the second
        "jazz! and my pulse",
        "rain by the wayside inn of my heart",
        "rain, besides",
        "? ! ?",
    ],
)
def test_what_stays_with_one_service_or_goes_nowhere_is_no_turn(question: str) -> None:
    assert ClauseDecomposer(touched).split(question).origin == "whole"


def test_without_relevance_nothing_is_a_turn() -> None:
    assert ClauseDecomposer().split("a hot day, and by the way 17+25?").origin == "whole"


# --- what services touch


@pytest.mark.parametrize(
    ("question", "count"),
    [
        ("What is 17+25 and what is the temperature?", 2),
        ("What is 17+25 and who wrote Hamlet?", 2),
        ("Multiply my heart rate by 2", 2),
        ("How hot is it and is that too much?", 2),
        ("Who wrote Hamlet and who was Goethe?", 1),
        ("Is the pen better than the sword?", 1),
    ],
)
def test_a_question_is_split_where_services_cover_it(question: str, count: int) -> None:
    found = ClauseDecomposer(touched).split(question)
    assert len(found.graph.steps) == count
    assert (found.origin, "no service here covers" in found.reason) == (
        ("whole", True) if count == 1 else ("clauses", False)
    )


# --- structure


NAMES = [a + b for a in ("Ada", "Bel", "Cor", "Dan", "Eva", "Fri", "Gus", "Hel") for b in "bdklmnrs"]


def examples(count: int = len(NAMES)) -> list[tuple[str, list[str]]]:
    two = [(f"Did {name} live in {name}burg?", ["Where did they live?", "Is #1 so?"]) for name in NAMES[:count]]
    three = [
        (f"Was {name} older than {name}us?", ["How old is A?", "How old is B?", "Is #1 more than #2?"])
        for name in NAMES[:count]
    ]
    return two + three


@pytest.fixture(scope="module")
def model() -> StructureModel:
    return StructureModel.train(examples())


def test_a_structure_is_read_from_texts() -> None:
    assert structure_of(["A?", "Is #1 so?", "#1 #2 #3 #9 ##1?"]) == Structure(3, frozenset({(2, 1), (3, 1), (3, 2)}))


def test_a_structure_is_learned_from_cues(model: StructureModel) -> None:
    assert model.choose("Was Caesar older than Brutus?")[0] == Structure(3, frozenset({(3, 1), (3, 2)}))
    assert model.choose("Did Goethe live in Weimar?")[0] == Structure(2, frozenset({(2, 1)}))
    assert model.probabilities("Did Goethe live in Weimar?").sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("question", "known"),
    [
        ("Did Goethe live in Weimar?", True),
        ("What did Goethe write?", False),
        ("Tell me of Goethe?", False),
        ("Is my pulse too high?", False),
        ("Can I run now?", False),
        ("I feel dizzy.", False),
        ("Did " + "Goethe and Schiller, " * 50 + "live?", False),
    ],
)
def test_a_model_says_which_questions_it_knows(model: StructureModel, question: str, known: bool) -> None:
    assert model.knows(question) is known


def test_a_known_question_gets_the_learned_structure(model: StructureModel) -> None:
    found = ClauseDecomposer(structure=model).split("Did Goethe live in Weimar?")
    assert (found.origin, len(found.graph.steps), found.graph.edges) == ("structure", 2, {(2, 1)})
    assert found.confidence == model.choose("Did Goethe live in Weimar?")[1]
    assert found.graph.steps[1].text == "Given #1: Did Goethe live in Weimar?"
    assert ClauseDecomposer(structure=model).split("Is my pulse too high?").origin == "whole"


def test_what_a_service_covers_or_none_covers_is_not_taken_apart(model: StructureModel) -> None:
    decomposer = ClauseDecomposer(touched, structure=model)
    assert decomposer.split("Did Goethe live in rain?").origin == "whole"
    assert decomposer.split("Did Goethe live in Weimar?").origin == "whole"


@pytest.mark.parametrize(
    "structure",
    [
        Structure(1),
        Structure(4),
        Structure(3, frozenset({(2, 1), (3, 2)})),
        Structure(5, frozenset({(3, 1), (3, 2), (4, 1), (4, 2), (5, 3), (5, 4)})),
    ],
)
@pytest.mark.parametrize(
    "question", ["Did Goethe live in #1?", "?", "Was it?", "Would a big dog fit into a small bag?"]
)
def test_steps_are_worded_for_any_structure(structure: Structure, question: str) -> None:
    assert structure_of([step.text for step in worded(question, structure)]) == structure


def test_a_model_is_saved_and_loaded(model: StructureModel, tmp_path: Path) -> None:
    path = tmp_path / "structure.json"
    model.save(path)
    loaded = StructureModel.load(path)
    assert np.array_equal(loaded.weights, model.weights)
    for question, _ in examples(5):
        assert loaded.choose(question) == model.choose(question)
        assert loaded.knows(question) is model.knows(question)


def damaged(**changes: Any) -> Any:
    return lambda content: {**content, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: [], "is no structure model"),
        (damaged(type="mqttcollab.structure.v9"), "is no structure model"),
        (damaged(cues=["a"]), "trained on other cues"),
        (damaged(weights=[[1.0]]), "weights is not"),
        (damaged(mean=["x"]), "damaged structure model"),
        (damaged(deviation=None), "damaged structure model"),
        (damaged(structures=[]), "damaged structure model"),
        (
            damaged(structures=[{"count": 2, "edges": [[1, 2]]}, {"count": 1, "edges": []}]),
            "references don't point back",
        ),
        (lambda content: {k: v for k, v in content.items() if k != "share"}, "damaged structure model"),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(
    model: StructureModel, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "structure.json"
    model.save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ConfigError, match=message) as error:
        StructureModel.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_models_are_refused(model: StructureModel, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x80\xff\x00")
    for path, message in (
        (tmp_path / "missing", "can't read"),
        (tmp_path, "can't read"),
        (tmp_path / "binary", "not JSON"),
    ):
        with pytest.raises(ConfigError, match=message):
            StructureModel.load(path)
    with pytest.raises(ConfigError, match="can't write"):
        model.save(tmp_path)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match="49 decompositions are too few"):
        StructureModel.train(examples()[:49])
