"""A TOML file with a table per device: `module` says which Python module builds it, the rest are its settings."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from mqttcollab.agent import Agent
from mqttcollab.config import read_toml
from mqttcollab.errors import ConfigError, MqttCollabError


def read_fleet(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a fleet file; raises ConfigError where one has no module or two have the same agent name."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name the TOML file in it, e.g. {path / 'fleet.toml'}")
    tables = read_toml(path)
    if not tables:
        raise ConfigError(f"{path} names no device: add a table with a module to it")
    names: dict[str, str] = {}
    for table, settings in tables.items():
        if not isinstance(settings, dict) or not isinstance(settings.get("module"), str):
            raise ConfigError(f'{path}: [{table}] names no module, e.g. module = "devices.wearable"')
        if "name" in settings:
            other = names.setdefault(str(settings["name"]), table)
            if other != table:
                raise ConfigError(
                    f"{path}: [{other}] and [{table}] are both called {settings['name']!r}: give each its own name"
                )
    return tables


def choose(path: Path, tables: dict[str, dict[str, Any]], names: list[str]) -> list[str]:
    """The tables to run: those named, by table or by agent name; all if none is."""
    by_agent = {str(table["name"]): name for name, table in tables.items() if "name" in table}
    chosen: dict[str, None] = {}
    for name in names or tables:
        table = name if name in tables else by_agent.get(name.removeprefix("@"))
        if table is None:
            raise ConfigError(f"{path} has no device {name!r}; it has {', '.join(tables)}")
        chosen[table] = None
    return list(chosen)


def build(path: Path, name: str, table: dict[str, Any]) -> Agent:
    """Imports a device's module, from the fleet file's folder or the one above it as well, and builds its agent."""
    where, folder = f"{path}: [{name}]", path.resolve().parent
    for place in (str(folder), str(folder.parent)):
        if place not in sys.path:
            sys.path.insert(0, place)
    module = _import(where, table["module"])
    if not hasattr(module, "build"):
        raise ConfigError(f"{where}: the module {table['module']} has no function build(settings)")
    try:
        agent = module.build({**table, "folder": str(folder)})
    except MqttCollabError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:
        raise ConfigError(f"{where}: build() of {table['module']} failed: {_in_short(error)}") from error
    if not isinstance(agent, Agent):
        raise ConfigError(f"{where}: build() of {table['module']} returned {type(agent).__name__}, not an Agent")
    return agent


def _import(where: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{where}: module is {name!r}; expected a dotted name such as devices.wearable")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(f"{where}: there is no module {name!r} beside the file or installed") from None
        raise ConfigError(
            f"{where}: {name} needs {missing}, which is not installed; for our own devices: "
            "pip install 'mqttcollab[devices]'"
        ) from None
    except SyntaxError as error:
        raise ConfigError(f"{where}: {error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        raise ConfigError(f"{where}: importing {name} failed: {_in_short(error)}") from error


def _in_short(error: Exception) -> str:
    """An error in a device's own code: what, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
