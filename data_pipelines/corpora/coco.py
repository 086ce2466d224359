"""COCO captions, and other corpora in the same form: nocaps.

Source: https://cocodataset.org. Licence: annotations CC-BY-4.0; the pictures are from Flickr, each under the licence
that the annotations name.

    FOLDER/annotations/captions_train2017.json     also val2017, train2014, val2014
    FOLDER/train2017/000000000009.jpg

A file is one object: `images` has `id`, `file_name`, `width`, `height`, `license`; `annotations` has `image_id` and
`caption`, several per picture; `licenses` has `id` and `name`. All captions of a picture are one pair. The file is
loaded whole (100 MB).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import category_at
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import (
    BadRow,
    identifier_at,
    json_lists,
    label_at,
    object_of,
    picture_path,
    read_each,
    require,
    side_at,
    text_at,
)
from data_pipelines.pair import FailedRow, Picture, RawPair, Row

CAPTIONS = "annotations/captions_{split}.json"


def layout(annotations: str = CAPTIONS, pictures: str = "{split}") -> Layout:
    """The layout of annotations in COCO's form.

    Args:
      annotations: the path of the file in the folder.
      pictures: the path of the folder of pictures in the folder. In both, `{split}` is the split.
    """
    return Layout(functools.partial(_files, annotations), functools.partial(_read_file, pictures), cut=True)


def _files(annotations: str, folder: epath.Path, split: str) -> list[epath.Path]:
    return require(folder, [annotations.format(split=split)], "the home page of the corpus")


def _read_file(pictures: str, corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    images, annotations, licenses = json_lists(file, "images", "annotations", optional=("licenses",))
    captions, failed = _captions(annotations)
    license_names = _license_names(licenses)
    met: set[str] = set()

    def read(value: Any) -> RawPair:
        image = object_of(value)
        number = identifier_at(image, "id")
        if number in met:
            raise BadRow("repeated picture", number)
        met.add(number)
        texts = captions.pop(number, ())
        if not texts:
            raise BadRow("no caption", number)
        path = picture_path(folder / pictures.format(split=split), text_at(image, "file_name"))
        return RawPair(
            id=f"{split}/{number}",
            source=corpus.name,
            license=_license(corpus.license, license_names.get(str(image.get("license")), "")),
            language=corpus.language,
            pictures=(Picture(path=path, width=side_at(image, "width"), height=side_at(image, "height")),),
            texts=tuple(texts),
            number=number,
            category=category_at(image, "domain"),  # nocaps has it
        )

    yield from read_each(images, read)
    yield from failed
    for number in captions:
        yield FailedRow("caption of no picture", number)


def _captions(annotations: Sequence[Any]) -> tuple[dict[str, list[str]], list[FailedRow]]:
    """The captions of each picture in the order of the file, and the annotations that cannot be used."""
    captions: dict[str, list[str]] = {}
    failed = []
    for value in annotations:
        try:
            annotation = object_of(value)
            caption = text_at(annotation, "caption")
            captions.setdefault(identifier_at(annotation, "image_id"), []).append(caption)
        except BadRow as error:
            failed.append(error.failed)
    return captions, failed


def _license_names(licenses: Sequence[Any]) -> dict[str, str]:
    """The names of the licences of pictures by their numbers."""
    names = {}
    for entry in licenses:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            names[str(entry.get("id"))] = label_at(entry, "name")
    return names


def _license(corpus_license: str, picture_license: str) -> str:
    """The licence of the annotations and, if it is known, the one of this picture."""
    if not picture_license:
        return corpus_license
    return f"{corpus_license.partition(';')[0]}; picture: {picture_license}"
