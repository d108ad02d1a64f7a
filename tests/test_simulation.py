"""Fleets, arrivals and traces: what is read, what is drawn, and how files that can't be used are refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mqttcollab.errors import ConfigError
from mqttcollab.simulation.arrivals import Paper, Trace, capacity
from mqttcollab.simulation.engine import Arrival, Cloud
from mqttcollab.simulation.fleet import read_fleet, second_fastest, with_outages
from mqttcollab.simulation.trace import read_trace

TRACE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "azure_llm_code.csv"
DEVICE = '[[device]]\nname = "a"\ntokens_per_s = 10\n'
CLOUD = "[cloud]\nprompt_usd_per_mtok = 3\ncompletion_usd_per_mtok = 6\n"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROW = "2023-11-16 18:17:03.9799600,4808,10\r\n"

# Fleets


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_fleet_that_comes_along_is_like_the_papers() -> None:
    devices, cloud = read_fleet()
    assert [device.tokens_per_s for device in devices] == [60, 45, 32, 20, 14, 11, 7, 4]
    assert all(device.prompt_tokens_per_s == 10 * device.tokens_per_s for device in devices)
    assert cloud == Cloud(30.0, 60.0, 30.0, 0.8)
    assert second_fastest(read_fleet()) == "laptop"


def test_a_fleet_is_read(tmp_path: Path) -> None:
    more = "prompt_tokens_per_s = 35\nslots = 2\nlink_s = 0.5\ndown = [[30, 40.5], [1, 2]]\n"
    (device,), cloud = read_fleet(written(tmp_path, DEVICE + more + CLOUD + "tokens_per_s = 70\noverhead_s = 2\n"))
    assert (device.name, device.tokens_per_s, device.prompt_tokens_per_s, device.slots) == ("a", 10, 35, 2)
    assert (device.link_s, device.down) == (0.5, ((1, 2), (30, 40.5)))
    assert cloud == Cloud(3, 6, 70, 2)
    assert read_fleet(written(tmp_path, DEVICE)).cloud == Cloud()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no device: add a [[device]] with a name and its tokens_per_s"),
        ("device = []", "names no device: add a [[device]] with a name and its tokens_per_s"),
        ("device = 3", "device is 3: Input should be a valid list"),
        ("device = [3]", "each [[device]] has to be a table with a name and tokens_per_s"),
        (DEVICE * 2, "two devices are called 'a': give each its own name"),
        ("[[device]]\ntokens_per_s = 3", "device 1: name is missing; set it"),
        ("[[device]]\nname = 'a'", "device 'a': tokens_per_s is missing; set it"),
        (DEVICE.replace("10", "0"), "device 'a': tokens_per_s is 0: Input should be greater than 0"),
        (DEVICE.replace("10", "-4"), "device 'a': tokens_per_s is -4: Input should be greater than 0"),
        (DEVICE.replace("10", "nan"), "device 'a': tokens_per_s is nan: Input should be a finite number"),
        (DEVICE.replace("10", "inf"), "device 'a': tokens_per_s is inf: Input should be a finite number"),
        (DEVICE.replace("10", "'10'"), "device 'a': tokens_per_s is '10': Input should be a valid number"),
        (DEVICE.replace("10", "true"), "device 'a': tokens_per_s is True: Input should be a valid number"),
        (DEVICE + "prompt_tokens_per_s = 0", "prompt_tokens_per_s is 0: Input should be greater than 0"),
        (DEVICE + "slots = 0", "slots is 0: Input should be greater than or equal to 1"),
        (DEVICE + "slots = 1.5", "slots is 1.5: Input should be a valid integer"),
        (DEVICE + "link_s = -1", "link_s is -1: Input should be greater than or equal to 0"),
        (DEVICE + "speed = 3", "device 'a': speed is not a setting; known are name, tokens_per_s,"),
        (DEVICE + "down = [[3, 2]]", "a is down from 3 to 2: the end has to come after the beginning"),
        (DEVICE + "down = [[3, nan]]", "device 'a': down.0.1 is nan: Input should be a finite number"),
        (DEVICE + "down = [[3]]", "device 'a': down.0.1 is missing; set it"),
        (DEVICE + "down = [[3, 5], [4, 6]]", "a is down twice at 4 s: make one time of the two"),
        (DEVICE + CLOUD.replace("prompt", "x_prompt"), "[cloud]: prompt_usd_per_mtok is missing; set it"),
        (DEVICE + "[cloud]\nprompt_usd_per_mtok = 3", "[cloud]: completion_usd_per_mtok is missing; set it"),
        (DEVICE + CLOUD.replace("6", "-6"), "[cloud]: completion_usd_per_mtok is -6: Input should be greater"),
        (DEVICE + CLOUD + "overhead = 3", "[cloud]: overhead is not a setting; known are prompt_usd_per_mtok,"),
        ("[wearable]\nmodule = 'x'", "wearable is not a setting; known are device, cloud"),
        ("[[device", "is not valid TOML"),
    ],
)
def test_a_fleet_that_can_not_be_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_fleet(path)
    assert told in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value).removesuffix("\n")


def test_outages_of_devices_that_are_not_there_are_refused() -> None:
    fleet = with_outages(read_fleet(), {"laptop": (10, 20)})
    assert [device.down for device in fleet.devices if device.down] == [((10, 20),)]
    with pytest.raises(ConfigError, match="no device 'toaster' that could be down; the fleet has agx-orin, laptop"):
        with_outages(fleet, {"toaster": (1, 2)})
    with pytest.raises(ConfigError, match="laptop is down twice at 15 s"):
        with_outages(fleet, {"laptop": (15, 30)})


# Arrivals


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_papers_arrivals_offer_the_load_in_bursts(load: float) -> None:
    devices = read_fleet().devices
    paper = Paper(20 * 3600)
    found = paper.arrivals(load, devices, 1)
    work = sum(arrival.tokens for arrival in found) / sum(device.tokens_per_s for device in devices)
    assert work / paper.duration_s == pytest.approx(load, rel=0.05)
    times = [arrival.time for arrival in found]
    assert times == sorted(times) and times[0] >= 0 and times[-1] < paper.duration_s
    shares = [sum(a.tokens == tokens for a in found) / len(found) for tokens in (50, 100, 200, 300, 500)]
    assert shares == pytest.approx([0.35, 0.30, 0.20, 0.10, 0.05], abs=0.02)
    counts = [0] * int(paper.duration_s // 20)
    for time in times:
        counts[int(time // 20)] += 1
    mean = len(times) / len(counts)
    variance = sum((count - mean) ** 2 for count in counts) / len(counts)
    assert variance > 4 * mean  # of a plain Poisson process they are equal
    assert paper.arrivals(load, devices, 1) == found != paper.arrivals(load, devices, 2)


def test_capacity_is_what_all_devices_do_at_once() -> None:
    devices, _ = read_fleet()
    assert capacity(devices, 0, 10) == pytest.approx(19.3)
    assert capacity(devices, 100, 10) == pytest.approx(19.3 / 2)


def test_a_trace_is_thinned_to_the_load_or_taken_whole() -> None:
    devices, _ = read_fleet()
    trace = Trace("t.csv", tuple(Arrival(i / 10, 50.0, 10.0 + i % 7) for i in range(20_000)))
    own = trace.offered(math.inf, devices)
    assert own == pytest.approx(10 * (5 + 13) / 193, rel=0.01)
    half = trace.arrivals(own / 2, devices, 3)
    assert len(half) == pytest.approx(10_000, rel=0.05)
    assert set(half) < set(trace.requests)
    assert trace.arrivals(own / 2, devices, 3) == half != trace.arrivals(own / 2, devices, 4)
    assert trace.arrivals(own * 2, devices, 3) == list(trace.requests)
    assert (trace.offered(own / 2, devices), trace.offered(own * 2, devices)) == (own / 2, own)


# Traces


def test_a_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.4799601,0,8\r\n2023-11-16 20:17:04,110,0\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + rows).encode())
    found = read_trace(path)
    assert (found.name, found.duration_s) == ("t.csv", pytest.approx(7200.02004, abs=1e-6))
    assert [request[1:] for request in found.requests] == [(4808, 10), (0, 8), (110, 0)]
    assert found.requests[1].time == pytest.approx(0.5)
    assert len(read_trace(path, hours=1).requests) == 2


def test_columns_may_be_more_and_elsewhere_and_times_may_have_a_zone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "who,GeneratedTokens,TIMESTAMP,ContextTokens\n"
        '"x\u2028y",3,2024-05-10T00:00:00.009930+00:00,5\n\nz,4,2024-05-10 02:00:01.009930+02:00,6\n',
        encoding="utf-8",
    )
    assert read_trace(path).requests == (Arrival(0, 5, 3), Arrival(1, 6, 4))


@pytest.mark.skipif(not TRACE.exists(), reason="shared/data/traces is not here")
def test_the_real_trace_offers_more_than_the_fleet_can_do() -> None:
    trace = read_trace(TRACE)
    assert len(trace.requests) == 8819
    assert trace.duration_s == pytest.approx(3436, abs=1)
    assert trace.offered(9, read_fleet().devices) == pytest.approx(3.1, abs=0.1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "t.csv, line 1: TIMESTAMP, ContextTokens, GeneratedTokens missing, it has nothing; expected CSV"),
        (HEADER, "t.csv holds no rows; expected CSV with the columns"),
        ("TIMESTAMP,ContextTokens\n", "t.csv, line 1: GeneratedTokens missing, it has 'TIMESTAMP', 'ContextTokens'"),
        (ROW + ROW, "t.csv, line 1: TIMESTAMP, ContextTokens, GeneratedTokens missing, it has '2023-11-16"),
        (HEADER + ROW + "2023-11-16 18:18:00,3\n", "t.csv, line 3: 2 cells where the header has 3"),
        (HEADER + ROW + "2023-11-16 18:18:00,3,4,5\n", "t.csv, line 3: 4 cells where the header has 3"),
        (HEADER + ROW + "NaT,3,4\n", "t.csv, line 3: TIMESTAMP is 'NaT', no time such as"),
        (HEADER + ROW + ",3,4\n", "t.csv, line 3: TIMESTAMP is '', no time such as"),
        (HEADER + "yesterday,3,4\n", "t.csv, line 2: TIMESTAMP is 'yesterday', no time such as"),
        (HEADER + "0001-01-01 00:00:00+14:00,3,4\n", "t.csv, line 2: TIMESTAMP is '0001"),
        (HEADER + ROW + "2023-11-16 18:18:00,-3,4\n", "t.csv, line 3: ContextTokens is '-3', no number of tokens"),
        (HEADER + ROW + "2023-11-16 18:18:00,3,nan\n", "t.csv, line 3: GeneratedTokens is 'nan', no number"),
        (HEADER + ROW + "2023-11-16 18:18:00,inf,3\n", "t.csv, line 3: ContextTokens is 'inf', no number"),
        (HEADER + ROW + "2023-11-16 18:18:00,,3\n", "t.csv, line 3: ContextTokens is '', no number"),
        (HEADER + ROW + "2023-11-16 18:18:00,3,many\n", "t.csv, line 3: GeneratedTokens is 'many', no number"),
        (
            HEADER + ROW + "2023-11-16 18:17:02,3,4\n",
            "t.csv, line 3: it is earlier than the row before; sort the file by TIMESTAMP",
        ),
        (HEADER + ROW + "2023-11-16 18:17:04Z,3,4\n", "t.csv, line 3: its time has a time zone and others have none"),
        (HEADER + ROW + ROW, "all that is taken of it came at one time; a rate takes two"),
        (HEADER + ROW.replace("4808,10", "0,0") + "2023-11-16 18:18:00,0,0\n", "no row has any tokens"),
        (HEADER + '2023-11-16 18:18:00,"3,4\n', "t.csv, line 2: unexpected end of data"),
        (b"\x89PNG\r\n\x1a\n\xff", "t.csv is not text; expected CSV"),
    ],
)
def test_a_trace_that_can_not_be_used_is_refused(tmp_path: Path, content: str | bytes, told: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as refused:
        read_trace(path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.csv: No such file or directory"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_trace(tmp_path)
