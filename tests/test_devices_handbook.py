"""The first-aid handbook: its contents, and what retrieval finds for questions that nobody tuned it for."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices import HERE
from devices.analysis.handbook import Handbook, load
from mqttcollab.errors import ConfigError
from mqttcollab.runtimes.embedders import load_embedder

HANDBOOK = HERE / "data" / "first_aid.toml"

# Written after the phrasings of the entries and the threshold were tuned (on other questions), and not used for that;
# by the same author, though.
QUESTIONS = [
    ("Grandpa's speech is garbled and one side of his face hangs down", "stroke"),
    ("There's a heavy weight on my chest and I'm sweating", "chest-pain"),
    ("A passenger isn't breathing and has no heartbeat", "cardiac-arrest-adult"),
    ("My husband is choking on a piece of steak", "choking"),
    ("I scalded my foot with hot tea", "burn"),
    ("Some oven spray got in her eyes", "chemical-eye"),
    ("He cut an artery and the blood just keeps coming", "severe-bleeding"),
    ("I scratched my knee when I fell off my bike", "minor-cut"),
    ("How do you stop a bloody nose?", "nosebleed"),
    ("After the bee sting she can hardly breathe and her tongue is swollen", "anaphylaxis"),
    ("A wasp stung my foot and it hurts", "insect-sting"),
    ("What is the right way to pull out a tick?", "tick"),
    ("The neighbour's dog bit my hand", "animal-bite"),
    ("I was bitten by a snake in the garden", "snake-bite"),
    ("My daughter's asthma got bad and her spray is empty", "asthma"),
    ("My brother has an epileptic seizure right now", "seizure"),
    ("My diabetic mother is shaking, is her sugar too low?", "low-sugar"),
    ("The runner's skin is hot, he is confused and collapsed from the heat", "heat-stroke"),
    ("I was sick five times tonight and have diarrhoea", "dehydration"),
    ("I fell asleep in the sun and now my skin is red and burning", "sunburn"),
    ("We found a man in the snow, he is freezing and hardly reacts", "hypothermia"),
    ("The boy drank paint thinner", "poisoning"),
    ("The carbon monoxide detector went off", "carbon-monoxide"),
    ("She bumped her head badly and now she's throwing up", "head-injury"),
    ("I turned my ankle at volleyball and it's getting thick", "sprain"),
    ("I believe he broke his leg skiing", "fracture"),
    ("My baby is hot and has a temperature of 39 degrees", "fever"),
    ("My heart is hammering and skips beats", "racing-heart"),
    ("When I get out of bed the room spins", "dizziness"),
    ("I almost fainted on the bus", "fainting"),
    ("A tooth got knocked out at football", "tooth"),
    ("He touched the cable and got electrocuted", "electric-shock"),
]
OTHER = [
    "What is 17 + 25?",
    "Who won the 1998 world cup?",
    "Write a poem about autumn",
    "What is the capital of Australia?",
    "Evaluate the environmental risks of setting up an outdoor event here this afternoon",
    "Where can I park my bicycle?",
    "How do I learn the guitar?",
    "Which printer ink do I need?",
    "When does the museum open?",
    "What does this word mean in Italian?",
    "How many litres are in a gallon?",
    "Is there a bus to the airport?",
]


@pytest.fixture(scope="module")
def handbook() -> Handbook:
    return Handbook(load(HANDBOOK), load_embedder("wordllama"))


def test_every_entry_is_complete() -> None:
    contents = load(HANDBOOK)
    assert len(contents.entries) >= 40
    assert len({entry.id for entry in contents.entries}) == len(contents.entries)
    for entry in contents.entries:
        assert len(entry.when) >= 3, entry.id
        assert len(entry.steps) >= 3, entry.id
        assert any(name in entry.source for name in ("WHO", "IFRC", "ERC", "NHS", "AHA")), entry.id


def test_finds_the_right_entry_for_paraphrased_questions(handbook: Handbook) -> None:
    found = {question: handbook.find(question, most=2) for question, _ in QUESTIONS}
    first = [question for question, wanted in QUESTIONS if [item.entry.id for item in found[question][:1]] == [wanted]]
    wrong = [
        (question, [item.entry.id for item in found[question]]) for question, _ in QUESTIONS if question not in first
    ]
    assert len(first) >= 0.9 * len(QUESTIONS), wrong


def test_two_symptoms_find_both_entries(handbook: Handbook) -> None:
    found = handbook.find("I feel dizzy and my heart is racing. What should I do?", most=2)
    assert {item.entry.id for item in found} == {"racing-heart", "dizziness"}


@pytest.mark.parametrize("question", [*OTHER, "", "   ", "?!", "zzz qqq"])
def test_has_nothing_about_other_things(handbook: Handbook, question: str) -> None:
    assert handbook.find(question) == []


def test_words_alone_find_what_is_worded_alike() -> None:
    handbook = Handbook(load(HANDBOOK), None)
    assert handbook.find("my nose is bleeding")[0].entry.id == "nosebleed"
    assert handbook.find("write a poem about autumn") == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = ", "is not TOML"),
        ("", "has no"),
        (
            '[[entry]]\nid = "a"\ntitle = "A"\nwhen = ["a"]\nsteps = ["b"]\nemergency = "c"',
            "source is missing",
        ),
    ],
)
def test_a_bad_handbook_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "book.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load(path)


def test_a_missing_handbook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml")
