"""Every annotated corpus from its fixture to records: all are well formed and can be written out as samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.clean.rule import judge
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import RawPair
from data_pipelines.recipes.table import RECIPES
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.schema import Record, check_record, sample_count, samples_of
from qwenvl_jax.data.tasks import RECORD_TASKS
from tests.support.corpora.table import FIXTURES

ANNOTATED = sorted(
    name
    for name, corpus in CORPORA.items()
    if set(corpus.tasks) & {"vqa", "grounding", "ref_grounding"} and not name.startswith("synthdog")
)


def records(name: str, folder: Path) -> list[Record]:
    """The records of all splits and tasks of a corpus."""
    FIXTURES[name](folder)
    composed = []
    for split in CORPORA[name].splits:
        for row in CORPORA[name].read(folder, split):
            if not isinstance(row, RawPair):
                continue
            judged = judge(RECIPES[name], row)
            assert judged.dropped is None
            composed += [COMPOSERS[task](judged.pair) for task in CORPORA[name].tasks]
    return [record for record in composed if record is not None]


@pytest.mark.parametrize("name", ANNOTATED)
def test_every_record_is_well_formed_and_can_be_taught(name: str, tmp_path: Path) -> None:
    made = records(name, tmp_path)
    assert {record.task for record in made} == set(CORPORA[name].tasks)
    for record in made:
        check_record(record)
        assert len(record.images) == 1
        assert record.source == name
        for sample in samples_of(record):
            assert training_pieces(sample)[-1].supervised


def test_a_picture_is_stored_once_with_all_its_questions(tmp_path: Path) -> None:
    made = records("gqa", tmp_path)
    assert [sample_count(record) for record in made[:2]] == [2, 1]


def test_grit_as_it_is_taught(tmp_path: Path) -> None:
    texts = {}
    for record in records("grit", tmp_path)[:3]:
        samples = []
        for sample in samples_of(record):
            pieces = training_pieces(sample)
            samples.append("".join(str(piece.value) for piece in pieces if piece.kind != "image"))
        texts[record.task] = samples
    dogs = "<box>(0,500),(250,999)</box>"
    house = "<box>(125,0),(999,750)</box>"
    caption = "A café 😀 with two dogs in front of a red house"
    assert texts == {
        "grounding": [
            f"Generate the caption in English with grounding: A café 😀 with<ref> two dogs</ref>{dogs}"
            f"<box>(500,500),(750,999)</box> in front of<ref> a red house</ref>{house}<|endoftext|>"
        ],
        "ref_grounding": [
            f"<ref>a red house</ref>{house}<|endoftext|>",
            f"<ref>{caption}</ref><box>(0,0),(999,999)</box><|endoftext|>",
            f"<ref>two dogs in front of a red house</ref>{dogs}<|endoftext|>",
        ],
        "grounded_caption": [
            f"<ref>This</ref>{house} is a red house<|endoftext|>",
            f"<ref>This</ref><box>(0,0),(999,999)</box> is {caption}<|endoftext|>",
            f"<ref>This</ref>{dogs} is two dogs in front of a red house<|endoftext|>",
        ],
    }
    assert set(texts) <= set(RECORD_TASKS)
