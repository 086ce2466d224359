"""tables.md: the paper's tables with the figures of a sweep.

Names and labels are a user's and reasons may contain texts of records, so every text is escaped and cut: no text can
start a column, a line, a link or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qwenvl_jax.evaluation.report import columns
from qwenvl_jax.evaluation.report.tables import Table, tables_of
from qwenvl_jax.evaluation.results.entries import Entry
from qwenvl_jax.evaluation.results.progress import Unfinished
from qwenvl_jax.html.page import visible

LONGEST = 200  # characters of a text that are shown
# Characters that may begin something in CommonMark or GitHub's dialect. A backslash before one shows the character.
_ACTIVE = re.compile(r"[\\`*\[\]<>|~$&!#]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)


def tables_as_markdown(entries: Sequence[Entry], unfinished: Sequence[Unfinished] = ()) -> str:
    """The benchmarks that are not finished, then all tables, each in the paper's layout and with all columns."""
    parts = ["# Results", ""]
    if unfinished:
        parts += ["## Not finished", "", *(f"- {escaped(str(each))}" for each in unfinished), ""]
    for table in tables_of(entries):
        parts += [f"## {table.title}", ""]
        if table.columns:
            parts += [_grid(columns.overview_header(table), columns.overview(table), 1), ""]
        parts += [_grid(columns.details_header(table), columns.details(table), 2), ""]
        parts += [f"- **{escaped(title)}** {escaped(note, 4 * LONGEST)}" for title, note in table.notes]
        parts += [""] if table.notes else []
        parts += _baselines(table)
    return "\n".join(parts).rstrip() + "\n"


def escaped(text: str, longest: int = LONGEST) -> str:
    """A text as Markdown that shows it in one line, cut to `longest` characters; unseen characters as numbers."""
    text = " ".join(visible(text[: longest + 1]).split())
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return _ACTIVE.sub(r"\\\g<0>", text)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A table whose first columns are texts; the others are numbers."""
    marks = ["---"] * texts + ["---:"] * (len(header) - texts)
    lines = [[escaped(title) for title in header], marks]
    lines += [[*(escaped(cell) for cell in row[:texts]), *row[texts:]] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _baselines(table: Table) -> list[str]:
    """Sentences that name what the differences are compared with."""
    named = dict.fromkeys((line.checkpoint, line.baseline) for line in table.lines if line.comparison)
    if not named:
        return []
    pairs = ", ".join(f"{escaped(name)} with {escaped(baseline)}" for name, baseline in named)
    return [f"Differences compare {pairs}.", ""]
