"""How many samples that cannot be read a run bears: `config.data.max_corrupt_share`, of all and of every source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from qwenvl_jax.runtime.errors import UserError

_CERTAIN = 32  # reads per record after which chance has found every record: e to the power of -32 is none


class Tally(NamedTuple):
    """A source so far.

    Attributes:
      name: in the mixture.
      records: that it has.
      judged: samples of it of which it is known whether they can be read.
      corrupt: those that cannot.
      error: what is wrong with one of them.
    """

    name: str
    records: int
    judged: int
    corrupt: int
    error: str


def check_corruption(sources: Sequence[Tally], share: float, part: float) -> None:
    """Raises UserError if samples that cannot be read are more than the configured share, of all or of one source.

    Early on chance weighs much: four standard deviations and three samples above the share are let pass. In a small
    source the same few records come again and again; they count once, as far as that can be told.

    Args:
      sources: what has been judged of every source, by whoever asks.
      share: `config.data.max_corrupt_share`.
      part: of all the reading that is done, how much these are.
    """
    judged, corrupt = sum(source.judged for source in sources), sum(source.corrupt for source in sources)
    if corrupt > allowed(share, judged):
        error = next(source.error for source in sources if source.corrupt)
        raise UserError(
            f"{corrupt} of {judged} samples read so far are corrupt, among them this one: {error}; mend or remove "
            f"them, or raise config.data.max_corrupt_share above {share:g}"
        )
    for source in sources:
        if source.corrupt and _too_many(source, share, part):
            raise UserError(
                f"{source.corrupt} of {source.judged} samples of source {source.name!r} read so far are corrupt, among "
                f"them this one: {source.error}; mend or remove them or the source, or raise "
                f"config.data.max_corrupt_share above {share:g}"
            )


def _too_many(source: Tally, share: float, part: float) -> bool:
    if source.corrupt == source.judged >= _CERTAIN * source.records and share < 1:
        return True  # three records of three would be within the allowance for ever
    distinct = min(source.judged, source.records)
    bearable = allowed(share, distinct)
    if source.judged > part * source.records:  # others may have read those that are missing here: draws, not a count
        bearable += 4 * math.sqrt(bearable * distinct / source.judged)
    return source.corrupt * distinct > bearable * source.judged


def allowed(share: float, judged: int) -> float:
    """How many of so many samples may be corrupt: the share, and what chance may add where there are few."""
    expected = share * judged
    return expected + (4 * math.sqrt(expected) + 3 if share else 0)
