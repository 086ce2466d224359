"""Maps: the question what each part of a picture shows, and its answer as a grid of words, row by row.

    What is where? Answer: nothing nothing owl nothing   nothing nothing owl nothing   zebra zebra nothing nothing ..

A caption says of a whole picture what it shows, and from captions the features of stage 1 learn what there is long
before they learn where. A map has one word for each image feature, which learns from it what its part shows.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines.quickstart.ocr_pictures import OcrPicture
from data_pipelines.quickstart.scenes import Scene
from data_pipelines.quickstart.word_pictures import PICTURE_GRID, Box, word_picture
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import VqaContent

# The folder of the records, whose task is `vqa`.
MAP = "map"
QUESTION = "What is where?"
NOTHING = "nothing"

# (word, box in pixels) of everything that a picture shows
Placed = Sequence[tuple[str, Box]]


class MapContent(VqaContent):
    """A question with the size of its picture in pixels."""

    width: int
    height: int


def placed(picture: Scene | OcrPicture) -> Placed:
    """The nouns of a scene's objects, or the words of a picture of words, with their boxes."""
    if isinstance(picture, Scene):
        return [(item.stamp.noun_en.split()[-1], item.box) for item in picture.objects]
    return [(line.text, _enclosing(line.quad)) for line in picture.lines]


def map_content(placed: Placed, side: int) -> MapContent:
    """The question and its answer for a square picture of `side` pixels."""
    answer = word_picture(placed, NOTHING, side, PICTURE_GRID)
    return MapContent(question=QUESTION, answer=answer, width=side, height=side)


def map_record(picture: Scene | OcrPicture, jpeg: bytes, number: str, license: str, source: str) -> Record:
    """The map of a picture; `jpeg` is its encoded image, and `number` ends the id of the record."""
    return Record(
        id=f"{MAP}-{number}",
        task="vqa",
        source=source,
        language="en",
        license=license,
        images=(jpeg,),
        content=map_content(placed(picture), picture.image_HWC.shape[0]),
    )


def _enclosing(quad: Sequence[tuple[int, int]]) -> Box:
    xs, ys = zip(*quad, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
