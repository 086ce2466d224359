"""Flags of the mains: absl flags and a config file whose keys can be set on the command line."""

from __future__ import annotations

import ast
import atexit
import logging as stdlib_logging
import math
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from qwenvl_jax.runtime import exit_codes, retries, standard_streams
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error, nearest

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=(.*))?$", re.DOTALL)
_INDEX = re.compile(r"\[(\d{1,9})\]")

flags.disclaim_key_flags()  # `--config` is a flag of the main that defines it, whose `--help` shows it

_former_keys: dict[str, str] = {}  # today's names of config keys by their former ones


def define_config(help_text: str, former_keys: Mapping[str, str] | None = None, *, name: str = "config") -> Any:
    """Defines `--config=FILE[:name=value,..]` and `--config.key=value`; returns the flag's holder.

    Args:
      help_text: of the flag.
      former_keys: today's names of keys by their former ones; a key with a former name is refused with today's.
      name: of the flag.
    """
    _former_keys.update(former_keys or {})
    return config_flags.DEFINE_config_file(name, None, help_text)


def run(
    main: Callable[..., None], *, positional: int = 0, needs_config: bool = True, verbosity: int = logging.WARNING
) -> None:
    """Runs the main function of a command; never returns.

    A user's mistake, on the command line or anywhere in `main`, ends the command with one sentence and exit code 2.
    All exit codes are those of `exit_codes`.

    Args:
      main: gets the positional arguments of the command line.
      positional: how many of them it takes at most.
      needs_config: as for `parse`.
      verbosity: of absl's log, if the command line does not set `--verbosity`.
    """

    def parser(argv: list[str]) -> list[str]:
        with exit_on_user_error():
            retries.patience()  # an invalid variable is reported now, not at the first failure of storage
            return parse(argv, needs_config=needs_config, verbosity=verbosity)
        raise AssertionError("unreachable")

    def framed(argv: list[str]) -> None:
        arguments = argv[1:]
        try:
            with exit_on_user_error():
                if len(arguments) > positional:
                    raise UserError(f"unexpected argument {arguments[positional]!r}; flags begin with --")
                main(*arguments)
        except SystemExit as end:
            if end.code == exit_codes.INTERRUPTED:
                leave(exit_codes.INTERRUPTED)
            raise
        except Exception as error:
            if exit_codes.of_exception(error) == exit_codes.RETRY:
                traceback.print_exc()
                leave(exit_codes.RETRY)
            raise

    standard_streams.make_lasting()
    app.run(framed, flags_parser=parser)


def leave(code: int) -> NoReturn:
    """Ends the process without tearing the interpreter down: threads of XLA that still compute would crash in it."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parse(argv: Sequence[str], *, needs_config: bool = True, verbosity: int = logging.WARNING) -> list[str]:
    """Parses the command line; used instead of absl's parser.

    Args:
      argv: the program's name and its arguments.
      needs_config: whether a main that defines `--config` cannot do without it.
      verbosity: of absl's log, if the command line does not set `--verbosity`.

    Returns:
      What is left of it: the program's name and positional arguments.

    Raises:
      UserError: on an unknown flag or config key, a value that cannot be read, a config file that is missing.
    """
    for arg in argv[1:]:
        if any("\ud800" <= letter <= "\udfff" for letter in arg):
            raise UserError(f"the argument {arg!a} is not valid UTF-8; rename what it names")
    _check_overrides(argv)
    try:
        left = flags.FLAGS(list(argv), known_only=False)
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"unknown flag --{error.flagname}{nearest(error.flagname, flags.FLAGS)}") from None
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(_cause(error)) from None
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value} is no finite number; give one")
    flag = flags.FLAGS["verbosity"]
    if not flag.present:
        logging.set_verbosity(verbosity)
        flag.using_default_value = False  # or app.run sets it back
    asks_help = any(arg.lstrip("-") in ("help", "helpfull", "helpshort", "helpxml") for arg in argv)
    if needs_config and "config" in flags.FLAGS and not asks_help and flags.FLAGS.config is None:
        raise UserError("--config is missing; name a config file, e.g. --config=configs/quickstart/stage0_text.py")
    return left


def changed(values: Any, settings: Sequence[str]) -> Any:
    """A copy of a config with settings as `data.accumulation=4`, whose values are written as in Python.

    Raises:
      UserError: for an unknown key, or a value of another type than the key's.
    """
    values = values.copy_and_resolve_references()
    for setting in settings:
        key, _, text = setting.partition("=")
        key = key.removeprefix("config.")
        _check_key(key, values)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            values.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"config.{key} cannot be {text!r}: {_cause(error)}") from None
    return values


def argument_names(path: str) -> tuple[str, ...]:
    """The names of the arguments that a config file takes after its colon; see `configs/arguments.py`."""
    return tuple(getattr(runpy.run_path(path)["get_config"], "argument_names", ()))


def config_of(argument: str) -> Any:
    """What the `get_config` of a config file returns for its arguments; for commands that need more than one config.

    Args:
      argument: FILE or FILE:name=value,..

    Raises:
      UserError: if it cannot be read.
    """
    file, _, text = argument.partition(":")
    try:
        get_config = runpy.run_path(file)["get_config"]
        return get_config(text) if text else get_config()
    except Exception as error:  # a config file is a program
        raise UserError(f"the config {argument} cannot be read: {_cause(error)}; correct it or its arguments") from None


def _check_overrides(argv: Sequence[str]) -> None:
    """Loads the config file and checks that every `--config.key` names one of its keys."""
    if "config" not in flags.FLAGS:
        return
    paths = [match[1] for arg in argv if (match := re.fullmatch(r"--?config=(.*)", arg, re.DOTALL))]
    paths += [argv[k + 1] for k, arg in enumerate(argv[:-1]) if arg in ("--config", "-config")]
    overrides = [match[1] for arg in argv if (match := _OVERRIDE.match(arg))]
    if not paths:
        if overrides:
            raise UserError("--config is missing; name the config file before its overrides")
        return
    if len(set(paths)) > 1:
        raise UserError(f"--config is given more than once, as {' and '.join(map(repr, paths))}; give one")
    values = _load(paths[0])
    for key in overrides:
        _check_key(key, values)


def _load(path: str) -> Mapping[str, Any]:
    """The result of a config file, which is a program: it may raise anything or end the process."""
    if not path:
        raise UserError("--config= names no file; give one, e.g. --config=configs/quickstart/stage0_text.py")
    if os.path.isdir(path):
        raise UserError(f"the config file {path} is a folder; name a file in it, ending in .py")
    stdlib_logging.disable(stdlib_logging.WARNING)  # the library warns of what is said below
    try:
        values: Any = flags.FLAGS["config"].parser.parse(path)
        if values is None:
            raise UserError(f"the config file {path} returns no config; get_config must end with `return`")
        values.items()  # a file that cannot be read gives an object that fails when it is used
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        kind = (
            "" if isinstance(error, OSError | AttributeError | TypeError | ValueError) else type(error).__name__ + ": "
        )
        raise UserError(f"the config file {path} cannot be loaded: {kind}{_cause(error)}") from None
    finally:
        stdlib_logging.disable(stdlib_logging.NOTSET)
    return values


def _check_key(key: str, values: Mapping[str, Any]) -> None:
    node: Any = values
    path = "config"
    for part in key.split("."):
        name = part.split("[")[0]
        if not hasattr(node, "keys") or name not in node:
            known = node.keys() if hasattr(node, "keys") else ()
            if _former_keys.get(name) in known:
                raise UserError(f"{path}.{name} is now named {path}.{_former_keys[name]}; write that")
            raise UserError(f"{path} has no key {name!r}{nearest(name, known)}")
        node = node[name]
        for index in _INDEX.findall(part):
            if not isinstance(node, list | tuple) or int(index) >= len(node):
                raise UserError(f"{path}.{name} has no entry {index}; its first one has the index 0")
            node = node[int(index)]
        path = f"{path}.{part}"


def _cause(error: BaseException) -> str:
    """The last line that is not empty: libraries put the cause at the end of long texts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1].removeprefix("ValueError: ").removeprefix("TypeError: ")
