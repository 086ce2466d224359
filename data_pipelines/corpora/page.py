"""Writes the generated part of docs/corpora.md: the table of corpora, and the folders that the readers expect.

python -m data_pipelines.corpora.page
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from types import ModuleType

from data_pipelines import corpora
from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.table import CORPORA
from qwenvl_jax.runtime import storage

PAGE = "docs/corpora.md"
MARK = "<!-- The rest is written by `python -m data_pipelines.corpora.page`. -->\n"


def generated() -> str:
    """The table and one section per module that describes a layout."""
    sections = {}
    for corpus in CORPORA.values():
        module = _module_of(corpus)
        sections[module.__name__] = module
    described = [_section(sections[name]) for name in sorted(sections)]
    return "\n".join(["## The table", "", *_table(), "", "## Folders", "", "\n\n".join(described), ""])


def updated(page: str) -> str:
    """The page with its generated part written anew."""
    before, _, _ = page.partition(MARK)
    return f"{before}{MARK}\n{generated()}"


def _table() -> list[str]:
    lines = [
        "| name | record tasks | splits | language | licence | home page | folder |",
        "|---|---|---|---|---|---|---|",
    ]
    for corpus in CORPORA.values():
        title = _title(_module_of(corpus))
        cells = (
            f"`{corpus.name}`",
            ", ".join(corpus.tasks),
            ", ".join(corpus.splits),
            corpus.language or "any",
            corpus.license,
            f"[{corpus.home_page.split('/')[2]}]({corpus.home_page})",
            f"[{title}](#{title})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _module_of(corpus: Corpus) -> ModuleType:
    """The module whose docstring describes the layout: the one that names it, else the one that reads it."""
    for info in pkgutil.iter_modules(corpora.__path__, f"{corpora.__name__}."):
        module = importlib.import_module(info.name)
        if info.name != f"{corpora.__name__}.table" and any(value is corpus.layout for value in vars(module).values()):
            return module
    function = corpus.layout.read_file
    while isinstance(function, functools.partial):
        function = function.func
    return importlib.import_module(function.__module__)


def _title(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _section(module: ModuleType) -> str:
    return f"### {_title(module)}\n\n{(module.__doc__ or '').strip()}"


if __name__ == "__main__":
    page = storage.path(PAGE)
    storage.write_bytes(page, updated(storage.read_bytes(page).decode()).encode())
    sys.exit(0)
