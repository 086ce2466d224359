"""TextCaps: five captions per picture that read the text in it.

Source: https://textvqa.org/textcaps. Licence: captions CC-BY-4.0; pictures CC-BY-2.0 (Open Images).

    FOLDER/TextCaps_0.1_train.json       also val
    FOLDER/train_images/0054c91397f2fe05.jpg

The pictures of both splits are in `train_images`, as `train_val_images.zip` has them. The file is one object; `data`
lists one entry per caption with `image_id`, `caption_str`, `image_width` and `image_height`. All captions of a picture
are one pair, in the order in which the file first names the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import (
    BadRow,
    identifier_at,
    json_lists,
    object_of,
    picture_path,
    read_each,
    require,
    side_at,
    text_at,
)
from data_pipelines.pair import Picture, RawPair, Row


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    return require(folder, [f"TextCaps_0.1_{split}.json"], "https://textvqa.org/textcaps/dataset")


def _read_file(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    captions: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    failed = []
    [entries] = json_lists(file, "data")
    for value in entries:
        try:
            entry = object_of(value)
            caption = text_at(entry, "caption_str")
            captions.setdefault(identifier_at(entry, "image_id"), (entry, []))[1].append(caption)
        except BadRow as error:
            failed.append(error.failed)

    def read(name: str) -> RawPair:
        entry, texts = captions[name]
        path = picture_path(folder / "train_images", f"{name}.jpg")
        return RawPair(
            id=f"{split}/{name}",
            source=corpus.name,
            license=corpus.license,
            language=corpus.language,
            pictures=(Picture(path=path, width=side_at(entry, "image_width"), height=side_at(entry, "image_height")),),
            texts=tuple(texts),
        )

    yield from read_each(captions, read)
    yield from failed


LAYOUT = Layout(_files, _read_file, cut=True)
