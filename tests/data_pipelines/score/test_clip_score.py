"""CLIP scores by Beam's RunInference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from data_pipelines.pair import FailedRow
from data_pipelines.score.clip_model import NO_PICTURE, ClipModel
from data_pipelines.score.clip_score import ClipModelHandler
from qwenvl_jax.models.clip import CLIP_MODELS
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.scoring.clip import ClipScorer
from qwenvl_jax.scoring.clip_tokenizer import ClipTokenizer
from tests.scoring.clip_files import VOCABULARY, picture, tiny_config, write_tiny

PAIRS = [(picture(number), ("a cat", "two dogs in the snow")[: 1 + number % 2]) for number in range(9)]
BAD = (b"no picture", ("a cat",))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClipModel:
    config = tiny_config(ClipTokenizer.load(VOCABULARY).vocab_size)
    monkeypatch.setitem(CLIP_MODELS, "tiny", config)
    return ClipModel("tiny", str(write_tiny(tmp_path, config)), str(VOCABULARY), batch_size=4)


def test_every_pair_of_a_pipeline_gets_its_similarities(model: ClipModel) -> None:
    expected = dict(zip(PAIRS, ClipScorer.load("tiny", model.checkpoint, VOCABULARY, 4).score(PAIRS), strict=True))

    def check(predictions: list[Any]) -> None:
        scored = {prediction.example: prediction.inference for prediction in predictions}
        assert set(scored) == {*PAIRS, BAD}
        failed = scored.pop(BAD)
        assert isinstance(failed, FailedRow) and failed.reason == NO_PICTURE and "not a readable" in failed.detail
        for pair, similarities in scored.items():
            np.testing.assert_allclose(similarities, np.array(expected[pair]), atol=1e-6)

    handler = ClipModelHandler(model, pairs_at_once=4)
    options = PipelineOptions(["--runner=DirectRunner", "--direct_running_mode=in_memory"])
    with beam.Pipeline(options=options) as pipeline:
        scored = pipeline | beam.Create([*PAIRS, BAD]) | RunInference(handler, model_identifier=model.identifier)
        assert_that(scored, check)


def test_the_identity_of_a_model_is_that_of_its_files(model: ClipModel, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(Path(model.checkpoint).read_bytes())
    same = ClipModel("tiny", str(copy), model.vocabulary, batch_size=4)
    assert same.identity == model.identity
    copy.write_bytes(b"other")
    other = ClipModel("tiny", str(copy), model.vocabulary, batch_size=4)
    assert other.identifier != model.identifier
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"x")
    before = ClipModel("tiny", str(folder), model.vocabulary).identity
    (folder / "b.safetensors").write_bytes(b"")
    assert ClipModel("tiny", str(folder), model.vocabulary).identity != before


def test_missing_files_are_named_by_their_flag(model: ClipModel) -> None:
    with pytest.raises(UserError, match=r"--clip_vocabulary=nowhere.gz does not exist; name a file"):
        _ = ClipModel("tiny", model.checkpoint, "nowhere.gz").identity
