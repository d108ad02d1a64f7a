"""A TOML file with a table per device: `module` says which Python module builds it, the rest are its settings."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from mqttcollab.agent import Agent
from mqttcollab.config import read_toml
from mqttcollab.errors import ConfigError


def read_fleet(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a fleet file; raises ConfigError where one has no module."""
    tables = read_toml(path)
    if not tables:
        raise ConfigError(f"{path} names no device: add a table with a module to it")
    for name, table in tables.items():
        if not isinstance(table, dict) or not isinstance(table.get("module"), str):
            raise ConfigError(f'{path}: [{name}] names no module, e.g. module = "devices.wearable"')
    return tables


def choose(path: Path, tables: dict[str, dict[str, Any]], names: list[str]) -> list[str]:
    """The tables to run: those named, by table or by agent name; all if none is."""
    by_agent = {str(table.get("name", name)): name for name, table in tables.items()}
    chosen = []
    for name in names or tables:
        table = name if name in tables else by_agent.get(name.removeprefix("@"))
        if table is None:
            raise ConfigError(f"{path} has no device {name!r}; it has {', '.join(tables)}")
        chosen.append(table)
    return chosen


def build(path: Path, name: str, table: dict[str, Any]) -> Agent:
    """Imports a device's module, from the folder above the fleet file as well, and builds its agent."""
    folder = path.resolve().parent
    for place in (str(folder), str(folder.parent)):
        if place not in sys.path:
            sys.path.insert(0, place)
    try:
        module = importlib.import_module(table["module"])
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path}: [{name}]: {error}; is its extra installed? pip install 'mqttcollab[devices]'"
        ) from None
    if not hasattr(module, "build"):
        raise ConfigError(f"{path}: [{name}]: the module {table['module']} has no function build(settings)")
    try:
        agent = module.build({**table, "folder": str(folder)})
    except ConfigError as error:
        raise ConfigError(f"{path}: [{name}]: {error}") from None
    if not isinstance(agent, Agent):
        raise ConfigError(f"{path}: [{name}]: build() returned {type(agent).__name__}, not an Agent")
    return agent
