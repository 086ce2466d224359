"""Flickr30K: five captions per picture, in the splits of Karpathy or as published; and COCO in the splits of Karpathy.

Source: https://shannon.cs.illinois.edu/DenotationGraph (pictures and results_20130124.token) and
https://cs.stanford.edu/people/karpathy/deepimagesent (dataset_flickr30k.json). Licence: the publisher gives pictures
and captions for non-commercial research and education; the pictures are under Flickr's terms of use.

    FOLDER/dataset_flickr30k.json        {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
    FOLDER/results_20130124.token        1000092795.jpg#0 TAB caption
    FOLDER/flickr30k-images/1000092795.jpg

    FOLDER/dataset_coco.json             {"images": [{"filepath": "val2014", "filename", "cocoid", ..}]}
    FOLDER/val2014/COCO_val2014_000000391895.jpg

The JSON is needed for the splits train, val and test. The split `all` is read from it too or, if it is missing, from
the `.token`, whose lines of one picture follow one another.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import (
    BadRow,
    decoded,
    encodable,
    identifier_at,
    json_lists,
    lines,
    list_at,
    object_of,
    picture_path,
    read_each,
    require,
    text_at,
    whole_line,
)
from data_pipelines.pair import Picture, RawPair, Row
from qwenvl_jax.runtime import storage

ALL = "all"
_KARPATHY = "dataset_flickr30k.json"
_TOKEN = "results_20130124.token"
_COCO = "dataset_coco.json"
_KARPATHYS = "https://cs.stanford.edu/people/karpathy/deepimagesent"
_PICTURES = ("flickr30k-images", "flickr30k_images")


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    if split == ALL and not storage.exists(folder / _KARPATHY) and storage.exists(folder / _TOKEN):
        return [folder / _TOKEN]
    return require(folder, [_KARPATHY], _KARPATHYS)


def _coco_files(folder: epath.Path, split: str) -> list[epath.Path]:
    del split
    return require(folder, [_COCO], _KARPATHYS)


def _read_file(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    pictures = next((folder / name for name in _PICTURES if storage.is_folder(folder / name)), folder / _PICTURES[0])
    read = functools.partial(_pair, corpus, pictures)
    if file.name == _COCO:
        read = functools.partial(_pair, corpus, folder)
    if file.name == _TOKEN:
        yield from _token_rows(read, file)
        return
    met: set[str] = set()

    def read_image(value: Any) -> RawPair:
        image = object_of(value)
        name = text_at(image, "filename")
        if name in met:
            raise BadRow("repeated picture", name)
        met.add(name)
        texts = [text_at(object_of(sentence), "raw") for sentence in list_at(image, "sentences")]
        if file.name != _COCO:
            return read(name, texts)
        pair = read(f"{text_at(image, 'filepath')}/{name}", texts)
        return dataclasses.replace(pair, number=identifier_at(image, "cocoid"))

    [images] = json_lists(file, "images")
    wanted = (image for image in images if split == ALL or not isinstance(image, dict) or image.get("split") == split)
    yield from read_each(wanted, read_image)


def _token_rows(read: Callable[[str, Sequence[str]], RawPair], file: epath.Path) -> Iterator[Row]:
    """The rows of the file with one caption per line."""
    met: set[str] = set()
    for key, group in itertools.groupby(_captions(file), key=lambda caption: caption[0]):
        if isinstance(key, BadRow):
            yield key.failed
        elif key in met:
            yield BadRow("repeated picture", key).failed
        else:
            met.add(key)
            yield from read_each([[text for _, text in group]], functools.partial(read, key))


def _captions(file: epath.Path) -> Iterator[tuple[str | BadRow, str]]:
    """The name of the picture and the caption of every line."""
    for number, line in lines(file):
        try:
            label, tab, caption = decoded(whole_line(line)).partition("\t")
            name, sign, _ = label.rpartition("#")
            if not (tab and sign):
                raise BadRow("wrong form", f"line {number} is not NAME#NUMBER, a tab and a caption")
        except BadRow as error:
            yield error, ""
        else:
            yield name, caption


def _pair(corpus: Corpus, pictures: epath.Path, name: str, texts: Sequence[str]) -> RawPair:
    if not texts:
        raise BadRow("no caption", name)
    return RawPair(
        id=name,
        source=corpus.name,
        license=corpus.license,
        language=corpus.language,
        pictures=(Picture(path=picture_path(pictures, name)),),
        texts=tuple(texts),
        number=encodable(name).rpartition(".")[0],
    )


LAYOUT = Layout(_files, _read_file, cut=True)
COCO = Layout(_coco_files, _read_file, cut=True)
