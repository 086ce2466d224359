"""The CLIP model that scores the pairs of a run, and how workers load it.

Importing this module imports no jax: a worker does that when it loads the model.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qwenvl_jax
from data_pipelines.clean.rule import Rule
from data_pipelines.pair import FailedRow
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from qwenvl_jax.scoring.clip import ClipScorer

Pair = tuple[bytes, Sequence[str]]  # an encoded picture and its texts
Similarities = list[float] | FailedRow  # one cosine per text; or why the picture could not be scored

CLIP = "clip"  # the name of the score in `RawPair.scores`
NO_PICTURE = "picture cannot be decoded"
_CODE = ("models", "scoring")  # the packages of qwenvl_jax on which scores depend
_PACKAGES = ("flax", "ftfy", "jax", "numpy", "pillow", "regex", "tokenizers")


def reads_clip(rule: Rule) -> bool:
    """Whether a rule reads the score that the model computes, not one that the corpus states."""
    return dict(rule.settings).get("column") == CLIP


def rules_before_score(recipe: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules before the first one that reads the CLIP score; all if none does."""
    for position, rule in enumerate(recipe):
        if reads_clip(rule):
            return tuple(recipe[:position])
    return tuple(recipe)


@dataclasses.dataclass(frozen=True)
class ClipModel:
    """The name and files of the model that scores.

    Attributes:
      name: an architecture of `qwenvl_jax.models.clip`, such as "ViT-B-32".
      checkpoint: the file or folder of an OpenCLIP checkpoint.
      vocabulary: OpenCLIP's file `bpe_simple_vocab_16e6.txt.gz`.
      batch_size: pictures that are computed at once; 0 for a size that suits the device.
    """

    name: str
    checkpoint: str
    vocabulary: str
    batch_size: int = 0

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the scores depend on except the kind of device: names, versions, and digests of the files.

        Raises:
          UserError: if a file is missing.
        """
        return {
            "model": self.name,
            "checkpoint": _digest_of(self.checkpoint, "--clip_checkpoint"),
            "vocabulary": _digest_of(self.vocabulary, "--clip_vocabulary"),
            "batch_size": self.batch_size,
            "code": _sha256([artifacts.sha256_of(file) for file in _code()]),
            "packages": {name: _version(name) for name in _PACKAGES},
        }

    @property
    def identifier(self) -> str:
        """The name under which the processes of a machine share the loaded model, those of other pipelines too."""
        return f"clip-{_sha256(self.identity)[:32]}"

    def load(self) -> LoadedClip:
        """Reads the model onto the devices of this process.

        Raises:
          UserError: for an unknown name, or files that do not belong to the architecture.
        """
        from qwenvl_jax.scoring.clip import ClipScorer

        return LoadedClip(ClipScorer.load(self.name, self.checkpoint, self.vocabulary, self.batch_size))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"CLIP scores need the package {name}; pip install -r requirements-data.txt") from None


def _code() -> list[Path]:
    package = Path(qwenvl_jax.__path__[0])
    return [file for folder in _CODE for file in sorted((package / folder).glob("*.py"))]


def _digest_of(path: str, flag: str) -> str:
    """The sha256 of a file, or of the names and digests of the files of a folder."""
    where = storage.path(path)
    if not path or not storage.exists(where):
        raise UserError(f"{flag}={path} does not exist; name a file that is there")
    if not storage.is_folder(where):
        return artifacts.sha256_of(where)
    files = sorted(storage.files_below(where))
    return _sha256([[file, artifacts.sha256_of(where / file)] for file in files])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class LoadedClip:
    """A model that processes may share: what its method takes and returns can be pickled, and contains no jax."""

    def __init__(self, scorer: ClipScorer):
        self._scorer = scorer

    def similarities(self, pairs: Sequence[Pair]) -> list[Similarities]:
        """The cosines of each picture to its texts, in order. The same pairs give the same bits."""
        return [
            scores if isinstance(scores, list) else FailedRow(NO_PICTURE, scores.reason)
            for scores in self._scorer.score(pairs)
        ]
