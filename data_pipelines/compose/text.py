"""Text records: pure text, without a picture."""

from __future__ import annotations

from data_pipelines.compose.record import record_of
from data_pipelines.pair import RawPair
from qwenvl_jax.data.schema import Record


def text(pair: RawPair) -> Record | None:
    """The first text of a pair that has no picture."""
    return record_of(pair, "text", [] if pair.pictures else [{"text": text} for text in pair.texts[:1]])
