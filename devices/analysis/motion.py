"""Motion and occupancy from pictures: background subtraction, then connected moving areas.

Method: MOG2 (Zivkovic 2004, "Improved adaptive Gaussian mixture model for background subtraction", ICPR) as
in OpenCV, shadows left out, a morphological opening and closing, and connected components above a smallest
area. Who stands still for long becomes background, and who walks close together counts once: the count is a
lower bound.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median_high

import cv2
import numpy as np
from numpy.typing import NDArray

from mqttcollab.errors import ConfigError

Frame = NDArray[np.uint8]
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
FOREGROUND = 255
WARM_UP_FRAMES = 10
MOST_FRAMES_AT_ONCE = 100


class Frames:
    """Pictures from a video file, a folder of pictures or a camera device; files start again at their end.

    Attributes:
        name: for people: the file's name or the device's number.
        fps: pictures per second, from the file or device where it says, else as given.
        index: number of the last picture since the start of the file or folder, from 0.
        note: what the text file beside the video (its name + ".txt") says of it, or "".

    Raises:
        ConfigError: the source is missing, unreadable, or holds no picture.
    """

    def __init__(self, source: Path | int, fps: float = 10.0) -> None:
        self.name = f"camera device {source}" if isinstance(source, int) else source.name
        self.fps = fps
        self.note = "" if isinstance(source, int) else _note(source)
        self._source = source
        self._capture: cv2.VideoCapture | None = None
        self._pictures: list[Path] = []
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # we say it ourselves, in one line
        self._start()
        if self._read() is None:
            raise ConfigError(f"camera source {source}: no picture can be read from it")
        if not isinstance(source, int):
            self._start()

    def _start(self) -> None:
        """Open the source, or go back to its beginning."""
        self.close()
        self.index = -1
        source = self._source
        if isinstance(source, Path) and source.is_dir():
            self._pictures = sorted(path for path in source.iterdir() if path.suffix.lower() in PICTURES)
            return
        if isinstance(source, Path) and not source.exists():
            raise ConfigError(f"camera source {source} does not exist; give a video file, a folder or a device number")
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            raise ConfigError(f"camera source {source} can't be opened as a video")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or self.fps

    def _read(self) -> Frame | None:
        self.index += 1
        if self._capture is not None:
            good, picture = self._capture.read()
            return np.asarray(picture, dtype=np.uint8) if good else None
        if self.index >= len(self._pictures):
            return None
        read = cv2.imread(str(self._pictures[self.index]))
        return None if read is None else np.asarray(read, dtype=np.uint8)

    def next(self) -> Frame:
        """Return the next picture, from the beginning again after the last.

        Raises:
            ConfigError: the source has gone, or a picture of the folder is broken.
        """
        picture = self._read()
        if picture is None:
            where = self.index
            self._start()
            picture = self._read()
            if picture is None:
                raise ConfigError(f"{self.name}: picture {where} can't be read")
        return picture

    def close(self) -> None:
        """Let go of the file or device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def _note(source: Path) -> str:
    note = source.with_name(source.name + ".txt")
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the last pictures show.

    Attributes:
        moving: moving areas of at least a person's size, median over the pictures.
        most: the most in any of them.
        motion: mean share of pixels that move, 0 to 1.
        frames: number of pictures looked at.
        seconds: time that they span.
        index: number of the last one in its file.
    """

    moving: int
    most: int
    motion: float
    frames: int
    seconds: float
    index: int


class Watcher:
    """Follows a source in real time; `look` reads the pictures that have become due and describes the last ones.

    Attributes:
        smallest: a moving area with fewer pixels is no person.
    """

    def __init__(self, frames: Frames, *, smallest: int = 40, window_s: float = 2.0) -> None:
        self.frames = frames
        self.smallest = smallest
        self._model = cv2.createBackgroundSubtractorMOG2(history=300, varThreshold=30, detectShadows=True)
        self._kernel = np.ones((3, 3), dtype=np.uint8)
        self._last: deque[tuple[int, float]] = deque(maxlen=max(1, round(window_s * frames.fps)))
        self._due_from: float | None = None
        for _ in range(WARM_UP_FRAMES):
            self._model.apply(frames.next())

    def look(self, now: float) -> Scene:
        """Read what is due at `now` (seconds of a steady clock), at least one picture, and describe the window."""
        # The first look fills its window, so that it doesn't judge from a single picture.
        due = self._last.maxlen or 1
        if self._due_from is not None:
            due = int((now - self._due_from) * self.frames.fps)
        for _ in range(min(max(due, 0 if self._last else 1), MOST_FRAMES_AT_ONCE)):
            self._last.append(self._measure(self.frames.next()))
        if self._due_from is None or due > 0:
            self._due_from = now
        counts = [count for count, _ in self._last]
        return Scene(
            moving=median_high(counts),
            most=max(counts),
            motion=fmean(share for _, share in self._last),
            frames=len(counts),
            seconds=len(counts) / self.frames.fps,
            index=self.frames.index,
        )

    def _measure(self, picture: Frame) -> tuple[int, float]:
        mask = np.where(self._model.apply(picture) == FOREGROUND, np.uint8(FOREGROUND), np.uint8(0))
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, self._kernel)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, self._kernel, iterations=2)
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        areas = stats[1:, cv2.CC_STAT_AREA]
        return int((areas >= self.smallest).sum()), float(np.mean(mask > 0))
