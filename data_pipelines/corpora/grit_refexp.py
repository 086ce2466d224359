"""Referring expressions of GRIT, the General Robust Image Task benchmark (not the training corpus `grit`).

Source: Gupta et al. 2022, Apache-2.0 (code), https://github.com/allenai/grit_official, whose README states the layout:

    FOLDER/samples/test/refexp.json    [{"example_id", "image_id": "coco/..jpg", "task_name": "refexp",
                                         "task_query": "the dog", "task_bbox": null, "output_options": null}, ..];
                                       also samples/ablation
    FOLDER/images/coco/..jpg

or the same below FOLDER/GRIT. The true boxes are hidden: predictions are scored by the leaderboard.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import phrase_at, read_parts, rows_of
from data_pipelines.corpora.corpus import ANNOTATIONS, Corpus, Layout
from data_pipelines.corpora.json_index import indexed
from data_pipelines.corpora.question_list import first_there
from data_pipelines.corpora.rows import BadRow, encodable, identifier_at, object_of, picture_path
from data_pipelines.pair import Picture, RawPair, Region, Row

_HOME_PAGE = "https://github.com/allenai/grit_official"
_TASK = "refexp"


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    return [first_there(folder, [f"{root}samples/{split}/{_TASK}.json" for root in ("", "GRIT/")], _HOME_PAGE)]


def _picture(name: str, value: Any) -> str | None:
    row = object_of(value)
    return None if row.get("task_name", _TASK) != _TASK else phrase_at(row, "image_id")


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """The rows that cannot be read, then the pictures in the order of their first phrase."""
    root = file.parent.parent.parent
    with indexed(file, "", _picture) as index:
        yield from index.failures
        for name in index.keys:
            phrases, failures = read_parts(index.values(name), _phrase)
            try:
                picture = Picture(path=picture_path(root / "images", name))
            except BadRow as error:
                yield error.failed
                continue
            pair = RawPair(encodable(name), corpus.name, corpus.license, corpus.language, (picture,), regions=phrases)
            yield from rows_of(pair, failures, "regions")


def _phrase(value: object) -> Region:
    row = object_of(value)
    return Region(phrase_at(row, "task_query"), (), id=identifier_at(row, "example_id"))


LAYOUT = Layout(_files, _read, cut=True, most_strides=ANNOTATIONS)
