"""Beam's RunInference for steps whose elements are files: all processes of a machine share one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference


class ElementHandler(ModelHandler[Any, PredictionResult, Any]):
    """Works on one element per call, so that as many elements are worked on at once as there are processes."""

    def __init__(self, load: Callable[[], Any], work: Callable[[Any, Any], int]):
        """`load` loads the model; `work` gets an element and the model."""
        super().__init__(min_batch_size=1, max_batch_size=1, model_copies=1)
        self._load = load
        self._work = work

    def load_model(self) -> Any:
        """The model that all processes of the machine share."""
        return self._load()

    def run_inference(
        self, batch: Sequence[Any], model: Any, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Works on the elements, which write files, so the predictions are empty."""
        return [PredictionResult(None, self._work(element, model)) for element in batch]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Unknown: elements are names of files."""
        return 0


def with_model(identifier: str, load: Callable[[], Any], work: Callable[[Any, Any], int]) -> RunInference:
    """The transform that works on every element with the model; `identifier` is different for every model."""
    return RunInference(ElementHandler(load, work), model_identifier=identifier)
