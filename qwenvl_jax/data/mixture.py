"""The stream of a stage: which record of which source comes at place n.

A pure function of (mixture, record counts, seed, n), without state: sources interleave in proportion to their
weights, every source is shuffled anew in each of its epochs and repeats for ever (paper, Tables 2 and 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import grain

from qwenvl_jax.config import DataConfig, SourceConfig
from qwenvl_jax.data.sources import Source, open_source


def source_seed(seed: int, name: str) -> int:
    """A shuffle seed of 32 bits per source, so that adding a source leaves the order of the others alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little")


class Mixture:
    """`mixture[n]` -> (source number, record index) for any n >= 0.

    Args:
      sources: the entries of the mixture, with positive weights.
      lengths: records of each source.
      seed: of the stream.
    """

    def __init__(self, sources: Sequence[SourceConfig], lengths: Sequence[int], seed: int):
        self._streams = [
            grain.MapDataset.range(length).shuffle(seed=source_seed(seed, source.name)).repeat()
            for source, length in zip(sources, lengths, strict=True)
        ]
        numbered = [stream.map(_Numbered(number)) for number, stream in enumerate(self._streams)]
        total = sum(source.weight for source in sources)
        self._mixed = grain.MapDataset.mix(numbered, [source.weight / total for source in sources])

    def __getitem__(self, n: int) -> tuple[int, int]:
        return self._mixed[n]


class _Numbered(grain.transforms.Map):
    """Puts the source's number before the record index."""

    def __init__(self, number: int):
        self._number = number

    def map(self, element: int) -> tuple[int, int]:
        return self._number, int(element)


def open_sources(data: DataConfig, split: str = "train") -> list[Source]:
    """Opens the records of every source.

    Raises:
      UserError: if one cannot be opened (`sources.open_source`).
    """
    return [open_source(source, split) for source in data.mixture]
