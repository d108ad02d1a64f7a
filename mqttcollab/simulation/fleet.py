"""A simulated fleet in TOML."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mqttcollab.config import read_toml
from mqttcollab.errors import ConfigError
from mqttcollab.simulation.engine import Cloud, Device

_PROMPTS_FASTER = 10

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class SimulatedFleet(NamedTuple):
    """The devices, and the cloud for what they can't do."""

    devices: tuple[Device, ...]
    cloud: Cloud


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _DeviceTable(_Table):
    name: Annotated[str, Field(min_length=1, strict=True)]
    tokens_per_s: _Positive
    prompt_tokens_per_s: _Positive | None = None
    slots: Annotated[int, Field(ge=1, strict=True)] = 1
    link_s: _NotNegative = 0.002
    down: list[tuple[_NotNegative, _NotNegative]] = []


class _CloudTable(_Table):
    prompt_usd_per_mtok: _NotNegative
    completion_usd_per_mtok: _NotNegative
    tokens_per_s: _Positive = 30.0
    overhead_s: _NotNegative = 0.8


class _FleetFile(_Table):
    device: list[_DeviceTable] = []
    cloud: _CloudTable | None = None


def read_fleet(path: Path | None = None) -> SimulatedFleet:
    """Reads a fleet; without a path the one that comes along: eight devices like the paper's.

    Raises:
        ConfigError: the file can't be read, or a key in it is missing, unknown or wrong.
    """
    if path is not None:
        return _fleet(str(path), read_toml(path))
    with as_file(files("mqttcollab.simulation") / "data" / "fleet.toml") as shipped:
        return _fleet("the fleet that comes along", read_toml(shipped))


def with_outages(fleet: SimulatedFleet, outages: dict[str, tuple[float, float]]) -> SimulatedFleet:
    """The fleet with devices that are also down, from and to, in seconds.

    Raises:
        ConfigError: there is no such device, or it is down then already.
    """
    names = [device.name for device in fleet.devices]
    for name in outages:
        if name not in names:
            raise ConfigError(f"there is no device {name!r} that could be down; the fleet has {', '.join(names)}")
    devices = tuple(
        replace(device, down=_in_order(device.name, [*device.down, outages[device.name]]))
        if device.name in outages
        else device
        for device in fleet.devices
    )
    return fleet._replace(devices=devices)


def second_fastest(fleet: SimulatedFleet) -> str:
    """The name of the device that writes fastest but one; of the only one where there is no other."""
    by_speed = sorted(fleet.devices, key=lambda device: -device.tokens_per_s * device.slots)
    return by_speed[min(1, len(by_speed) - 1)].name


def _fleet(where: str, content: dict[str, Any]) -> SimulatedFleet:
    try:
        found = _FleetFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_told(where, content, error)) from None
    if not found.device:
        raise ConfigError(f"{where} names no device: add a [[device]] with a name and its tokens_per_s")
    names = [table.name for table in found.device]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: two devices are called {name!r}: give each its own name")
    cloud = Cloud(**found.cloud.model_dump()) if found.cloud is not None else Cloud()
    return SimulatedFleet(tuple(_device(where, table) for table in found.device), cloud)


def _device(where: str, table: _DeviceTable) -> Device:
    return Device(
        name=table.name,
        tokens_per_s=table.tokens_per_s,
        prompt_tokens_per_s=table.prompt_tokens_per_s or _PROMPTS_FASTER * table.tokens_per_s,
        slots=table.slots,
        link_s=table.link_s,
        down=_in_order(f"{where}: {table.name}", table.down),
    )


def _in_order(where: str, down: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    down = sorted(down)
    for begins, ends in down:
        if not begins < ends:
            raise ConfigError(f"{where} is down from {begins:g} to {ends:g}: the end has to come after the beginning")
    for (_, ends), (begins, _) in pairwise(down):
        if begins <= ends:
            raise ConfigError(f"{where} is down twice at {begins:g} s: make one time of the two")
    return tuple(down)


def _told(where: str, content: dict[str, Any], error: ValidationError) -> str:
    """What is wrong first, in a line."""
    first = error.errors()[0]
    *tables, key = first["loc"]
    model: type[_Table] = _FleetFile
    if tables and tables[0] == "device" and len(tables) > 1:
        model, number = _DeviceTable, int(tables[1])
        table = content["device"][number]
        where += f": device {table['name']!r}" if "name" in table else f": device {number + 1}"
        key = ".".join(map(str, [*tables[2:], key]))
    elif tables and tables[0] == "cloud":
        model = _CloudTable
        where += ": [cloud]"
    elif first["type"] == "model_type":
        return f"{where}: each [[device]] has to be a table with a name and tokens_per_s"
    if first["type"] == "extra_forbidden":
        return f"{where}: {key} is not a setting; known are {', '.join(model.model_fields)}"
    if first["type"] == "missing":
        return f"{where}: {key} is missing; set it"
    return f"{where}: {key} is {first['input']!r}: {first['msg']}"
