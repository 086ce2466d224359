"""Rules across pairs: of the pairs of a corpus that are alike, the best one stays.

    @dataclasses.dataclass(frozen=True)
    class LongestText(AcrossRule):
        reason = "shorter text of the same picture"

        def candidate(self, pair: RawPair) -> Candidate | None:
            return Candidate((hash_of(pair.pictures[0].encoded),), rank=len(pair.texts[0]))

A rule describes each pair by itself; the build compares the descriptions, in any number of workers. A pair is dropped
if a better pair shares a key with it and is similar to it. A better pair has a higher rank, or the same rank and an
earlier position in the corpus. It counts even if it is dropped itself, so the verdict on a pair does not depend on the
verdicts on others: of a chain a > b > c in which only neighbours are similar, only a stays.
"""

from __future__ import annotations

import abc
import dataclasses
import re
from typing import Any, ClassVar

import numpy as np

from data_pipelines.pair import RawPair

KEY_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The description of one pair by which a rule across pairs compares it.

    Attributes:
      keys: hashes of at most `KEY_BYTES` bytes each, evenly distributed; pairs that share one are compared. Keys of
        equal values have equal lengths.
      rank: the pair with the highest rank stays; between -2^63 and 2^63 - 1.
      signature: `AcrossRule.signature_bytes` bytes, from which `AcrossRule.similar` tells whether two pairs that share
        a key are alike.
    """

    keys: tuple[bytes, ...]
    rank: int = 0
    signature: bytes = b""


@dataclasses.dataclass(frozen=True)
class AcrossRule(abc.ABC):
    """A rule across pairs. A subclass is a frozen dataclass whose fields are its settings."""

    reason: ClassVar[str]
    """Why a pair is dropped, in a few words."""

    @property
    def name(self) -> str:
        """The name under which the rule is counted: that of the class, such as longest_text for LongestText."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def signature_bytes(self) -> int:
        """The length of every signature; 0 for a rule whose keys are enough."""
        return 0

    @abc.abstractmethod
    def candidate(self, pair: RawPair) -> Candidate | None:
        """Describes a pair whose pictures have their bytes; a pure function. None: the rule does not apply to it."""

    def similar(self, signature: np.ndarray, better: np.ndarray) -> np.ndarray:
        """Whether a pair is similar to better ones that share a key with it.

        It is not called for equal signatures, which are always similar.

        Args:
          signature: uint8 [S], S = `signature_bytes`.
          better: uint8 [N, S].

        Returns:
          bool [N].
        """
        return np.ones(len(better), bool)

    def nearness(self, signature: np.ndarray, better: np.ndarray) -> dict[str, float]:
        """A measure of how near two pairs are, by its name, for the report; both signatures are uint8 [S]."""
        del signature, better
        return {}

    def as_json(self) -> dict[str, Any]:
        """Everything that the rule's result depends on except its code."""
        return {"rule": self.name, **dataclasses.asdict(self)}
