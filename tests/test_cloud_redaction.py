"""What is taken out before anything leaves, what is not, and that it can be put back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.cloud.redaction import Redactor

ALL = Redactor(words=["Alice Smith", "alice"], patterns={"BADGE": r"B-\d{6}"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+news@mail.example.co.uk.", "Write to [EMAIL-1]."),
        ("<müller@bücher.example>", "<[EMAIL-1]>"),
        ("a@b.de and c@d.de, a@b.de", "[EMAIL-1] and [EMAIL-2], [EMAIL-1]"),
        ("Call +49 171 1234567 now", "Call [PHONE-1] now"),
        ("Call 0049-30-123456", "Call [PHONE-1]"),
        ("Call 0171 1234567 or (030) 123 45 67", "Call [PHONE-1] or [PHONE-2]"),
        ("Call 01711234567.", "Call [PHONE-1]."),
        ("Call (212) 555-0123, 212-555-0123, 1-800-555-0199", "Call [PHONE-1], [PHONE-2], [PHONE-3]"),
        ("IBAN DE89 3704 0044 0532 0130 00 and more", "IBAN [IBAN-1] and more"),
        ("to GB29NWBK60161331926819 DE89370400440532013000", "to [IBAN-1] [IBAN-2]"),
        ("4111 1111 1111 1111, 4111111111111111, 3782-822463-10005", "[CARD-1], [CARD-2], [CARD-3]"),
        ("order 123 4111 1111 1111 1111", "order 123 [CARD-1]"),
        ("from 192.168.1.17 to 10.0.0.1.", "from [IP-1] to [IP-2]."),
        ("at 2001:db8::8a2e:370:7334, ::1 and fe80::", "at [IP-1], [IP-2] and [IP-3]"),
        ("I am at 40.7128, -74.0060 now", "I am at [COORDINATES-1] now"),
        ("40.7128° N, 74.0060° W", "[COORDINATES-1]"),
        ("48°51'24\" N", "[COORDINATES-1]"),
        ('{"lat": 48.85, "lon": 2.35}', '{"lat": [COORDINATES-1], "lon": [COORDINATES-2]}'),
        ("latitude 48.85", "latitude [COORDINATES-1]"),
        ("alice smith met ALICE", "[WORD-1] met [WORD-2]"),
        ("badge B-123456", "badge [BADGE-1]"),
        ("[EMAIL-1] is a@b.de", "[EMAIL-1] is [EMAIL-2]"),
    ],
)
def test_what_is_taken_out(text: str, expected: str) -> None:
    redacted = ALL.redact([text])
    assert redacted.texts == [expected]
    assert redacted.restore(expected) == text
    assert redacted.count == sum(expected.count(f"{name}") for name in redacted.values)


@pytest.mark.parametrize(
    "text",
    [
        "What is 17 + 25?",
        "What is 123456789 * 987654321?",
        "pi is 3.14159265358979",
        "0.12345678 and 1.5, 2.25",
        "on 2013-07-20 at 18:00:05, or 20.07.2013, or 01/02/2013 12:30",
        "numbers 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "1111 2222 3333 4445",  # Luhn says no
        "DE00 ABCD EFGH IJKL MNOP",  # mod 97 says no
        "version 1.2.3.4.5, 999.1.1.1, std::vector, 12:30",
        "the malice of @watch-7",
        "heart rate 72 bpm, RMSSD 41.2 ms",
        "It is 20 ° C and 5 N",
    ],
)
def test_what_stays(text: str) -> None:
    assert ALL.redact([text]).texts == [text]


def test_a_value_has_one_placeholder_in_all_the_texts() -> None:
    redacted = ALL.redact(["I am a@b.de", "- the user is a@b.de, not x@y.de"])
    assert redacted.texts == ["I am [EMAIL-1]", "- the user is [EMAIL-1], not [EMAIL-2]"]
    assert redacted.count == 3


def test_only_the_kinds_that_are_wished_for() -> None:
    assert Redactor(["ip"]).redact(["a@b.de 10.0.0.1"]).texts == ["a@b.de [IP-1]"]
    assert Redactor([]).redact(["a@b.de 10.0.0.1"]).texts == ["a@b.de 10.0.0.1"]


def test_what_overlaps_is_taken_out_as_a_whole() -> None:
    redactor = Redactor(["email"], patterns={"ODD": r"de \w+"})
    assert redactor.redact(["it is a@b.de now"]).texts == ["it is [ODD-1]"]


PIECES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["a@b.de", "+49 171 1234567", "10.0.0.1", "[EMAIL-1]", "[EMAIL-", "1]", "[", "B-123456", "alice"]),
    st.sampled_from(["4111 1111 1111 1111", "DE89370400440532013000", "40.7128, -74.0060", " ", "-", ".", "@", "0"]),
)


@given(st.lists(st.lists(PIECES, max_size=12).map("".join), min_size=1, max_size=3))
def test_what_was_taken_out_can_be_put_back(texts: list[str]) -> None:
    redacted = ALL.redact(texts)
    assert [redacted.restore(text) for text in redacted.texts] == texts


@given(st.sampled_from(["a@b.de", "+491711234567", "192.168.1.17", "B-123456"]), st.text("xyz ,;!\n", max_size=20))
def test_it_is_found_wherever_it_stands(secret: str, around: str) -> None:
    (text,) = ALL.redact([f"{around} {secret} {around}"]).texts
    assert secret not in text


@pytest.mark.parametrize("piece", ["a", "a.", "1", "1 ", "0", ":", "1.", "DE12 ", "a@", "+1", "1.234 ", "4111 ", "("])
def test_a_long_text_takes_no_more_than_linear_work(piece: str) -> None:
    long = piece * (100_000 // len(piece))  # quadratic work would take minutes: the suite's time-out
    assert ALL.redact([long]).restore("") == ""
