"""From the nested mapping of a config file or of JSON to the dataclasses of the schema, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from qwenvl_jax.config.constraints import all_former_names, former_names, validate
from qwenvl_jax.config.schema import Config
from qwenvl_jax.runtime.errors import UserError, nearest

T = TypeVar("T")

FORMER_KEYS = all_former_names(Config)  # today's names of keys by their former ones


def load_config(values: Mapping[str, Any]) -> Config:
    """The checked config of a run.

    Args:
      values: a nested mapping, such as the ConfigDict that a config file returns.

    Raises:
      UserError: on an unknown or missing key, a value of the wrong type or a value out of range.
    """
    return validate(from_config_dict(Config, values))


def from_config_dict(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """Builds the dataclass `cls` from a nested mapping.

    A key may be missing if its field has a default. A key added to the schema later needs a default that reproduces the
    former behaviour, so that older checkpoints and releases stay readable; a key may have its former name.

    Raises:
      UserError: on an unknown or missing key (naming the nearest valid one) or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    if not hasattr(values, "items"):
        raise UserError(f"{path} must be a group of keys, not {_shown(values)}")
    values = dict(values.items())
    for former, name in former_names(cls).items():
        if former in values:
            if name in values:
                raise UserError(f"{path} has {name} twice, also by its former name {former!r}; remove that")
            values[name] = values.pop(former)
    for key in values:
        if not isinstance(key, str) or key not in hints:
            raise UserError(f"{path} has no key {_shown(key)}{nearest(str(key)[:100], hints)}")
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = [field.name for field in fields if field.name not in values and field.default is dataclasses.MISSING]
    if missing:
        raise UserError(f"{path} lacks the key {missing[0]!r}; add it to the config file")
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise UserError(f"{path} must be a group of keys, not {_shown(value)}")
        return from_config_dict(typing.cast(type, hint), dict(value.items()), path)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise UserError(f"{path} must be a sequence, not {_shown(value)}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1000:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be {hint.__name__}, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    """A value in a message, however long or deep it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # lists in lists, or a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}.."


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any) -> str:
    """Twelve hex digits that change with any value of the config."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]
