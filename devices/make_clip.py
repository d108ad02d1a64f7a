"""Generate the camera's demo clip: people-like blobs that walk through a square, their number known at every frame.

`python -m devices.make_clip` writes `devices/data/square.mp4` and beside it `square.mp4.txt`, which says
that the clip is generated; the camera repeats that note in every answer.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from devices import HERE
from mqttcollab.errors import ConfigError

CLIP = HERE / "data" / "square.mp4"
NOTE = "generated clip: drawn figures, no camera and no people (devices/make_clip.py)"
WIDTH, HEIGHT, FPS, FRAMES = 240, 160, 10, 240
FIGURE = (4, 11)  # half width and half height in pixels

Frame = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Walk:
    """A figure that walks from one point to another at constant speed, in pixels and frames."""

    first: int
    last: int
    start: tuple[float, float]
    end: tuple[float, float]
    colour: tuple[int, int, int]

    def at(self, frame: int) -> tuple[float, float] | None:
        """Return the figure's centre, or None where it is not in the square."""
        if not self.first <= frame <= self.last:
            return None
        share = (frame - self.first) / (self.last - self.first)
        return tuple(a + share * (b - a) for a, b in zip(self.start, self.end, strict=True))  # type: ignore[return-value]


# Lanes keep the figures apart, so that the number drawn is the number that can be seen.
WALKS = (
    Walk(30, 130, (-8, 50), (248, 50), (60, 40, 160)),
    Walk(60, 180, (248, 82), (-8, 82), (150, 60, 40)),
    Walk(70, 200, (-8, 112), (248, 112), (40, 90, 40)),
    Walk(90, 215, (248, 142), (-8, 142), (30, 30, 30)),
    Walk(130, 235, (-8, 22), (248, 22), (120, 40, 120)),
)


def people_at(frame: int) -> int:
    """Return how many figures are wholly in the picture in `frame`."""
    centres = [walk.at(frame) for walk in WALKS]
    return sum(FIGURE[0] <= centre[0] < WIDTH - FIGURE[0] for centre in centres if centre)


def background() -> Frame:
    """Draw the empty square: paving, a fountain's ring and a wall."""
    picture = np.full((HEIGHT, WIDTH, 3), 178, dtype=np.uint8)
    for x in range(0, WIDTH, 24):
        cv2.line(picture, (x, 8), (x, HEIGHT), (168, 170, 172), 1)
    for y in range(8, HEIGHT, 24):
        cv2.line(picture, (0, y), (WIDTH, y), (168, 170, 172), 1)
    cv2.rectangle(picture, (0, 0), (WIDTH, 6), (120, 132, 150), -1)
    cv2.circle(picture, (120, 66), 4, (190, 170, 150), -1)
    return picture


def draw(frame: int, empty: Frame) -> Frame:
    """Draw one frame: the figures over `empty`."""
    picture = empty.copy()
    half_width, half_height = FIGURE
    for walk in WALKS:
        centre = walk.at(frame)
        if centre is not None:
            x, y = round(centre[0]), round(centre[1])
            sway = 1 if frame % 4 < 2 else -1
            cv2.ellipse(picture, (x, y + 3), (half_width, half_height - 3), 0, 0, 360, walk.colour, -1)
            cv2.circle(picture, (x + sway, y - 7), 4, (110, 140, 180), -1)
    return picture


def write(path: Path = CLIP) -> None:
    """Write the clip and its note.

    Raises:
        ConfigError: OpenCV can't write there.
    """
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
    if not writer.isOpened():
        raise ConfigError(f"clip {path} can't be written: no such folder, no permission or no MPEG-4 encoder")
    empty = background()
    for frame in range(FRAMES):
        writer.write(draw(frame, empty))
    writer.release()
    path.with_name(path.name + ".txt").write_text(NOTE + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Generate the camera's demo clip.")
    parser.add_argument("path", nargs="?", type=Path, default=CLIP)
    write(parser.parse_args().path)
