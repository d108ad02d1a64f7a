"""Prices, bills and the settings of the cloud: exact money, and one line for whatever is wrong."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from endpoints import settings
from hypothesis import given
from hypothesis import strategies as st

from mqttcollab.cloud import cloud_agent, read_cloud
from mqttcollab.cloud.prices import Bill, Price, price_of, show, to_nano, to_usd
from mqttcollab.cloud.redaction import KINDS
from mqttcollab.cloud.settings import CloudSettings, RedactionSettings, parse_cloud
from mqttcollab.errors import ConfigError, MqttCollabError

DOCS = Path(__file__).parents[1] / "docs" / "cloud.md"
GPT4 = Price(30.0, 60.0)


def test_gpt_4_s_prices_come_along_with_their_day() -> None:
    price = price_of("gpt-4", {}, "cloud.toml")
    assert (price.prompt_usd_per_mtok, price.completion_usd_per_mtok) == (30.0, 60.0)
    assert price.held_on is not None and price.held_on.isoformat() == "2023-03-14"
    assert show(price.nano(1000, 500)) == "0.06"


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_cost_is_exact_and_rounded_up(prompt_usd: float, completion_usd: float, prompt: int, completion: int) -> None:
    nano = Price(prompt_usd, completion_usd).nano(prompt, completion)
    exact = (Decimal(repr(prompt_usd)) * prompt + Decimal(repr(completion_usd)) * completion) * 1000
    assert 0 <= nano - exact < 1 + Decimal("1e-9") * (1 + exact)


@given(st.integers(0, 10**15))
def test_money_is_shown_exactly(nano: int) -> None:
    assert Decimal(show(nano)) * 10**9 == nano
    assert to_nano(to_usd(nano)) == nano


def test_a_thousand_small_costs_sum_up_to_the_cent() -> None:
    assert to_nano(0.1) + to_nano(0.2) == to_nano(0.3)
    assert sum(Price(0.1, 0.2).nano(1, 1) for _ in range(1000)) == 300_000


@given(st.lists(st.text(), min_size=1, max_size=4), st.integers(1, 1000))
def test_the_worst_case_has_room_for_a_token_per_byte(texts: list[str], most: int) -> None:
    worst = GPT4.worst(texts, most)
    assert worst.prompt_tokens > sum(len(text.encode()) for text in texts)
    assert (worst.completion_tokens, worst.estimated) == (most, True)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [(0, 0), (0, 5), (5, 0), (-5, 5), (5, -5), (10**9, 5), (5, 10**9)],
)
def test_where_the_usage_is_missing_or_nonsense_the_worst_case_is_charged(prompt: int, completion: int) -> None:
    worst = GPT4.worst(["What is the capital of France?"], 100)
    assert GPT4.bill(prompt, completion, worst) == worst


def test_usage_that_can_be_is_what_is_charged_even_over_the_worst_case() -> None:
    worst = GPT4.worst(["Hi"], 100)
    assert GPT4.bill(9, 7, worst) == Bill(9 * 30_000 + 7 * 60_000, 9, 7)
    assert GPT4.bill(9, 150, worst).nano > GPT4.bill(9, 100, worst).nano


# Settings

GOOD = """\
[endpoint]
model = "big-1"
base_url = "http://127.0.0.1:1/v1"
[prices.big-1]
free = true
[limits]
usd_per_day = 1
"""


def load(text: str, folder: Path) -> Any:
    file = folder / "cloud.toml"
    file.write_text(text)
    return cloud_agent(read_cloud(file))


def test_paths_start_from_the_file_s_folder(tmp_path: Path) -> None:
    (tmp_path / "cloud.toml").write_text('ledger = "money/spent.sqlite"\n' + GOOD)
    assert read_cloud(tmp_path / "cloud.toml").ledger_path == tmp_path / "money" / "spent.sqlite"


def test_the_example_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key for the tests")
    read = read_cloud(Path(__file__).parents[1] / "devices" / "cloud.toml")
    record = cloud_agent(read).record(read.service)
    assert (record.leaves_edge, record.model) == (True, "gpt-4")
    assert (record.prompt_usd_per_mtok, record.completion_usd_per_mtok) == (30.0, 60.0)


def test_the_docs_show_every_setting_with_its_default(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    shown = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", text, flags=re.M))
    parsed = parse_cloud(shown, folder=tmp_path, where="docs")
    tables = {"endpoint", "prices", "limits", "redaction"}
    assert set(shown) | {"folder", "where"} == set(CloudSettings.model_fields)
    for name in ("retry", "breaker"):
        assert set(shown[name]) == set(type(getattr(parsed, name)).model_fields)
    assert set(shown["redaction"]) == set(RedactionSettings.model_fields)
    assert shown["redaction"]["kinds"] == list(KINDS)
    bare = parse_cloud({name: shown[name] for name in tables}, folder=tmp_path, where="docs")
    optional = {"accuracy": None, "place": None, "model_key": None}
    assert parsed.model_copy(update=optional) == bare


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", 'colour = "red"\n', "colour is not a setting"),
        ("", "folder = '/'\n", "folder is not a setting"),
        ("usd_per_day = 1", "usd_per_day = -1", "limits.usd_per_day is -1"),
        ("usd_per_day = 1", "usd_per_day = nan", "limits.usd_per_day is nan"),
        ("usd_per_day = 1", 'usd_per_day = "a lot"', "limits.usd_per_day is 'a lot'"),
        ("[limits]\nusd_per_day = 1", "", "limits is missing"),
        ("usd_per_day = 1", "usd_per_day = 1\ntenants = {alice = -1}", "limits.tenants.alice is -1"),
        ("[prices.big-1]\nfree = true", "", "prices has none for 'big-1'; add [prices.\"big-1\"]"),
        ("free = true", "", "needs prompt_usd_per_mtok and completion_usd_per_mtok, or free = true"),
        ("free = true", "free = true\nprompt_usd_per_mtok = 1", "it is free and has a price"),
        ("free = true", "prompt_usd_per_mtok = 1", "needs prompt_usd_per_mtok and completion_usd_per_mtok"),
        ("free = true", "prompt_usd_per_mtok = 0\ncompletion_usd_per_mtok = 0", "say free = true"),
        ("free = true", "prompt_usd_per_mtok = -1\ncompletion_usd_per_mtok = 1", "prompt_usd_per_mtok is -1"),
        ("free = true", "prompt_usd_per_mtok = inf\ncompletion_usd_per_mtok = 1", "prompt_usd_per_mtok is inf"),
        ('model = "big-1"', 'model = "big-1"\nkey = "secret"', "endpoint.key is not a setting"),
        ('model = "big-1"\n', "", "endpoint.model is missing"),
        ('model = "big-1"', 'model = "big-1"\napi_key_env = "NO_SUCH_KEY_7"', "NO_SUCH_KEY_7, which is not set"),
        ("http://", "ftp://", "base_url is 'ftp://127.0.0.1:1/v1'; it must begin with http://"),
        ("", 'name = "Cloud One"\n', "is not a DNS label"),
        ("", 'service = "cloud"\n', "starts with no zone"),
        ("", 'model_key = "a/b"\n', "model_key is 'a/b'"),
        ("", "max_tokens = 0\n", "max_tokens is 0"),
        ("", "concurrency = 0\n", "concurrency is 0"),
        ("", "accuracy = 2\n", "accuracy is 2"),
        ("", "retry = {tries = 0}\n", "retry.tries is 0"),
        ("", "breaker = {failures = 0}\n", "breaker.failures is 0"),
        ("", 'redaction = {kinds = ["face"]}\n', "redaction.kinds has 'face'; known are email, iban"),
        ("", 'redaction = {words = [" "]}\n', "redaction.words has an empty word"),
        ("", 'redaction = {patterns = {BADGE = "("}}\n', "redaction.patterns.BADGE is '(', no regular expression"),
        ("", 'redaction = {patterns = {BADGE = "x*"}}\n', "also matches nothing at all"),
        ("", 'redaction = {patterns = {badge = "x"}}\n', "redaction.patterns.badge: name it with A-Z"),
        ("[limits]", "[limits", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(MqttCollabError) as error:
        load(GOOD.replace(old, new) if old else new + GOOD, tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_and_a_file_that_is_not_there_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        read_cloud(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        read_cloud(tmp_path / "nothing.toml")


def test_what_can_not_stand_in_a_topic_is_left_out_of_the_model_s_key(tmp_path: Path) -> None:
    given = settings(tmp_path, "http://h/v1")
    assert given.key("meta/llama 3:70b") == "meta-llama-3-70b"
    with pytest.raises(ConfigError, match="model_key is '-1'"):
        given.key("/1")
