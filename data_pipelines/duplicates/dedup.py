"""Rules across pairs: the longest text of a picture (paper, A.1), exact duplicates, near duplicates.

    ACROSS["cc12m"] = (LongestText(), ExactDuplicates())

The paper removes no near duplicates; `NearTexts` is used for plain text; no recipe uses `NearPictures`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import ClassVar

import numpy as np

from data_pipelines.clean.across import KEY_BYTES, AcrossRule, Candidate
from data_pipelines.duplicates.signatures import (
    PERMUTATIONS,
    PICTURE_BYTES,
    distances,
    flipped,
    hash_of,
    minhash,
    picture_of,
)
from data_pipelines.pair import RawPair
from qwenvl_jax.runtime.errors import UserError


def _key(*parts: bytes) -> bytes:
    """One key for several values; their lengths count, so that no two lists give the same bytes."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _length(pair: RawPair) -> int:
    return max(map(len, pair.texts), default=0)


@dataclasses.dataclass(frozen=True)
class LongestText(AcrossRule):
    """Keeps, of the pairs with the same pictures, the one with the longest text (A.1, last paragraph).

    Pictures are compared by content, texts by length in characters.
    """

    reason: ClassVar[str] = "shorter text of the same picture"

    def candidate(self, pair: RawPair) -> Candidate | None:
        """See `AcrossRule`; pairs without a picture or a text stay."""
        if not pair.pictures or not pair.texts:
            return None
        return Candidate((_key(*(picture.read() for picture in pair.pictures)),), rank=_length(pair))


@dataclasses.dataclass(frozen=True)
class ExactDuplicates(AcrossRule):
    """Keeps the first of the pairs that are equal in pictures, texts and all annotations."""

    reason: ClassVar[str] = "the same as another pair"

    def candidate(self, pair: RawPair) -> Candidate | None:
        """See `AcrossRule`."""
        annotations = (pair.texts, pair.questions, pair.regions, pair.lines, pair.turns)
        pictures = [picture.read() for picture in pair.pictures]
        return Candidate((_key(repr(annotations).encode("utf-8", "surrogatepass"), *pictures),))


@dataclasses.dataclass(frozen=True)
class NearPictures(AcrossRule):
    """Keeps, of the pairs with nearly the same picture, the one with the most pixels.

    Pictures that differ by their size, by compression, in grey, or as in a mirror are found; crops are not. Pairs are
    compared if their hashes, or one and the mirrored other, agree in one of eight parts of 32 bits: always up to 7
    different bits. Pairs of several pictures, and plain pictures, stay.

    Attributes:
      distance: bits of 256 that may differ.
    """

    distance: int = 12
    reason: ClassVar[str] = "nearly the same picture"

    @property
    def signature_bytes(self) -> int:
        """The bytes of the hash of the picture and of the hash of the mirrored picture."""
        return 2 * PICTURE_BYTES

    def candidate(self, pair: RawPair) -> Candidate | None:
        """See `AcrossRule`."""
        if len(pair.pictures) != 1:
            return None
        try:
            image = picture_of(pair.pictures[0].read())
        except UserError:
            return None
        hashes = [hash_of(image), hash_of(flipped(image))]
        if hashes[0] is None or hashes[1] is None:
            return None
        parts = [bits.reshape(8, 4) for bits in hashes if bits is not None]
        keys = {_key(bytes([band]), part[band].tobytes()) for part in parts for band in range(8)}
        rank = pair.pictures[0].width * pair.pictures[0].height
        return Candidate(tuple(sorted(keys)), rank, hashes[0].tobytes() + hashes[1].tobytes())

    def similar(self, signature: np.ndarray, better: np.ndarray) -> np.ndarray:
        """Whether at most `distance` bits differ, of the picture or the mirrored one."""
        return _bits_apart(signature, better) <= self.distance

    def nearness(self, signature: np.ndarray, better: np.ndarray) -> dict[str, float]:
        """The number of bits that differ."""
        return {"distance": int(_bits_apart(signature, better[None])[0])}


@dataclasses.dataclass(frozen=True)
class NearTexts(AcrossRule):
    """Keeps the longest of the pairs with nearly the same first text; meant for pure text, not for captions.

    MinHash with 120 permutations in 20 bands of 6: two texts are compared with a probability of 99.8 % if 0.8 of their
    shingles are common, and of 27 % at 0.5.

    Attributes:
      similarity: the estimated Jaccard similarity from which texts are duplicates.
    """

    similarity: float = 0.8
    reason: ClassVar[str] = "nearly the same text"

    @property
    def signature_bytes(self) -> int:
        """The bytes of the MinHash."""
        return 4 * PERMUTATIONS

    def candidate(self, pair: RawPair) -> Candidate | None:
        """See `AcrossRule`."""
        sketch = minhash(pair.texts[0]) if pair.texts else None
        if sketch is None:
            return None
        keys = tuple(_key(bytes([band]), part.tobytes()) for band, part in enumerate(sketch.reshape(20, 6)))
        return Candidate(keys, _length(pair), sketch.tobytes())

    def similar(self, signature: np.ndarray, better: np.ndarray) -> np.ndarray:
        """Whether the share of equal minima reaches `similarity`."""
        return _shares_of_equal(signature, better) >= self.similarity

    def nearness(self, signature: np.ndarray, better: np.ndarray) -> dict[str, float]:
        """The share of equal minima."""
        return {"similarity": round(float(_shares_of_equal(signature, better[None])[0]), 3)}


def _bits_apart(signature: np.ndarray, better: np.ndarray) -> np.ndarray:
    """The bits by which a picture differs from others, or from their mirrored ones if these are nearer; int [N]."""
    upright = distances(signature[:PICTURE_BYTES], better[:, :PICTURE_BYTES])
    mirrored = distances(signature[:PICTURE_BYTES], better[:, PICTURE_BYTES:])
    return np.minimum(upright, mirrored)


def _shares_of_equal(signature: np.ndarray, better: np.ndarray) -> np.ndarray:
    """The share of the minima that a text has in common with each of others; float [N]."""
    equal = np.ascontiguousarray(signature).view(np.uint32) == np.ascontiguousarray(better).view(np.uint32)
    return equal.mean(axis=1)
