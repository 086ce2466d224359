"""Untrusted texts, made short enough for a page."""

from __future__ import annotations

from collections.abc import Sequence


def shortened(value: object, most: int) -> str:
    """The first characters of a text."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shortened(name, 40) for name in names[:most]) + more
