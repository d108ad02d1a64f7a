"""The settings of an agent in front of a cloud model, from a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mqttcollab.cloud.ledger import Limits
from mqttcollab.cloud.prices import PriceEntry, to_nano
from mqttcollab.config import read_toml
from mqttcollab.errors import ConfigError
from mqttcollab.topics import KEY_RE

_Usd = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
_AtLeastOne = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LimitSettings(_Table):
    """`[limits]`: US dollars a day (UTC) over all, and in `tenants` by tenant; `default` is for those not named."""

    usd_per_day: _Usd
    tenants: dict[str, _Usd] = {}

    def limits(self) -> Limits:
        """The same in nano-dollars."""
        named = {tenant: to_nano(usd) for tenant, usd in self.tenants.items()}
        return Limits(to_nano(self.usd_per_day), named.pop("default", None), named)


class RedactionSettings(_Table):
    """`[redaction]`: see `Redactor`; `restore` puts back into the answer what was taken out of the question."""

    kinds: list[str] | None = None
    words: list[str] = []
    patterns: dict[str, str] = {}
    restore: bool = True


class RetrySettings(_Table):
    """`[retry]`: calls per request at most, and the pause before the second; it doubles, up to `backoff_max_s`."""

    tries: Annotated[int, Field(ge=1, le=20)] = 4
    backoff_s: _Seconds = 0.5
    backoff_max_s: _Seconds = 20.0


class BreakerSettings(_Table):
    """`[breaker]`: opens after so many failures in a row, for `pause_s`.

    A deadline that ends a call counts as a failure of the endpoint only if that had `patience_s` to answer.
    """

    failures: _AtLeastOne = 5
    pause_s: _Seconds = 30.0
    patience_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0


class CloudSettings(_Table):
    """All of the file.

    Attributes:
        folder: what relative paths start from; set by `read_cloud`.
        where: how the file is called, for messages; likewise.
        endpoint: model, base_url, api_key_env, timeout_s, max_tokens_field; see `load_runtime`.
        model_key: how the model is called in topics; None for its name, what can't stand in a topic being `-`.
        accuracy: share of right answers, 0 to 1, where it was measured; for the record.
        max_tokens: the longest answer, and what one is where the request does not say.
    """

    folder: Path = Path()
    where: str = "cloud"
    name: str = "cloud-1"
    service: str = "computation.gpt/cloud"
    description: str = "A large language model in the cloud: answers what the devices can't, and costs money"
    examples: list[str] = []
    place: str | None = None
    system: str = "You are a helpful assistant. Answer in a few short sentences."
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 4
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    ledger: str = "cloud.sqlite"
    model_key: str | None = None
    endpoint: dict[str, Any]
    prices: dict[str, PriceEntry] = {}
    limits: LimitSettings
    redaction: RedactionSettings = RedactionSettings()
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()

    def key(self, model: str) -> str:
        """How the model is called in topics; raises ConfigError where that can't be a topic level."""
        key = self.model_key or "".join(c if KEY_RE.fullmatch(f"x{c}") else "-" for c in model)
        if not KEY_RE.fullmatch(key):
            raise ConfigError(f"{self.where}: model_key is {key!r}; use 1 to 128 of A-Z a-z 0-9 . _ -")
        return key

    @property
    def ledger_path(self) -> Path:
        """Where the ledger is."""
        return self.folder / Path(self.ledger).expanduser()


def read_cloud(path: Path) -> CloudSettings:
    """Reads a file; raises ConfigError naming the key that is missing, unknown or wrong."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name the TOML file in it")
    settings = read_toml(path)
    for name in ("folder", "where"):
        if name in settings:
            raise ConfigError(f"{path}: {name} is not a setting")
    return parse_cloud(settings, folder=path.resolve().parent, where=str(path))


def parse_cloud(settings: dict[str, Any], *, folder: Path, where: str) -> CloudSettings:
    """The settings from tables; raises ConfigError like `read_cloud`."""
    try:
        return CloudSettings.model_validate({**settings, "folder": folder, "where": where})
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{key} is not a setting"
    if first["type"] == "missing":
        return f"{key} is missing; set it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if isinstance(first["input"], dict) else f"{key} is {first['input']!r}: {message}"
