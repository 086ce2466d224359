"""A picture with everything that the records of several corpora say about it, in one language."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.dialogues.wording import Vocabulary
from data_pipelines.pair import Box, Quad
from qwenvl_jax.data.annotations import contents_of
from qwenvl_jax.data.dialogues import THOUSANDTHS
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tags import clip_points
from qwenvl_jax.runtime.errors import UserError

TASKS = ("caption", "vqa", "grounding", "ref_grounding", "grounded_caption", "ocr")  # that say something of a picture


class Region(NamedTuple):
    """A phrase and all boxes that the annotations give it."""

    phrase: str
    boxes: tuple[Box, ...]


class Line(NamedTuple):
    """A line that is written in the picture."""

    text: str
    quad: Quad


class Segment(NamedTuple):
    """A stretch of a grounded caption; without boxes it is only text."""

    text: str
    boxes: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class AnnotatedPicture:
    """One picture of a dialogue. Boxes and quadrilaterals are in pixels.

    Attributes:
      encoded: the bytes of the picture.
      language: "en" or "zh", of all texts.
      size: (width, height) in pixels; `THOUSANDTHS` twice if no annotation states it, and then there are no regions.
      captions, questions, regions, lines, grounded: the annotations, each once; questions with their answers.
      corpora, licenses: of the records, sorted.
    """

    encoded: bytes
    language: str
    size: tuple[float, float]
    captions: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    regions: tuple[Region, ...] = ()
    lines: tuple[Line, ...] = ()
    grounded: tuple[tuple[Segment, ...], ...] = ()
    corpora: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of every text."""
        return Vocabulary.of(self.texts())

    def texts(self) -> Iterator[str]:
        """Every text that the annotations have."""
        yield from self.captions
        for question, answer in self.questions:
            yield question
            yield answer
        for region in self.regions:
            yield region.phrase
        for line in self.lines:
            yield line.text


def joined(records: Sequence[Record]) -> AnnotatedPicture:
    """The annotations of records that show the same picture in the same language.

    Phrases that differ in case alone are one region with the boxes of all.

    Raises:
      UserError: if the records state several sizes of the picture, or a box is outside it.
    """
    sizes: dict[tuple[float, float], None] = {}
    captions: dict[str, None] = {}
    questions: dict[str, str] = {}
    boxes_of: dict[str, tuple[str, dict[Box, None]]] = {}
    lines: dict[Line, None] = {}
    grounded: dict[tuple[Segment, ...], None] = {}
    for task, content in _contents(records):
        if "width" in content:
            sizes[content["width"], content["height"]] = None
        if task == "caption":
            captions[content["caption"].strip()] = None
        elif task == "vqa":
            questions.setdefault(content["question"].strip(), str(content["answer"]).strip())
        elif task == "ocr":
            lines.update((Line(line["text"].strip(), _quad(line["quad"], content)), None) for line in content["lines"])
        elif task == "grounding":
            segments = tuple(_segment(segment, content) for segment in content["segments"])
            grounded[segments] = None
            captions["".join(segment.text for segment in segments).strip()] = None
            for segment in segments:
                _add(boxes_of, segment.text, segment.boxes)
        else:
            phrase = content["phrase" if task == "ref_grounding" else "description"]
            _add(boxes_of, phrase, (_box(content["box"], content),))
    if len(sizes) > 1:
        raise UserError(f"the records of the picture of {records[0].id!r} state several sizes; correct the wrong one")
    return AnnotatedPicture(
        encoded=records[0].images[0],
        language=plain_language(records[0].language),
        size=next(iter(sizes), (THOUSANDTHS, THOUSANDTHS)),
        captions=tuple(captions),
        questions=tuple(questions.items()),
        regions=tuple(Region(phrase, tuple(boxes)) for phrase, boxes in boxes_of.values()),
        lines=tuple(lines),
        grounded=tuple(grounded),
        corpora=tuple(sorted({record.source for record in records})),
        licenses=tuple(sorted({record.license for record in records})),
    )


def plain_language(code: str) -> str:
    """The language without its region: "zh" of "zh-CN"."""
    return code.replace("-", "_").split("_")[0].lower()


def _contents(records: Sequence[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
    for record in records:
        content: Any = record.content
        for each in contents_of(content):
            yield record.task, dict(each)


def _add(boxes_of: dict[str, tuple[str, dict[Box, None]]], phrase: str, boxes: Sequence[Box]) -> None:
    phrase = " ".join(phrase.split())
    if phrase and boxes:
        boxes_of.setdefault(phrase.casefold(), (phrase, {}))[1].update(dict.fromkeys(boxes))


def _box(points: Sequence[float], content: Mapping[str, Any]) -> Box:
    if len(points) != 4:
        raise UserError(f"box {points!r} must be four numbers [x1, y1, x2, y2]; correct the record")
    x1, y1, x2, y2 = clip_points(points, content["width"], content["height"], "the box")
    return x1, y1, x2, y2


def _quad(corners: Sequence[Sequence[float]], content: Mapping[str, Any]) -> Quad:
    if len(corners) != 4 or any(len(corner) != 2 for corner in corners):
        raise UserError(f"quadrilateral {corners!r} must be four [x, y] corners; correct the record")
    flat = clip_points([value for corner in corners for value in corner], content["width"], content["height"], "a quad")
    one, two, three, four = zip(flat[::2], flat[1::2], strict=True)
    return one, two, three, four


def _segment(segment: Mapping[str, Any], content: Mapping[str, Any]) -> Segment:
    return Segment(segment["text"], tuple(_box(box, content) for box in segment.get("boxes") or ()))
