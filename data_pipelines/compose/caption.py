"""Caption records: the first text of a picture. The rule `longest_caption`, if there is one, chose it."""

from __future__ import annotations

from data_pipelines.compose.record import record_of
from data_pipelines.pair import RawPair
from qwenvl_jax.data.schema import Record


def caption(pair: RawPair) -> Record | None:
    """The picture with its first text."""
    return record_of(pair, "caption", [{"caption": text} for text in pair.texts[:1]])
