"""Arguments of a config file: `--config=FILE:name=value,name=value`.

A config file declares them as the keyword parameters of its `get_config`, each with a default:

    @named_arguments
    def get_config(mesh: str = "v5p", data: str = "data") -> ml_collections.ConfigDict: ...

The command line then gives `FILE`, `FILE:mesh=v6e` or `FILE:mesh=v6e,data=gs://bucket/data`, and Python calls
`get_config(mesh="v6e")`.
"""

import difflib
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any


def named_arguments(build: Callable[..., Any]) -> Callable[..., Any]:
    """Lets `build` be called with one string of named arguments, as the command line does.

    The result also has the attribute `argument_names`, the names in their order.

    Args:
      build: takes keyword arguments only; each has a default, a string or a float.

    Raises:
      TypeError: if a default is of another type, because the command line could not set it.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(build).parameters.items()}

    for name, default in defaults.items():
        if type(default) not in (str, float):
            raise TypeError(f"the default of the argument {name!r} must be a string or a float, not {default!r}")

    @functools.wraps(build)
    def get_config(text: str | None = None, **arguments: Any) -> Any:
        unknown = [name for name in arguments if name not in defaults]
        if unknown:
            raise TypeError(_unknown(unknown[0], defaults))
        if text:
            values = _parse(text, defaults, os.path.relpath(inspect.getfile(build)))
            twice = [name for name in values if name in arguments]
            if twice:
                raise TypeError(f"the argument {twice[0]!r} is given twice; give it once")
            arguments |= values
        return build(**arguments)

    vars(get_config)["argument_names"] = tuple(defaults)
    return get_config


def _parse(text: str, defaults: dict[str, Any], file: str) -> dict[str, Any]:
    """Reads `name=value,name=value`.

    Raises:
      ValueError: for an unknown name, a name without a value or given twice, a value that is not a number if the
        default is one, and for values without names, which earlier versions took in this order.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part in defaults:
            raise ValueError(f"the argument {part!r} has no value; write {part}=VALUE, or leave it out")
    if not any("=" in part for part in parts) and len(parts) <= len(defaults):
        named = ",".join(f"{name}={part}" for name, part in zip(defaults, parts, strict=False) if part)
        raise ValueError(f"its arguments have names; write --config={file}{':' if named else ''}{named}")
    values: dict[str, Any] = {}
    for part in parts:
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign:
            raise ValueError(
                f"the argument {part!r} has no name; write name=value, with a name of {', '.join(defaults)}"
            )
        if name not in defaults:
            raise ValueError(_unknown(name, defaults))
        if name in values:
            raise ValueError(f"the argument {name!r} is given twice; give it once")
        if not value:
            raise ValueError(f"the argument {name!r} has no value; leave it out for {defaults[name]!r}")
        try:
            values[name] = type(defaults[name])(value)
        except ValueError:
            raise ValueError(f"the argument {name}={value} must be a number") from None
    return values


def _unknown(name: str, defaults: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, defaults, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no argument {name!r}, only {', '.join(defaults)}{hint}"
