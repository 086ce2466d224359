"""All hashes within a distance of another one, exactly: an index by parts of 16 bits.

If two hashes of 256 bits differ in at most d bits, then one of their 16 parts differs in at most d // 16. So the parts
of a hash are looked up with all variants of that many bits, and the candidates are compared in full.

N: hashes. P: parts.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

from data_pipelines.duplicates.signatures import PICTURE_BYTES, distances

_PARTS = PICTURE_BYTES // 2
_VALUES = 1 << 16
_FEW = 20_000  # so many hashes are compared one by one as fast


class HashIndex:
    """Answers which hashes are near another one.

    Args:
      hashes: uint8 [N, 32].
    """

    def __init__(self, hashes: np.ndarray):
        self._hashes = np.ascontiguousarray(hashes)
        self._indexed = len(hashes) > _FEW
        if self._indexed:
            parts_NP = self._hashes.view(np.uint16)
            self._order_PN = np.argsort(parts_NP.T, axis=1, kind="stable").astype(np.int32)
            edges = np.arange(_VALUES + 1)
            rows = zip(parts_NP.T, self._order_PN, strict=True)
            self._starts_PV = np.stack([np.searchsorted(part[order], edges) for part, order in rows])

    def near(self, one: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
        """The hashes within `distance` bits of `one`: their indices, ascending, and distances."""
        indices = self._candidates(one, distance // _PARTS) if self._indexed else np.arange(len(self._hashes))
        counts = distances(one, self._hashes[indices])
        close = counts <= distance
        return indices[close], counts[close]

    def _candidates(self, one: np.ndarray, wrong: int) -> np.ndarray:
        parts = np.ascontiguousarray(one).view(np.uint16)
        chosen = []
        for part, order, starts in zip(parts, self._order_PN, self._starts_PV, strict=True):
            values = _masks(wrong) ^ part
            first = starts[values]
            counts = starts[values.astype(np.int64) + 1] - first
            skipped = np.repeat(first - np.cumsum(counts) + counts, counts)
            chosen.append(order[np.arange(counts.sum()) + skipped])
        return np.unique(np.concatenate(chosen))


@functools.cache
def _masks(wrong: int) -> np.ndarray:
    """All values of 16 bits with at most `wrong` bits set."""
    sets = (bits for count in range(wrong + 1) for bits in itertools.combinations(range(16), count))
    return np.array([sum(1 << bit for bit in bits) for bits in sets], np.uint16)
