"""What the devices compute, without a broker: pulse, air, weather, pictures, settings."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from devices import HERE, make_clip, read_settings
from devices.analysis import air, meteo, ppg, vitals
from devices.analysis.motion import WARM_UP_FRAMES, Frames, Watcher
from devices.analysis.tables import numbers, read_csv
from devices.replay import Replay
from mqttcollab.errors import ConfigError

DATA = HERE / "data"
RATE = 100.0


def recording() -> ppg.Samples:
    path = DATA / "ppg_100hz.csv"
    return np.asarray(numbers(path, read_csv(path, ("ppg",)), "ppg"))


# --- pulse


def test_heart_rate_of_the_real_recording() -> None:
    pulse = ppg.analyse(recording(), RATE)
    assert pulse.heart_rate == pytest.approx(59, abs=2)
    assert pulse.rmssd is not None
    assert 20 < pulse.rmssd < 120
    assert 20 < pulse.sdnn < 120
    assert pulse.quality > 0.9
    assert pulse.rejected <= 1


@pytest.mark.parametrize("start", range(10))
def test_heart_rate_of_each_window(start: int) -> None:
    pulse = ppg.analyse(recording()[start * 100 : start * 100 + 1500], RATE)
    assert pulse.heart_rate == pytest.approx(59, abs=3)


@pytest.mark.parametrize("rate", [45, 60, 90, 150])
def test_heart_rate_and_variability_of_a_known_signal(rate: int) -> None:
    """Beats at known times, every second interval 40 ms longer: RMSSD is 40 ms, SDNN 20 ms."""
    interval = 60 / rate
    intervals = np.where(np.arange(60) % 2 == 0, interval - 0.02, interval + 0.02)
    times = np.cumsum(intervals)
    t = np.arange(0, 20, 1 / RATE)
    width = 0.12 * interval
    signal = np.exp(-(((t[:, None] - times[None, :]) / width) ** 2)).sum(axis=1)
    pulse = ppg.analyse(signal, RATE)
    assert pulse.heart_rate == pytest.approx(rate, rel=0.02)
    assert pulse.rmssd == pytest.approx(40, abs=6)
    assert pulse.sdnn == pytest.approx(20, abs=3)


def test_an_artefact_is_rejected() -> None:
    signal = recording()[:1500].copy()
    signal[700:760] = signal[:1500].max() + 400  # a bump between beats, as from a knock
    pulse = ppg.analyse(signal, RATE)
    clean = ppg.analyse(recording()[:1500], RATE)
    assert pulse.rejected > clean.rejected
    assert pulse.quality < clean.quality
    assert pulse.heart_rate == pytest.approx(59, abs=5)


@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        (np.full(1500, 512.0), "flat line"),
        (np.zeros(1500), "flat line"),
        (np.where(np.arange(1500) < 1400, 512.0, 600.0), "flat line"),
        (np.full(100, 512.0), "too short"),
        (np.array([]), "too short"),
        (np.where(np.arange(1500) == 7, np.nan, 1.0), "gaps"),
    ],
)
def test_no_pulse_in_a_dead_signal(signal: ppg.Samples, reason: str) -> None:
    with pytest.raises(ppg.NoPulse, match=reason):
        ppg.analyse(signal, RATE)


@pytest.mark.parametrize("seed", range(20))
def test_no_pulse_in_noise(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=1500)
    for signal in (noise, np.cumsum(noise)):
        with pytest.raises(ppg.NoPulse, match=r"noisy|plausible"):
            ppg.analyse(signal, RATE)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (130, "get medical help"),
        (110, "tachycardia"),
        (75, "within"),
        (59, "slightly below"),
        (45, "bradycardia"),
    ],
)
def test_heart_rate_in_words(rate: float, words: str) -> None:
    assert words in vitals.describe_heart_rate(rate)


# --- air


def hours(*nox: float, day: int = 1) -> list[air.AirHour]:
    return [air.AirHour(day + i // 24, i % 24, value, 100.0, 2.0) for i, value in enumerate(nox)]


def test_trend_against_the_three_hours_before() -> None:
    record = hours(10, 20, 30, 40)
    report = air.report(record, 3)
    assert report.trend_ratio == pytest.approx(2.0)
    assert report.trend == "rising"
    assert air.report(hours(40, 40, 40, 41), 3).trend == "steady"
    assert air.report(hours(40, 40, 40, 20), 3).trend == "falling"
    assert air.report(record, 2).trend == "unknown"


def test_no_trend_across_a_gap() -> None:
    record = [*hours(*[10.0] * 24, day=1), *hours(*[10.0] * 24, day=5)]
    assert air.report(record, 23).trend == "steady"
    assert air.report(record, 25).trend_ratio is None
    assert air.report(record, 27).trend == "steady"


def test_anomaly_is_measured_against_the_past_only() -> None:
    past = [10.0, 20.0] * 20
    logs = [math.log(value) for value in past]
    mean = sum(logs) / 40
    spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / 39)
    report = air.report(hours(*past, 80, 1000), 40)
    assert report.z_score == pytest.approx((math.log(80) - mean) / spread)
    assert air.report(hours(*past), 20).z_score is None
    assert air.report(hours(*[10.0] * 30), 29).z_score is None


@pytest.mark.parametrize(
    ("ppb", "level"),
    [(5, "low"), (13, "low"), (14, "moderate"), (104, "moderate"), (105, "high"), (210, "very high")],
)
def test_air_levels(ppb: float, level: str) -> None:
    assert air.level_of(ppb * air.UGM3_PER_PPB)[0] == level


def test_the_real_air_record() -> None:
    record = air.load(DATA / "nox_hourly.csv")
    assert len(record) == 671
    report = air.report(record, 303)
    assert (report.now.day, report.now.hour, report.now.nox_ppb) == (417, 15, 112.6)
    assert report.trend == "steady"
    assert all(hour.hour is None for hour in record if hour.day == 419)
    assert air.report(record, len(record) - 1).record_hours == 670


# --- weather


@pytest.mark.parametrize(
    ("fahrenheit", "humidity", "expected"),
    # National Weather Service, heat index chart
    [(80, 40, 80), (90, 50, 95), (96, 50, 108), (100, 50, 118), (86, 90, 105), (94, 60, 110), (110, 40, 136)],
)
def test_heat_index_matches_the_published_chart(fahrenheit: float, humidity: float, expected: float) -> None:
    index = meteo.heat_index_c((fahrenheit - 32) * 5 / 9, humidity)
    assert index * 9 / 5 + 32 == pytest.approx(expected, abs=0.8)


def test_heat_index_adjustments() -> None:
    """Worked by hand from the published formula: dry air lowers it, very humid mild air raises it."""
    assert meteo.heat_index_c((110 - 32) * 5 / 9, 10) * 9 / 5 + 32 == pytest.approx(104.4, abs=0.2)
    humid = meteo.heat_index_c((82 - 32) * 5 / 9, 95) * 9 / 5 + 32
    assert humid == pytest.approx(93.0 + (95 - 85) / 10 * (87 - 82) / 5, abs=0.2)


def test_apparent_temperature() -> None:
    """Worked by hand: at 30 °C and 60% the vapour pressure is 25.4 hPa."""
    value = meteo.apparent_temperature_c(30, 60, 20 / 3.6)
    assert value == pytest.approx(30 + 0.33 * 25.4 - 0.70 * 20 / 3.6 - 4, abs=0.1)


@pytest.mark.parametrize(("wind", "force"), [(0.0, 0), (3.3, 2), (3.4, 3), (8.0, 5), (13.8, 6), (13.9, 7), (40.0, 12)])
def test_beaufort(wind: float, force: int) -> None:
    assert meteo.beaufort(wind) == force


def hour(
    temperature: float = 20, humidity: float = 50, wind: float = 2, rain: float = 0, km: float = 16
) -> meteo.WeatherHour:
    return meteo.WeatherHour("2013-07-01T00:00:00Z", temperature, humidity, wind, rain, km)


@pytest.mark.parametrize(
    ("weather", "words"),
    [
        (hour(temperature=34, humidity=60), "extreme caution|danger"),
        (hour(wind=9), "fresh breeze"),
        (hour(wind=18), "do not put up tents"),
        (hour(rain=1), "light rain"),
        (hour(rain=9), "heavy rain"),
        (hour(km=0.4), "fog"),
        (hour(wind=math.nan), "not measured"),
        (hour(temperature=math.nan), "can't be judged"),
    ],
)
def test_advice(weather: meteo.WeatherHour, words: str) -> None:
    advice = " ".join(meteo.advice(weather))
    assert any(word in advice for word in words.split("|")), advice


def test_nothing_to_advise_on_a_mild_day_and_missing_values_are_left_out() -> None:
    assert meteo.advice(hour()) == []
    assert meteo.advice(hour(rain=math.nan, km=math.nan)) == []


def test_the_real_weather_record() -> None:
    record = meteo.load(DATA / "weather_hourly.csv")
    assert len(record) == 744
    assert record[470].time == "2013-07-20T18:00:00Z"
    assert any(math.isnan(item.wind_ms) for item in record)
    for item in record:
        meteo.advice(item)


# --- pictures


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("clip") / "square.mp4"
    make_clip.write(path)
    return path


def seen_at(frame: int) -> int:
    """How many figures are at least partly in the picture."""
    centres = [walk.at(frame) for walk in make_clip.WALKS]
    margin = make_clip.FIGURE[0] + 2
    return sum(-margin < centre[0] < make_clip.WIDTH + margin for centre in centres if centre)


def test_counts_the_figures_of_the_generated_clip(clip: Path) -> None:
    """At every picture the count lies between the figures wholly and partly in it, all 240 of them."""
    watcher = Watcher(Frames(clip), window_s=0.1)
    counted = set()
    for step in range(make_clip.FRAMES):
        scene = watcher.look(step / make_clip.FPS + 0.001 * step)
        assert make_clip.people_at(scene.index) <= scene.moving <= seen_at(scene.index), scene
        counted.add(scene.moving)
    assert counted == {0, 1, 2, 3, 4}


def test_motion_follows_the_figures(clip: Path) -> None:
    watcher = Watcher(Frames(clip), window_s=0.5)
    empty = watcher.look(0.0)
    assert (empty.moving, empty.most, empty.motion) == (0, 0, 0.0)
    busy = watcher.look(9.0)
    assert busy.index == WARM_UP_FRAMES + 5 + 90 - 1
    assert busy.moving == make_clip.people_at(busy.index) == 4
    # Four figures of some 9 by 22 pixels.
    assert 0.005 < busy.motion < 0.05


def test_the_committed_clip_says_that_it_is_generated() -> None:
    frames = Frames(make_clip.CLIP)
    assert "generated" in frames.note
    assert make_clip.CLIP.stat().st_size < 300_000
    frames.close()


def test_a_folder_of_pictures_gives_the_same_counts(tmp_path: Path) -> None:
    empty = make_clip.background()
    for frame in range(60, 130):
        picture = empty if frame < 80 else make_clip.draw(frame, empty)
        cv2.imwrite(str(tmp_path / f"{frame:04d}.png"), picture)
    watcher = Watcher(Frames(tmp_path, fps=10), window_s=0.1)
    watcher.look(0.0)
    scene = watcher.look(5.0)
    assert scene.index == WARM_UP_FRAMES + 50
    assert scene.moving == make_clip.people_at(60 + scene.index)
    again = watcher.look(7.0)
    assert again.index == (scene.index + 20) % 70


@pytest.mark.parametrize("name", ["none.mp4", "text.mp4", "folder", "broken"])
def test_a_source_that_gives_no_picture_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="camera source") as error:
        Frames(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_camera_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="camera source 97"):
        Frames(97)


# --- settings and data files


@dataclass(frozen=True, slots=True)
class Example:
    name: str = "x-1"
    data: Path = HERE / "data" / "x.csv"
    source: Path | int = 0
    interval: float = 1.0
    embedder: str | None = None


def test_settings_are_read_and_paths_start_from_the_folder(tmp_path: Path) -> None:
    settings = {"module": "devices.x", "folder": str(tmp_path), "data": "a.csv", "interval": 2, "source": 3}
    example = read_settings(Example, settings)
    assert example == Example(data=tmp_path / "a.csv", interval=2.0, source=3)
    assert read_settings(Example, {"data": "data/x.csv"}).data == HERE / "data" / "x.csv"
    assert read_settings(Example, {"source": "/a/b.mp4"}).source == Path("/a/b.mp4")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"intervall": 2}, "unknown setting 'intervall'.*interval"),
        ({"interval": "2"}, "'interval' is '2'; it must be float"),
        ({"interval": True}, "'interval' is True"),
        ({"name": 5}, "'name' is 5; it must be str"),
        ({"data": 5}, "'data' is 5; it must be a path"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_settings(Example, settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("", "no column 'ppg'"),
        ("# only a comment\n", "no column 'ppg'"),
        ("ppg\n", "has no rows"),
        ("other\n1\n", "no column 'ppg'"),
        ("time,ppg\n1\n", "too few values"),
        ("ppg\n1\nx\n", "row 2: ppg is 'x'"),
    ],
)
def test_a_bad_data_file_is_named(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "data.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        numbers(path, read_csv(path, ("ppg",)), "ppg")


def test_a_replay_moves_on_and_begins_again() -> None:
    now = 100.0
    replay = Replay(5, start=3, seconds=10, clock=lambda: now)
    assert replay.position() == 3
    now = 119.9
    assert replay.position() == 4
    now = 120.0
    assert replay.position() == 0
    for bad in ({"start": 5}, {"start": -1}, {"seconds": 0.0}):
        with pytest.raises(ConfigError):
            Replay(5, **{"seconds": 1.0, **bad})  # type: ignore[arg-type]


def test_fleet_names_a_module_and_existing_files_for_each_device() -> None:
    fleet = tomllib.loads((HERE / "fleet.toml").read_text())
    assert len(fleet) == 8
    assert len({table["name"] for table in fleet.values()}) == 8
    for table in fleet.values():
        assert (HERE.parent / (table["module"].replace(".", "/") + ".py")).is_file()
        for key in ("data", "source", "handbook"):
            assert key not in table or (HERE / table[key]).exists(), table
