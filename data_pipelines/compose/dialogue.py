"""Dialogue records: the turns of a pair, with the sizes of its pictures if they are known."""

from __future__ import annotations

from typing import Any

from data_pipelines.compose.record import record_of
from data_pipelines.pair import RawPair
from qwenvl_jax.data.dialogues import THOUSANDTHS
from qwenvl_jax.data.schema import Record


def dialogue(pair: RawPair) -> Record | None:
    """The turns; their parts name the pictures by index."""
    if not pair.turns:
        return None
    content: dict[str, Any] = {"turns": [dict(turn) for turn in pair.turns]}
    if pair.system:
        content["system"] = pair.system
    sizes = [[picture.width, picture.height] for picture in pair.pictures]
    if pair.in_thousandths:
        content["sizes"] = [[THOUSANDTHS, THOUSANDTHS]] * max(1, len(sizes))
    elif sizes and all(width and height for width, height in sizes):
        content["sizes"] = sizes
    return record_of(pair, "dialogue", [content])
