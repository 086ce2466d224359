"""Synthetic pages as a corpus: a folder of small JSON files, each of which orders some pages.

    {"language": "en", "seed": 0, "first": 0, "pages": 1000, "texts": "wiki.jsonl",
     "backgrounds": ["/data/coco/train2017", "/data/coco/unlabeled2017"], "settings": {}}

`language`, `pages` and `texts` are required. `texts` is a JSONL file with a key `text`, or plain text; `backgrounds`
are folders of photographs, by default the wallpapers of a Debian package; `cache` is the folder of Debian packages, by
default `--cache` of the command; `fonts` are font files, by default one per family of `ocr.font_families`; `settings`
replaces hyperparameters (`ocr.synthetic_settings`); `license` is that of the texts and photographs. Paths of texts,
backgrounds and fonts are relative to the file. The rows of a file are its pages, numbered from `first` on.

A worker makes whole files, so `write_orders` cuts a large order into files of a thousand pages.
Licence: that of the texts and photographs. The layout is not SynthDoG's (https://github.com/clovaai/donut), which has
no boxes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.ocr.font_families import FAMILIES
from data_pipelines.ocr.fonts import font_file, page_fonts
from data_pipelines.ocr.photographs import Photographs
from data_pipelines.ocr.synthetic import Ingredients, render_page
from data_pipelines.ocr.synthetic_settings import PageSettings
from data_pipelines.ocr.synthetic_text import TextFile
from data_pipelines.pair import FailedRow, Picture, RawPair, Row
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, nearest, one_line

CACHE = "data/cache"


@dataclasses.dataclass(frozen=True)
class Order:
    """The pages that one JSON file orders; see the module."""

    language: str
    pages: int
    texts: str
    seed: int = 0
    first: int = 0
    backgrounds: tuple[str, ...] = ()
    fonts: tuple[str, ...] = ()
    cache: str = ""
    license: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str, name: object) -> Order:
        """An order from the text of its file.

        Raises:
          UserError: if the text does not have the form that the module states; the message begins with `name`.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} is not JSON ({one_line(error)}); correct it as docs/ocr.md shows") from None
        if not isinstance(values, dict):
            raise UserError(
                f"{name} must be one JSON object with language, pages and texts; write it as docs/ocr.md shows"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                known = nearest(key, fields) or f"; remove it, or write one of {', '.join(sorted(fields))}"
                raise UserError(f"{name} has an unknown key {key!r}{known}")
        for key in ("backgrounds", "fonts"):
            paths = values.get(key, [])
            if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
                raise UserError(f'{name} has {values[key]!r} as {key}; write a list of paths, such as ["/data/{key}"]')
            values[key] = tuple(paths)
        missing = [key for key in ("language", "pages", "texts") if key not in values]
        if missing:
            raise UserError(f"{name} has no {' and no '.join(missing)}; add what docs/ocr.md shows")
        order = cls(**values)
        order.check(name)
        return order

    def check(self, name: object) -> None:
        """Raises UserError for a value that the reader cannot use; the message begins with `name`."""
        if self.language not in list(FAMILIES):
            languages = " or ".join(FAMILIES)
            raise UserError(f"{name} has {self.language!r} as language; write {languages}")
        for key in ("pages", "seed", "first"):
            number = getattr(self, key)
            if type(number) is not int or number < 0:
                raise UserError(f"{name} has {number!r} as {key}; write a whole number of 0 or more")
        for key in ("texts", "cache", "license"):
            if not isinstance(getattr(self, key), str):
                raise UserError(f"{name} has {getattr(self, key)!r} as {key}; write a text in quotation marks")
        if not isinstance(self.settings, dict):
            raise UserError(
                f'{name} has {self.settings!r} as settings; write an object, such as {{"quality": [80, 90]}}'
            )


def write_orders(folder: epath.PathLike, order: Order, pages_per_file: int = 1000) -> None:
    """Writes the files of a corpus: `order.pages` pages in files of `pages_per_file`."""
    for number, first in enumerate(range(0, order.pages, pages_per_file)):
        pages = min(pages_per_file, order.pages - first)
        part = dataclasses.replace(order, first=order.first + first, pages=pages)
        text = json.dumps(dataclasses.asdict(part), ensure_ascii=False, indent=1)
        artifacts.write_text(storage.path(folder) / f"{order.language}-{number:05}.json", text + "\n")


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    del split
    listed = storage.names(folder) if storage.is_folder(folder) else []
    names = sorted(name for name in listed if name.endswith(".json"))
    if not names:
        raise UserError(f"{folder} has no .json file that orders synthetic pages; docs/ocr.md shows one")
    return [folder / name for name in names]


def _read_file(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path, cache: str = CACHE) -> Iterator[Row]:
    del folder, split
    order = Order.from_json(storage.read_bytes(file).decode("utf-8", "replace"), file)
    settings = PageSettings.from_json(order.settings, file)
    ingredients = _ingredients(
        order.language,
        str(_relative_to(file, order.texts)),
        tuple(str(_relative_to(file, each)) for each in order.backgrounds),
        tuple(str(_relative_to(file, each)) for each in order.fonts),
        order.cache or cache,
    )
    for number in range(order.first, order.first + order.pages):
        try:
            page = render_page(order.seed, number, ingredients, settings)
        except (UserError, OSError) as error:
            yield FailedRow("text or photograph unreadable", one_line(error))
            continue
        yield RawPair(
            id=f"{file.stem}/{order.seed}/{number}",
            source=corpus.name,
            license=order.license or corpus.license,
            language=order.language,
            pictures=(Picture(page.jpeg, width=page.width, height=page.height),),
            lines=page.lines,
        )


def _relative_to(file: epath.Path, path: str) -> epath.Path:
    """`path` itself if it is absolute or on gs://, else below the folder of `file`."""
    return file.parent / path


@functools.lru_cache(maxsize=4)
def _ingredients(
    language: str, texts: str, backgrounds: tuple[str, ...], font_files: tuple[str, ...], cache: str
) -> Ingredients:
    photographs = Photographs.in_folders(backgrounds) if backgrounds else Photographs.of_debian(Path(cache))
    if not storage.exists(texts):
        raise UserError(f"{texts} does not exist; name a file of texts for the synthetic pages")
    fonts = [font_file(path) for path in font_files] or page_fonts(language, Path(cache))
    return Ingredients(language, fonts, TextFile(texts), photographs)


LAYOUT = Layout(_files, _read_file, uses_cache=True)
