"""Builds the quickstart's data set: real pictures with exact boxes, all tasks, both splits, a vocabulary, a report.

    python -m data_pipelines.quickstart --output=data/quickstart [--train=12000] [--num_stamps=40] [--help]

Writes `<output>/<task>/` (records of every task, see qwenvl_jax.data.readers), `vocabulary/quickstart.model`,
`manifest.json`, `report.html` and `contact_sheet.png`. The folder appears whole or not at all. A finished one with the
same settings stays as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.quickstart.settings import SOURCES, QuickstartSettings
from data_pipelines.quickstart.word_fonts import FONT_SETS
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

_SCENE = QuickstartSettings().scene
_OCR = QuickstartSettings().ocr
_CHOICES = {"source": SOURCES, "fonts": tuple(FONT_SETS)}


def _local_path(text: str) -> Path:
    if storage.is_remote(storage.path(text)):
        raise UserError(f"--cache={text} is remote, but downloads are kept on a disk; give a local folder")
    return Path(storage.path(text))


def _parser() -> Parser:
    parser = Parser("python -m data_pipelines.quickstart", __doc__)
    parser.add_argument("--output", type=storage.path, default="data/quickstart", help="on a disk or gs://")
    parser.add_argument("--cache", type=_local_path, default="data/cache", help="downloads, reusable; on a disk")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core, at most 4")
    for prefix, group in (("", QuickstartSettings()), ("scene.", _SCENE), ("ocr.", _OCR)):
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if dataclasses.is_dataclass(value):
                continue
            names = [f"--{prefix}{field.name}"] + (["--num_stamps"] if field.name == "stamp_count" else [])
            if isinstance(value, tuple):
                parser.add_argument(*names, type=lambda text: tuple(text.split(",")), default=value, metavar="A,B,..")
            elif field.name in _CHOICES:
                parser.add_argument(*names, choices=_CHOICES[field.name], default=value)
            else:
                parser.add_argument(*names, type=type(value), default=value, help=f"default {value}")
    return parser


def settings_from_flags(arguments: argparse.Namespace) -> QuickstartSettings:
    """The settings that the parsed flags describe."""
    values = vars(arguments)
    groups: dict[str, Any] = {
        name: type(default)(**{f.name: values[f"{name}.{f.name}"] for f in dataclasses.fields(default)})
        for name, default in (("scene", _SCENE), ("ocr", _OCR))
    }
    plain = {f.name: values[f.name] for f in dataclasses.fields(QuickstartSettings) if f.name not in groups}
    return QuickstartSettings(**plain, **groups)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one sentence on a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    with exit_on_user_error():
        arguments = _parser().parse_args(argv)
        logging.disable(logging.WARNING)  # Beam's import warns about cloud clients that nothing here needs
        from data_pipelines.quickstart.build import build

        logging.disable(logging.NOTSET)
        workers = arguments.workers or min(4, os.cpu_count() or 1)
        build(settings_from_flags(arguments), arguments.output, arguments.cache, workers)


if __name__ == "__main__":
    main()
