"""Visual Genome: described regions, and the questions of VGQA (paper, Table 3).

Source: Krishna et al. 2017, version 1.2 of the regions and questions. Licence CC-BY-4.0.
Home page: https://homes.cs.washington.edu/~ranjay/visualgenome/

    image_data.json             [{"image_id": 1, "url": ".../VG_100K_2/1.jpg", "width": 800, "height": 600, ..}, ..]
    region_descriptions.json    [{"id": 1, "regions": [{"region_id", "x", "y", "width", "height", "phrase"}, ..]}, ..]
    question_answers.json       [{"id": 1, "qas": [{"qa_id", "question", "answer"}, ..]}, ..]
    VG_100K/*.jpg, VG_100K_2/*.jpg

Both annotation files are grouped by picture already, so they are read one picture at a time; `image_data.json` is held
in memory. Together that is 50 MB for 108,077 pictures with 50 regions each. Everything is the split `train`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import answer_text, corner_and_size, phrase_at, question, read_parts, rows_of
from data_pipelines.corpora.corpus import ANNOTATIONS, Corpus, Layout
from data_pipelines.corpora.json_stream import entries
from data_pipelines.corpora.rows import BadRow, list_at, object_of, picture_path, require, side_at
from data_pipelines.pair import Answer, Picture, Question, RawPair, Region, Row

_IMAGES = "image_data.json"
_FOLDERS = ("VG_100K", "VG_100K_2")
HOME_PAGE = "https://homes.cs.washington.edu/~ranjay/visualgenome/"


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    file, _ = require(folder, (split, _IMAGES), HOME_PAGE)
    return [file]


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """The pictures of `region_descriptions.json` or `question_answers.json` in the order of the file."""
    pictures = _pictures(folder)
    for entry in entries(file):
        if entry.failure is not None:
            yield entry.failure
            continue
        try:
            row = object_of(entry.value)
            number = _number(row.get("id", row.get("image_id")))
            if number not in pictures:
                raise BadRow("unknown picture", f"{_IMAGES} has no picture {number}")
            if "qas" in row:
                yield from _questions(corpus, row, number, pictures[number])
            else:
                yield from _regions(corpus, row, number, pictures[number])
        except BadRow as error:
            yield error.failed


def _regions(corpus: Corpus, row: Mapping[str, Any], number: int, picture: Picture) -> Iterator[Row]:
    regions, failures = read_parts(list_at(row, "regions"), _region, lambda value: _name(value, "region_id"))
    pair = RawPair(str(number), corpus.name, corpus.license, corpus.language, (picture,), regions=regions)
    yield from rows_of(pair, failures, "regions")


def _questions(corpus: Corpus, row: Mapping[str, Any], number: int, picture: Picture) -> Iterator[Row]:
    questions, failures = read_parts(list_at(row, "qas"), _question, lambda value: _name(value, "qa_id"))
    pair = RawPair(str(number), corpus.name, corpus.license, corpus.language, (picture,), questions=questions)
    yield from rows_of(pair, failures, "questions")


def _region(value: object) -> Region:
    row = object_of(value)
    box = corner_and_size(row.get("x"), row.get("y"), row.get("width"), row.get("height"))
    return Region(phrase_at(row, "phrase"), (box,))


def _question(value: object) -> Question:
    row = object_of(value)
    return question(phrase_at(row, "question"), [Answer(answer_text(row.get("answer")))])


def _name(value: object, key: str) -> str:
    return f"{key} {value.get(key)}" if isinstance(value, dict) else ""


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRow("missing value", "id of the picture")
    return value


def _pictures(folder: epath.Path) -> dict[int, Picture]:
    """The pictures by number. A malformed one is left out, so that its regions fail for an unknown picture."""
    pictures: dict[int, Picture] = {}
    for entry in entries(folder / _IMAGES):
        try:
            row = object_of(entry.value)
            number = _number(row.get("image_id", row.get("id")))
            parts = phrase_at(row, "url").split("/")
            if len(parts) < 2 or parts[-2] not in _FOLDERS:
                continue
            path = picture_path(folder, "/".join(parts[-2:]))
        except BadRow:
            continue
        pictures[number] = Picture(path=path, width=side_at(row, "width"), height=side_at(row, "height"))
    return pictures


LAYOUT = Layout(_files, _read, cut=True, most_strides=ANNOTATIONS)
