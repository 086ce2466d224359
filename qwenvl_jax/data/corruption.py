"""Samples that cannot be read: which errors count as such, and how many are allowed, over all sources and in each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from qwenvl_jax.runtime.errors import StorageError, UserError

# Errors that no record can cause. All others can, also those that are no `Exception`, such as tiktoken's panics.
NOT_OF_A_RECORD = (KeyboardInterrupt, MemoryError, StorageError)
# Errors that mean that a file is missing, not that a disk or a server does not answer.
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

CERTAIN = 32  # reads per record after which every record has been read: the chance of missing one is about e**-32


class Tally(NamedTuple):
    """The counts of a source so far.

    Attributes:
      name: in the mixture.
      records: how many it has.
      judged: samples that were read, successfully or not.
      corrupt: samples that cannot be read.
      error: the error of one corrupt sample.
    """

    name: str
    records: int
    judged: int
    corrupt: int
    error: str


def check_corruption(sources: Sequence[Tally], share: float, part: float) -> None:
    """Raises UserError if more samples than the configured share are corrupt, of all samples or of one source.

    Small counts fluctuate, so up to four standard deviations plus three samples above the expected number are
    tolerated. In a small source the same records are read again and again; each counts once, as far as this is known.

    Args:
      sources: the counts of every source in the streams of the caller.
      share: `config.data.max_corrupt_share`.
      part: the share of all streams that the counts cover.
    """
    judged = sum(source.judged for source in sources)
    corrupt = sum(source.corrupt for source in sources)
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
    if source.corrupt == source.judged >= CERTAIN * source.records and share < 1:
        return True  # a source of three corrupt records would stay within the tolerance for ever
    distinct = min(source.judged, source.records)
    tolerated = allowed(share, distinct)
    if source.judged > part * source.records:  # other streams read the other records, so this is a random sample
        tolerated += 4 * math.sqrt(tolerated * distinct / source.judged)
    return source.corrupt * distinct > tolerated * source.judged


def allowed(share: float, judged: int) -> float:
    """How many of `judged` samples may be corrupt: the share, and a tolerance for chance."""
    expected = share * judged
    return expected + (4 * math.sqrt(expected) + 3 if share else 0)
