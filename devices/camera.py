"""A camera: motion and the number of moving people, from a video, a folder of pictures or a camera device.

See `analysis/motion.py` for the method. What a text file beside a video says of it (its name + ".txt", such
as that the demo's clip is generated) is part of every answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices import HERE, embedder_of, main, read_settings
from devices.analysis.motion import Frames, Scene, Watcher
from devices.observer import Observer
from mqttcollab import Agent, Answer, ConfigError, Request, RequestError

SERVICE = "data.gpt/vision/occupancy"
DESCRIPTION = "Camera over the square: how many people move there and how much motion there is"
EXAMPLES = (
    "How many people are in the square?",
    "Is it crowded here?",
    "Is anybody moving in front of the camera?",
    "Can we set up stands for a market or an outdoor event on the square this afternoon?",
    "How busy is the town square today?",
    "Is the town square empty of people?",
    "Count the pedestrians and visitors",
    "Is there room for a crowd at a festival or open-air concert here?",
    "Did someone walk past the entrance?",
    "Are there many pedestrians around?",
    "What does the camera see?",
    "How many visitors are walking about right now?",
    "Is the plaza full or deserted?",
    "Is there a queue of people at the gate?",
    "How much movement is there in the picture?",
    "Did anyone come by in the last minutes?",
    "Is it quiet or bustling in the pedestrian area?",
    "Are people gathering out there?",
    "How dense is the crowd?",
    "Would it be too packed to walk through with a pram?",
    "Is somebody loitering at the door?",
)
UNITS = {"people": "1", "people_most": "1", "motion": "%", "window": "s", "frame": "1"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the camera.

    Attributes:
        source: a video file, a folder of pictures, or the number of a camera device.
        fps: pictures per second, where the source doesn't say (a folder).
        smallest: a moving area of fewer pixels is no person.
    """

    name: str = "cam-5"
    place: str = "over the square"
    source: Path | int = HERE / "data" / "square.mp4"
    fps: float = 10.0
    smallest: int = 40
    window_s: float = 2.0
    interval: float = 2.0
    embedder: str | None = None


def values_of(scene: Scene) -> dict[str, float]:
    """Return the numbers of a scene; units in `UNITS`."""
    return {
        "people": scene.moving,
        "people_most": scene.most,
        "motion": round(100 * scene.motion, 2),
        "window": round(scene.seconds, 1),
        "frame": scene.index,
    }


def text_of(scene: Scene, place: str, note: str) -> str:
    """Say a scene in one line."""
    busy = "nobody moves" if scene.most == 0 else f"{scene.moving} moving (at most {scene.most} at once)"
    text = f"Camera {place}, last {scene.seconds:.0f} s: {busy}; {100 * scene.motion:.1f}% of the picture in motion"
    return f"{text} ({note})" if note else text


def crowding(scene: Scene) -> str:
    """Say in a word how busy the scene is; a density would need the area in view, which is not known."""
    if scene.most == 0:
        return "The place is empty of moving people"
    return "It is quiet" if scene.moving <= 5 else "It is busy" if scene.moving <= 20 else "It is crowded"


def build(settings: Mapping[str, Any]) -> Agent:
    """Build the agent. Raises ConfigError."""
    options = read_settings(Settings, settings)
    frames = Frames(options.source, options.fps)
    watcher = Watcher(frames, smallest=options.smallest, window_s=options.window_s)
    turn = asyncio.Lock()
    agent = Agent(
        options.name,
        description="A camera that counts who moves",
        place=options.place,
        embedder=embedder_of(options.embedder),
        hardware={"kind": "camera", "source": frames.name},
    )

    observer = Observer(agent, SERVICE, UNITS)

    async def look() -> tuple[Scene, str]:
        async with turn:
            scene = await asyncio.to_thread(watcher.look, time.monotonic())
        return scene, text_of(scene, options.place, frames.note)

    @agent.service(SERVICE, description=DESCRIPTION, examples=EXAMPLES)
    async def occupancy(request: Request) -> Answer:
        try:
            scene, text = await look()
        except ConfigError as error:
            raise RequestError("no_capability", f"the camera gives no picture: {error}") from error
        return Answer(
            text=f"{text}. {crowding(scene)}. Who stands still or walks close together is not counted separately.",
            data={**values_of(scene), "note": frames.note, "units": UNITS},
            confidence=0.8 if scene.most == scene.moving else 0.6,
            sources=[observer.source(f"{frames.name}, picture {scene.index}", text)],
        )

    @agent.every(options.interval)
    async def observe() -> None:
        scene, text = await look()
        await observer.publish(text, values_of(scene))

    return agent


if __name__ == "__main__":
    main(build)
