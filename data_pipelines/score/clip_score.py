"""Similarities of pictures and texts by CLIP, as a model of Beam's RunInference (paper, A.1, step 3).

The command `--clip` scores whole parts instead (`build.score_part`); this is for pipelines of your own.

    model = ClipModel("ViT-B-32", "open_clip_pytorch_model.bin", "bpe_simple_vocab_16e6.txt.gz")
    scored = pairs | RunInference(ClipModelHandler(model), model_identifier=model.identifier)

`pairs` are tuples of an encoded picture and its texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from data_pipelines.score.clip_model import ClipModel, LoadedClip, Pair

PAIRS_AT_ONCE = 2048  # at most, in one call of the model


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
