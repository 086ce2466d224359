"""Tables of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell that holds more than text: its content as HTML, and CSS classes."""

    content: str
    style: str = ""


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    text_columns: int = 1,
    total: bool = False,
) -> str:
    """A table that scrolls sideways on a narrow screen.

    Args:
      header: the titles of the columns.
      rows: one value per column; anything but a `Cell` is shown as text.
      caption: above the table, if not empty.
      text_columns: this many columns, counted from the left, are aligned to the left (at most 3), all others to the
        right.
      total: whether the last row sums up the others.
    """
    lines = [f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows]
    if total and lines:
        lines[-1] = lines[-1].replace("<tr>", '<tr class="total">', 1)
    titles = "".join(f"<th>{escape(title)}</th>" for title in header)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="left-{text_columns}">{above}<thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if not isinstance(value, Cell):
        return f"<td>{escape(str(value))}</td>"
    style = f' class="{value.style}"' if value.style else ""
    return f"<td{style}>{value.content}</td>"
