"""Tables and lines for the user, printed by the primary process only."""

from __future__ import annotations

import contextlib
import functools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qwenvl_jax.runtime.distributed import is_primary

# Characters that change the direction of the text after them.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@functools.cache
def console() -> Console:
    """The console of this process. Away from a terminal lines are not wrapped to some guessed width."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=1000, soft_wrap=True)


def line(text: str) -> None:
    """Prints one plain line. Touches no device: a tool may use it while a job runs on the same host."""
    if is_primary():
        console().print(text, markup=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table, the first column to the left, the others to the right. Narrow terminals wrap the first.

    Cells are plain text, or what `bold` returns.
    """
    if not is_primary():
        return
    made = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0, overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console().print(made)


def bold(text: str) -> Text:
    """A cell of a table in bold print."""
    return Text(text, "bold")


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, gone when the block ends. Elsewhere nothing is shown.

    Yields:
      A function that advances the bar by a number of steps, by default one.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (is_primary() and console().is_terminal)
    with Progress(*columns, console=console(), transient=True, disable=hidden) as bar:
        yield functools.partial(bar.advance, bar.add_task(title, total=total))


def printable(text: str) -> str:
    """The text without control characters and changes of direction, which a terminal obeys; they become U+FFFD.

    For texts that come from a model, from records or from the web.
    """
    return "".join(
        "\ufffd" if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or c in _TURNING else c for c in text
    )


def count(value: float) -> str:
    """1234567 as `1,234,567`."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in binary units, e.g. `14.4 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"
