"""Similarities of pictures and texts by CLIP, as a model of Beam's RunInference (paper, A.1, step 3).

    handler = ClipModelHandler(ClipModel("ViT-B-32", "open_clip_pytorch_model.bin", "bpe_simple_vocab_16e6.txt.gz"))
    scored = pairs | RunInference(handler, model_identifier=handler.identifier)     # pairs: (encoded picture, texts)

Importing this module imports no jax: a worker does that when it loads the model.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from data_pipelines.pair import FailedRow
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from qwenvl_jax.scoring.clip import ClipScorer

Pair = tuple[bytes, Sequence[str]]  # an encoded picture and its texts
Similarities = list[float] | FailedRow  # one cosine per text; or why the picture could not be scored

NO_PICTURE = "picture cannot be decoded"
PAIRS_AT_ONCE = 2048  # at most, in one call of the model


@dataclasses.dataclass(frozen=True)
class ClipModel:
    """Which model scores.

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
        """Everything that the scores depend on except code and device: the name, and digests of the files.

        Raises:
          UserError: if a file is missing.
        """
        return {
            "model": self.name,
            "checkpoint": _digest_of(self.checkpoint, "--clip_checkpoint"),
            "vocabulary": _digest_of(self.vocabulary, "--clip_vocabulary"),
            "batch_size": self.batch_size,
        }

    def load(self) -> LoadedClip:
        """Reads the model onto the devices of this process.

        Raises:
          UserError: for an unknown name, or files that do not belong to the architecture.
        """
        from qwenvl_jax.scoring.clip import ClipScorer

        return LoadedClip(ClipScorer.load(self.name, self.checkpoint, self.vocabulary, self.batch_size))


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


class ClipModelHandler(ModelHandler[Pair, PredictionResult, LoadedClip]):
    """RunInference on pairs: `PredictionResult.inference` is `Similarities`, so no picture ends a pipeline.

    All processes of a machine share one model, because only one process can hold a TPU. Batches of RunInference may be
    of any size and hold texts of any length: the model pads batches to one size, and sorts the texts of a batch into a
    few lengths. So `batch_length_fn` of Beam is not set; it would split pictures, of which the size is the same.
    """

    def __init__(self, model: ClipModel, pairs_at_once: int = PAIRS_AT_ONCE):
        """Scores with `model`, at most so many pairs per call."""
        super().__init__(min_batch_size=min(64, pairs_at_once), max_batch_size=pairs_at_once, model_copies=1)
        self._model = model

    @property
    def identifier(self) -> str:
        """For RunInference: processes of a machine share a model under this name, those of other pipelines too."""
        return f"clip-{_sha256(self._model.identity)[:32]}"

    def load_model(self) -> LoadedClip:
        """See `ClipModel.load`."""
        return self._model.load()

    def run_inference(
        self, batch: Sequence[Pair], model: LoadedClip, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """The similarities of each pair of the batch."""
        return [
            PredictionResult(pair, similarities)
            for pair, similarities in zip(batch, model.similarities(batch), strict=True)
        ]

    def get_num_bytes(self, batch: Sequence[Pair]) -> int:
        """Bytes of the encoded pictures."""
        return sum(len(picture) for picture, _ in batch)
