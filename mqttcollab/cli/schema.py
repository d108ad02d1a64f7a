"""`mqttcollab schema`."""

from __future__ import annotations

import json
from pathlib import Path

from mqttcollab.cli.show import console
from mqttcollab.errors import ConfigError
from mqttcollab.schema import schemas


def write_schemas(type_: str | None, out: Path | None) -> None:
    """Prints the schemas, or writes a file per type."""
    known = schemas()
    if type_ is not None:
        chosen = {name: s for name, s in known.items() if type_ in (name, name.split(".")[1])}
        if not chosen:
            raise ConfigError(f"no message type {type_!r}; known: {', '.join(known)}")
    else:
        chosen = known
    if out is None:
        only = next(iter(chosen.values())) if type_ is not None else chosen
        console.out(json.dumps(only, indent=2))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, schema in chosen.items():
            (out / f"{name}.schema.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write to {out}: {error.strerror}") from None
    console.print(f"{len(chosen)} schemas in {out}")
