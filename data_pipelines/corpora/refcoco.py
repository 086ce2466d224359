"""RefCOCO, RefCOCO+ and RefCOCOg (paper, Table 3): phrases that refer to one object of a picture of COCO.

Source: Yu et al. 2016 and Mao et al. 2016. Licence: the phrases Apache-2.0, the pictures as in COCO.
Home page: https://github.com/lichengunc/refer. One folder holds all three, as in that repository:

    refcoco/refs(unc).p          [{"ref_id", "ann_id", "image_id", "split": "train",
                                   "sentences": [{"sent_id", "sent"}, ..]}, ..],
                                 or refs(google).p; RefCOCO+ has refs(unc).p, RefCOCOg refs(umd).p and refs(google).p
    refcoco/instances.json       {"images": [{"id", "file_name", "width", "height"}, ..],
                                  "annotations": [{"id", "bbox": [x, y, width, height]}, ..]}
    refcoco+/.., refcocog/..
    images/mscoco/images/train2014/COCO_train2014_000000581857.jpg, or train2014/..

The pickles are read by `plain_pickle`, which executes nothing. Their lists may also be saved as JSON, `refs(unc).json`.
The JSON edition of MDETR, in the same splits, is read if there is neither a pickle nor such a list:

    mdetr_annotations/finetune_refcoco_train.json    {"images": [{"id", "file_name", "caption", "width", "height"}, ..],
                                                      "annotations": [{"image_id", "bbox"}, ..]}, one box per phrase

Memory: up to 300 MB for a pickle with 150,000 phrases and the 200,000 boxes of an `instances.json`. The
rows are the failed phrases, then the pictures in the order in which they are first mentioned.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import corner_and_size, id_at, numbers_of, phrase_at, read_parts
from data_pipelines.corpora.corpus import ANNOTATIONS, Corpus, Layout
from data_pipelines.corpora.json_stream import entries
from data_pipelines.corpora.plain_pickle import plain_pickle
from data_pipelines.corpora.question_list import first_there
from data_pipelines.corpora.rows import BadRow, identifier_at, list_at, object_of, picture_path, side_at
from data_pipelines.pair import Box, FailedRow, Picture, RawPair, Region, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

HOME_PAGE = "https://github.com/lichengunc/refer"
_IMAGES = ("images/mscoco/images/train2014", "train2014")
_MDETR = "mdetr_annotations"


@dataclasses.dataclass(frozen=True)
class _Phrases:
    """Phrases for objects of one picture."""

    image: str
    regions: tuple[Region, ...]


def _files(name: str, folder: epath.Path, split: str) -> list[epath.Path]:
    """`name` is that of the corpus' folder; `split` is the author of the splits and one of them: "unc/testA"."""
    author, _, part = split.partition("/")
    names = [f"{name}/refs({author}).{suffix}" for suffix in ("p", "json")]
    if author != "google":
        names.append(f"{_MDETR}/finetune_{name}_{part}.json")
    return [first_there(folder, names, HOME_PAGE)]


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """All phrases of a split, brought together by picture."""
    part = split.partition("/")[2]
    pictures_below = next((folder / name for name in _IMAGES if storage.is_folder(folder / name)), folder / _IMAGES[0])
    if file.parent.name == _MDETR:
        pictures, phrases = _of_mdetr(file, pictures_below)
    else:
        pictures, boxes = _instances(file.parent / "instances.json", pictures_below)
        phrases = _of_refs(_refs(file), part, boxes)
    regions: dict[str, list[Region]] = {}
    for item in phrases:
        if isinstance(item, FailedRow):
            yield item
        elif item.image not in pictures:
            yield FailedRow("unknown picture", f"no picture {item.image[:100]!r}")
        else:
            regions.setdefault(item.image, []).extend(item.regions)
    for image, members in regions.items():
        picture = pictures[image]
        if members:
            yield RawPair(image, corpus.name, corpus.license, corpus.language, (picture,), regions=tuple(members))


def _refs(file: epath.Path) -> Iterable[Any]:
    """The entries of a list of phrases; one that is not JSON is a `FailedRow`."""
    if file.suffix == ".json":
        return (entry.value if entry.failure is None else entry.failure for entry in entries(file))
    refs = plain_pickle(storage.read_bytes(file), str(file))
    if not isinstance(refs, list):
        raise UserError(f"{file} is a pickle of another kind than a list of phrases; get it from {HOME_PAGE}")
    return refs


def _of_refs(refs: Iterable[Any], part: str, boxes: Mapping[str, Box | FailedRow]) -> Iterator[_Phrases | FailedRow]:
    """The phrases of one split."""
    for ref in refs:
        if isinstance(ref, FailedRow):
            yield ref
            continue
        try:
            row = object_of(ref)
            if phrase_at(row, "split") != part:
                continue
            box = boxes.get(identifier_at(row, "ann_id"))
            if box is None:
                raise BadRow("unknown box", f"instances.json has no annotation {row['ann_id']}")
            if isinstance(box, FailedRow):
                raise BadRow(box.reason, box.detail)
            image = identifier_at(row, "image_id")
            sentences = list_at(row, "sentences")
        except BadRow as error:
            yield error.failed
            continue
        texts, failures = read_parts(sentences, _sentence, f"phrase of annotation {row['ann_id']}")
        yield from failures
        yield _Phrases(image, tuple(Region(text, (box,), id=id_) for id_, text in texts))


def _sentence(value: object) -> tuple[str, str]:
    row = object_of(value)
    return id_at(row, "sent_id"), phrase_at(row, "sent")


def _instances(file: epath.Path, folder: epath.Path) -> tuple[dict[str, Picture], dict[str, Box | FailedRow]]:
    """The pictures and the boxes by their numbers; a malformed box is the reason why its phrases fail."""
    if not storage.exists(file):
        raise UserError(f"{file} does not exist; get it from {HOME_PAGE}, or correct the folder")
    pictures: dict[str, Picture] = {}
    for entry in entries(file, "images"):
        try:
            row = object_of(entry.value)
            pictures[identifier_at(row, "id")] = _picture(row, folder)
        except BadRow:
            continue  # its phrases fail as those of an unknown picture
    boxes: dict[str, Box | FailedRow] = {}
    for entry in entries(file, "annotations"):
        try:
            row = object_of(entry.value)
            number = identifier_at(row, "id")
        except BadRow:
            continue
        try:
            boxes[number] = _box(row)
        except BadRow as error:
            boxes[number] = error.failed
    return pictures, boxes


def _of_mdetr(file: epath.Path, folder: epath.Path) -> tuple[dict[str, Picture], Iterator[_Phrases | FailedRow]]:
    """The pictures by name of file, and one phrase per entry of `images`."""
    boxes: dict[str, list[Box]] = {}
    failures: list[FailedRow] = []
    for entry in entries(file, "annotations"):
        try:
            row = object_of(entry.value)
            boxes.setdefault(identifier_at(row, "image_id"), []).append(_box(row))
        except BadRow as error:
            failures.append(entry.failure or error.failed)
    pictures: dict[str, Picture] = {}
    phrases: list[_Phrases | FailedRow] = [*failures]
    for entry in entries(file, "images"):
        try:
            row = object_of(entry.value)
            name = phrase_at(row, "file_name")
            pictures.setdefault(name, _picture(row, folder))
            number = identifier_at(row, "id")
            if number not in boxes:
                raise BadRow("unknown box", f"no annotation is of phrase {number}")
            phrases.append(_Phrases(name, (Region(phrase_at(row, "caption"), tuple(boxes[number]), id=number),)))
        except BadRow as error:
            phrases.append(entry.failure or error.failed)
    return pictures, iter(phrases)


def _picture(row: Mapping[str, Any], folder: epath.Path) -> Picture:
    path = picture_path(folder, phrase_at(row, "file_name").rpartition("/")[2])
    return Picture(path=path, width=side_at(row, "width"), height=side_at(row, "height"))


def _box(row: Mapping[str, Any]) -> Box:
    return corner_and_size(*numbers_of(row.get("bbox"), 4, "bbox"))


REFCOCO, REFCOCO_PLUS, REFCOCOG = (
    Layout(functools.partial(_files, name), _read, cut=True, most_strides=ANNOTATIONS)
    for name in ("refcoco", "refcoco+", "refcocog")
)
