"""Maps of KGeography: every division of a map has a colour of its own, so its area is known to the pixel.

Source: https://apps.kde.org/kgeography, Debian package `kgeography-data`. Licence: GPL-2.0-or-later.

    FOLDER/kgeography/china.kgm                              names and colours of the divisions
    FOLDER/kgeography/china.png                              the map that the file names
    FOLDER/locale/zh_CN/LC_MESSAGES/kgeography.mo            Chinese names; without it all pairs are English

FOLDER is `usr/share` of the package. A `.kgm` is XML: `<map>` has `<mapFile>`, `<name>`, `<divisionsName>` and one
`<division>` with `<name>` and `<color>` per division; `<ignore>yes</ignore>` marks seas, borders and neighbours, which
are left out. A map is one pair per language in which its name is known. Its regions are the divisions: one box per
connected area of the colour, without areas of less than a twentieth of the division. The caption names the largest
divisions that have one area. Questions ask for the place that the map shows and for its largest division.
"""

from __future__ import annotations

import dataclasses
import gettext
import io
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import BadRow, decoded, encodable, picture_path
from data_pipelines.pair import Answer, Box, FailedRow, Picture, Question, RawPair, Region, Row
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError, one_line

TRANSLATIONS = "locale/zh_CN/LC_MESSAGES/kgeography.mo"
LEAST_PART = 0.05  # of a division: a smaller area of its colour, such as an islet, gets no box
LEAST_PIXELS = 12  # of a division; a smaller one is a dot
MOST_IN_CAPTION = 6
CLEARLY_LARGER = 1.1  # the largest division is asked for if it has so many times the pixels of the next one
_MOST_BYTES = 8 << 20

# (the name in the file) -> its translation, or "" if there is none.
Translate = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class _Division:
    """A division on the map: the name in the file, its pixels, the boxes of its areas."""

    name: str
    pixels: int
    boxes: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class _Words:
    """The sentences of a language."""

    caption: tuple[str, str, str]  # before the map's name, before those of divisions, at the end
    comma: str
    title_question: str
    largest_question: str


_WORDS = {
    "en": _Words(
        ("Map of ", " with ", "."), ", ", "Which place does the map show?", "Which of the {} is the largest on the map?"
    ),
    "zh": _Words(("", "地图，有", "。"), "、", "这是哪里的地图？", "地图上最大的{}是哪一个？"),
}


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    del split
    maps = folder / "kgeography"
    listed = storage.names(maps) if storage.is_folder(maps) else []
    names = sorted(name for name in listed if name.endswith(".kgm"))
    if not names:
        raise UserError(f"{maps} has no .kgm file; name usr/share of the Debian package kgeography-data")
    return [maps / name for name in names]


def _read_file(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    del split
    try:
        root = _parsed(file)
        path = picture_path(file.parent, _text(root, "mapFile"))
        payload = storage.read_bytes(path)
        pixels_HW = _colours(payload)
        divisions, failed = _divisions(root, pixels_HW)
        names = _names(folder, file)
        title = _text(root, "name")
        kind = root.findtext("divisionsName") or ""
    except BadRow as error:
        yield error.failed
        return
    except OSError as error:
        yield FailedRow("picture missing", one_line(error))
        return
    yield from failed
    height, width = pixels_HW.shape
    picture = Picture(payload, width=width, height=height)
    for language, translate in names.items():
        shown = translate(title)
        if shown:
            pair = RawPair(f"{encodable(file.stem)}/{language}", corpus.name, corpus.license, language, (picture,))
            described = _described(pair, _WORDS[language], shown, translate(kind), divisions, translate)
            if described.regions:
                yield described


def capitals_of(file: epath.PathLike) -> tuple[str, list[tuple[str, str]]]:
    """The name of a map, and (division, its capital) of every division that states one, in English.

    Raises:
      UserError: if the file is not a map.
    """
    try:
        root = _parsed(storage.path(file))
        title = _text(root, "name")
    except BadRow as error:
        raise UserError(f"{file} is not a map ({error.failed.reason}); unpack the package again") from None
    members = []
    for element in root.iter("division"):
        name = (element.findtext("name") or "").strip()
        capital = (element.findtext("capital") or "").strip()
        if name and capital and element.findtext("ignore") != "yes":
            members.append((name, capital))
    return title, members


def _parsed(file: epath.Path) -> ET.Element:
    text = decoded(storage.read_bytes(file, 0, _MOST_BYTES))
    if "<!ENTITY" in text:
        raise BadRow("not a map", "it declares entities")
    try:
        root = ET.fromstring(text.partition("?>")[2] if text.lstrip().startswith("<?xml") else text)
    except ET.ParseError as error:
        raise BadRow("not a map", error) from None
    if root.tag != "map":
        raise BadRow("not a map", f"its root is {root.tag[:40]!r}")
    return root


def _text(element: ET.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise BadRow("missing value", tag)
    return text


def _colours(payload: bytes) -> np.ndarray:
    """[H, W] int32: red, green and blue of every pixel as one number."""
    try:
        channels_HWC = np.asarray(decode_image(payload)).astype(np.int32)
    except UserError as error:
        raise BadRow("picture unreadable", error) from None
    return channels_HWC[..., 0] << 16 | channels_HWC[..., 1] << 8 | channels_HWC[..., 2]


def _divisions(root: ET.Element, pixels_HW: np.ndarray) -> tuple[list[_Division], list[FailedRow]]:
    """The divisions that are on the map, in the order of the file, and those that cannot be used."""
    colours: dict[int, set[str]] = {}
    named: dict[str, list[int]] = {}
    failed = []
    for element in root.iter("division"):
        try:
            name = _text(element, "name")
            colour = _colour(element)
        except BadRow as error:
            failed.append(error.failed)
            continue
        ignored = element.findtext("ignore") == "yes"
        colours.setdefault(colour, set()).add("" if ignored else name)
        if not ignored:
            named.setdefault(name, []).append(colour)
    divisions = []
    for name, members in named.items():
        if any(len(colours[colour]) > 1 for colour in members):
            failed.append(FailedRow("colour of two divisions", encodable(name)))
            continue
        mask_HW = np.isin(pixels_HW, members)
        pixels = int(mask_HW.sum())
        if pixels < LEAST_PIXELS:
            failed.append(FailedRow("division not on the map", encodable(name)))
            continue
        boxes = _boxes(mask_HW)
        if not boxes:
            failed.append(FailedRow("division in too many pieces", encodable(name)))
            continue
        divisions.append(_Division(name, pixels, boxes))
    return divisions, failed


def _colour(element: ET.Element) -> int:
    colour = 0
    for channel in ("red", "green", "blue"):
        digits = (element.findtext(f"color/{channel}") or "").strip()
        if not re.fullmatch(r"\d{1,3}", digits, re.ASCII) or int(digits) > 255:
            raise BadRow("malformed colour", f"{channel} is {digits[:20]!r}")
        colour = colour << 8 | int(digits)
    return colour


def _boxes(mask_HW: np.ndarray) -> tuple[Box, ...]:
    """The boxes of the connected areas, the largest first."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)
    areas = sorted(stats[1:count].tolist(), key=lambda area: (-area[cv2.CC_STAT_AREA], area[:2]))
    least = LEAST_PART * mask_HW.sum()
    boxes = []
    for left, top, width, height, area in areas:
        if area >= least:
            boxes.append((float(left), float(top), float(left + width), float(top + height)))
    return tuple(boxes)


def _names(folder: epath.Path, file: epath.Path) -> dict[str, Translate]:
    """The names of a map in every language; the catalogue keeps them apart by the name of the file."""
    names: dict[str, Translate] = {"en": lambda name: name}
    catalogue = folder / TRANSLATIONS
    if storage.exists(catalogue):
        try:
            translations = gettext.GNUTranslations(io.BytesIO(storage.read_bytes(catalogue)))
        except (OSError, ValueError, struct.error) as error:
            raise UserError(f"{catalogue} is damaged ({one_line(error)}); unpack the package again") from None

        def chinese(name: str) -> str:
            translation = translations.pgettext(file.name, name)
            return "" if translation == name else translation

        names["zh"] = chinese
    return names


def _described(
    pair: RawPair, words: _Words, title: str, kind: str, divisions: Sequence[_Division], translate: Translate
) -> RawPair:
    """The pair with its caption, regions and questions."""
    title = re.sub(r"\s*[(（].*?[)）]", "", title).strip()
    by_size = sorted(divisions, key=lambda division: -division.pixels)
    in_one_piece = [each for each in by_size if len(each.boxes) == 1 and translate(each.name)]
    start, middle, end = words.caption
    caption = f"{start}{title}{middle}"
    regions = []
    for number, division in enumerate(in_one_piece):
        phrase = translate(division.name)
        span = (-1, -1)
        if number < MOST_IN_CAPTION:
            caption += words.comma if number else ""
            span = (len(caption), len(caption) + len(phrase))
            caption += phrase
        regions.append(Region(phrase, division.boxes, *span))
    regions += [
        Region(translate(each.name), each.boxes) for each in by_size if len(each.boxes) > 1 and translate(each.name)
    ]
    questions = [Question(words.title_question, (Answer(title),))]
    if pair.language == "en" and kind and not kind.endswith("s"):
        kind += "s"  # some files have "District"
    largest = translate(by_size[0].name) if by_size else ""
    if largest and kind and len(by_size) > 1 and by_size[0].pixels >= CLEARLY_LARGER * by_size[1].pixels:
        questions.append(Question(words.largest_question.format(kind.lower()), (Answer(largest),)))
    return dataclasses.replace(
        pair, texts=(caption + end,), regions=tuple(regions), questions=tuple(questions if title else questions[1:])
    )


LAYOUT = Layout(_files, _read_file)
