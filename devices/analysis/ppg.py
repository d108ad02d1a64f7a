"""Heart rate and heart rate variability from a photoplethysmogram (PPG).

Beats: the two-moving-averages detector of Elgendi et al. 2013, "Systolic Peak Detection in Acceleration
Photoplethysmograms Measured from Emergency Responders in Tropical Conditions", PLoS ONE 8(10): e76585:
zero-phase second-order Butterworth band-pass 0.5 to 8 Hz, squared positive part, blocks in which a 111 ms
mean exceeds a 667 ms mean. Peak times are refined between samples by a parabola, since 10 ms steps would
drown RMSSD.

Artefacts: an interval outside 300 to 2000 ms, or more than 20% off the median of its neighbours (the 20%
rule of Malik et al. 1989, Eur Heart J 10:1060), is rejected; successive differences are taken only where
both intervals hold.

RMSSD and SDNN: Task Force of the ESC and NASPE 1996, Circulation 93:1043. From a window of seconds they are
ultra-short-term values and not comparable with the 5 min norms; the answers say so.

Quality: mean correlation of each beat with the mean beat (Orphanidou et al. 2015, IEEE JBHI 19:832, who
accept PPG from 0.86), times the share of accepted intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Samples = NDArray[np.float64]

BAND_HZ = (0.5, 8.0)
PEAK_WINDOW_S = 0.111
BEAT_WINDOW_S = 0.667
OFFSET = 0.02
REFRACTORY_S = 0.3
INTERVAL_MS = (300.0, 2000.0)
MAX_DEVIATION = 0.20
MIN_INTERVALS = 3
MIN_QUALITY = 0.6


class NoPulse(ValueError):
    """The signal holds no pulse that can be trusted; the message says why."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a stretch of PPG says.

    Attributes:
        heart_rate: from the mean accepted interval, 1/min.
        rmssd: root mean square of successive differences of accepted intervals, ms; None below two of them.
        sdnn: standard deviation of the accepted intervals, ms.
        intervals: accepted intervals.
        rejected: intervals rejected as artefacts.
        quality: 0 to 1, see the module.
        seconds: length of the stretch.
    """

    heart_rate: float
    rmssd: float | None
    sdnn: float
    intervals: int
    rejected: int
    quality: float
    seconds: float


def analyse(samples: Samples, rate: float) -> Pulse:
    """Measure the pulse in `samples` (raw units, shape (n,)) taken `rate` times a second.

    Raises:
        NoPulse: a flat or broken line, a stretch that is too short, or noise.
    """
    seconds = len(samples) / rate
    if not np.all(np.isfinite(samples)):
        raise NoPulse("the signal has gaps or values that are no numbers")
    if seconds < 5:
        raise NoPulse(f"{seconds:.1f} s of signal are too short; at least 5 s are needed")
    if _is_flat(samples):
        raise NoPulse("the signal is a flat line: the sensor is off, broken or not worn")
    filtered = bandpass(samples, rate)
    peaks = find_beats(filtered, rate)
    intervals = np.diff(refine(filtered, peaks)) / rate * 1000
    accepted = accept(intervals)
    if accepted.sum() < MIN_INTERVALS:
        raise NoPulse(f"only {int(accepted.sum())} plausible beat intervals in {seconds:.0f} s of signal")
    quality = template_correlation(filtered, peaks, rate) * float(accepted.mean())
    if quality < MIN_QUALITY:
        raise NoPulse(f"the signal is too noisy (quality {quality:.2f}, needed {MIN_QUALITY:.2f})")
    good = intervals[accepted]
    pairs = accepted[1:] & accepted[:-1]
    differences = np.diff(intervals)[pairs]
    return Pulse(
        heart_rate=60_000 / float(good.mean()),
        rmssd=float(np.sqrt(np.mean(differences**2))) if len(differences) > 1 else None,
        sdnn=float(good.std(ddof=1)),
        intervals=len(good),
        rejected=int((~accepted).sum()),
        quality=quality,
        seconds=seconds,
    )


def _is_flat(samples: Samples) -> bool:
    """Tell whether most of the signal does not move (a sensor that is stuck repeats one value)."""
    if np.ptp(samples) < 1e-9 * max(1.0, float(np.abs(samples).max())):
        return True
    return float(np.mean(np.diff(samples) == 0)) > 0.8


def bandpass(samples: Samples, rate: float) -> Samples:
    """Keep `BAND_HZ`, without shifting peaks in time."""
    sections = signal.butter(2, BAND_HZ, btype="bandpass", fs=rate, output="sos")
    return np.asarray(signal.sosfiltfilt(sections, samples), dtype=np.float64)


def find_beats(filtered: Samples, rate: float) -> NDArray[np.intp]:
    """Return the sample index of each systolic peak in a band-passed PPG."""
    squared = np.clip(filtered, 0, None) ** 2
    peak_mean = _moving_mean(squared, PEAK_WINDOW_S, rate)
    beat_mean = _moving_mean(squared, BEAT_WINDOW_S, rate)
    inside = peak_mean > beat_mean + OFFSET * squared.mean()
    edges = np.diff(np.concatenate(([0], inside.astype(np.int8), [0])))
    peaks: list[int] = []
    for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        # A block at the border may have lost its peak.
        if end - start < PEAK_WINDOW_S * rate or start == 0 or end == len(filtered):
            continue
        peak = int(start + np.argmax(filtered[start:end]))
        if not peaks or peak - peaks[-1] > REFRACTORY_S * rate:
            peaks.append(peak)
    return np.asarray(peaks, dtype=np.intp)


def _moving_mean(values: Samples, seconds: float, rate: float) -> Samples:
    width = max(1, round(seconds * rate))
    return np.convolve(values, np.ones(width) / width, mode="same")


def refine(filtered: Samples, peaks: NDArray[np.intp]) -> Samples:
    """Return peak positions between samples: the vertex of the parabola through a peak and its neighbours."""
    inner = np.clip(peaks, 1, len(filtered) - 2)
    before, at, after = filtered[inner - 1], filtered[inner], filtered[inner + 1]
    curve = before - 2 * at + after
    shift = np.divide(0.5 * (before - after), curve, out=np.zeros_like(at), where=curve != 0)
    return np.asarray(peaks + np.clip(shift, -0.5, 0.5), dtype=np.float64)


def accept(intervals: Samples) -> NDArray[np.bool_]:
    """Mark the intervals (ms) that are no artefacts: plausible, and near the median of up to five around them."""
    plausible = (intervals >= INTERVAL_MS[0]) & (intervals <= INTERVAL_MS[1])
    near = np.zeros(len(intervals), dtype=np.bool_)
    for index, interval in enumerate(intervals):
        around = intervals[max(0, index - 2) : index + 3]
        near[index] = abs(interval - np.median(around)) <= MAX_DEVIATION * np.median(around)
    return plausible & near


def template_correlation(filtered: Samples, peaks: NDArray[np.intp], rate: float) -> float:
    """Return the mean correlation of each beat with the mean beat, 0 to 1; 0 below three whole beats."""
    if len(peaks) < 3:
        return 0.0
    half = int(np.median(np.diff(peaks)) // 2)
    beats = [filtered[peak - half : peak + half] for peak in peaks if half <= peak <= len(filtered) - half]
    if half < 2 or len(beats) < 3:
        return 0.0
    template = np.mean(beats, axis=0)
    if min(np.ptp(beat) for beat in [*beats, template]) == 0:
        return 0.0
    correlations = [float(np.corrcoef(beat, template)[0, 1]) for beat in beats]
    return max(0.0, float(np.mean(correlations)))
