"""The written form of regions in an image: `<ref>`, `<box>`, `<quad>` and `<img>`, and coordinates in [0, 1000).

A box is `<box>(x1,y1),(x2,y2)</box>` and a quadrilateral `<quad>(x,y),(x,y),(x,y),(x,y)</quad>`, without spaces, in
thousandths of the image's width and height (paper, section 3.2 and Box B.1). Everything that reads or writes a
coordinate does it here, so that the rules of docs/data.md hold alike for data, answers and drawings. Nothing here knows
a tokenizer.
"""

from __future__ import annotations

import bisect
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from qwenvl_jax.runtime.errors import UserError

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
REF, REF_END, BOX, BOX_END = "<ref>", "</ref>", "<box>", "</box>"
QUAD, QUAD_END, IMG, IMG_END, IMGPAD = "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"

CONTROL_TAGS = (ENDOFTEXT, IM_START, IM_END)  # before the spare ids in the vocabulary (released tokenization_qwen.py)
IMAGE_TAGS = (REF, REF_END, BOX, BOX_END, QUAD, QUAD_END, IMG, IMG_END, IMGPAD)  # after them

BoxInThousandths = tuple[int, int, int, int]
QuadInThousandths = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]


class Region(NamedTuple):
    """A box or quadrilateral of an answer.

    Attributes:
      start: where it begins in the answer, in characters.
      ref: the reference before it; "" without one.
      points: `x, y, x, y, ..` in thousandths, as written: 2 corners of a box, 4 of a quadrilateral.
    """

    start: int
    ref: str
    points: tuple[int, ...]


_FIRST_BOX = re.compile(r"\((.*?)\),\((.*?)\)")  # the pattern of the released evaluate_grounding.py
_POINT = r"\(\s*([0-9]{1,3}|1000)\s*,\s*([0-9]{1,3}|1000)\s*\)"
_POINTS = {corners: r"\s*,\s*".join([_POINT] * corners) for corners in (2, 4)}
_ALL_POINTS = {corners: re.compile(rf"\s*{points}\s*") for corners, points in _POINTS.items()}
_BOX = re.compile(rf"<box>\s*{_POINTS[2]}(?=\s*(?:<|\Z))")
_QUAD = re.compile(rf"<quad>\s*{_POINTS[4]}(?=\s*(?:<|\Z))")
# A reference ends at its closing tag or, if that is missing, at the next tag, which is not swallowed.
_REF = re.compile(r"<ref>(.*?)(?:</ref>|(?=</?(?:ref|box|quad|img)>)|\Z)", re.DOTALL)

# A coordinate may leave its image by less than this many pixels: labels are stored rounded.
ROUNDING = 0.5


def normal_form(text: str) -> str:
    """The one form in which texts are tokenised, cleaned and compared: NFC, as in the released tokenizer.

    Lone surrogates (which UTF-8 cannot hold; broken JSON has them) are replaced by U+FFFD. Paths of files are no text
    and keep the form that they have.
    """
    text = unicodedata.normalize("NFC", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def to_thousandths(value: float, size: float) -> int:
    """The coordinate `value`, in pixels of a side of `size` pixels, as an integer in [0, 1000).

    The floor of `value * 1000 / size`; the far edge itself, which would be 1000, becomes 999 (paper 3.2: the range
    is [0, 1000); the encoder that made the released training data is not published).
    """
    return min(math.floor(value * 1000 / size), 999)


def to_pixels(box: Sequence[float], width: float, height: float, denominator: float = 1000) -> tuple[float, ...]:
    """Thousandths `x, y, x, y, ..` to pixels of a `width` x `height` image; 1000 is the far edge.

    `denominator` is 1000 as in the released drawing code; the released RefCOCO evaluation divides by 999.
    """
    return tuple(value / denominator * (height if k % 2 else width) for k, value in enumerate(box))


def clip_points(points: Sequence[float], width: float, height: float, shape: str) -> list[float]:
    """`x, y, x, y, ..` in pixels of a `width` x `height` image, moved onto its edge where rounding has left it.

    Raises:
      UserError: if a value is not a finite number, or lies half a pixel or more outside; the message calls the shape
        `shape`.
    """
    if not (is_finite(width) and is_finite(height) and width > 0 and height > 0):
        raise UserError(f"an image of {width!r} x {height!r} pixels has no room for {shape}; correct its size")
    clipped = []
    for k, value in enumerate(points):
        side = height if k % 2 else width
        if not is_finite(value):
            raise UserError(f"{shape} {list(points)} must be made of finite numbers, not {value!r}; correct or drop it")
        if not -ROUNDING < value < side + ROUNDING:
            raise UserError(
                f"{shape} {list(points)} lies outside its image of {width} x {height} pixels; correct or drop it"
            )
        clipped.append(min(max(value, 0), side))
    return clipped


def is_finite(value: object) -> bool:
    """Whether a JSON value is a finite number; true and false are not numbers."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def box_to_text(box: Sequence[float], width: float, height: float) -> str:
    """`[x1, y1, x2, y2]` in pixels to `(x1,y1),(x2,y2)` in thousandths, without the tags.

    A box thinner than a thousandth is written with two equal coordinates.

    Raises:
      UserError: if the box is not four numbers, leaves the image, or its corners are not top left, bottom right.
    """
    if isinstance(box, str) or len(box) != 4:
        raise UserError(f"box {box!r} must be four numbers [x1, y1, x2, y2]")
    x1, y1, x2, y2 = clip_points(box, width, height, "box")
    if x1 >= x2 or y1 >= y2:
        raise UserError(
            f"box {list(box)} is inverted or empty; give the top left and then the bottom right corner (not a width "
            "and a height)"
        )
    left, right = to_thousandths(x1, width), to_thousandths(x2, width)
    top, bottom = to_thousandths(y1, height), to_thousandths(y2, height)
    return f"({left},{top}),({right},{bottom})"


def quad_to_text(quad: Sequence[Sequence[float]], width: float, height: float) -> str:
    """Four `[x, y]` corners in pixels to `(x,y),(x,y),(x,y),(x,y)` in thousandths, without the tags.

    Raises:
      UserError: if there are not four corners of two numbers, or one leaves the image.
    """
    if isinstance(quad, str) or len(quad) != 4 or any(isinstance(point, str) or len(point) != 2 for point in quad):
        raise UserError(f"quadrilateral {quad!r} must be four [x, y] corners")
    points = clip_points([value for point in quad for value in point], width, height, "quadrilateral")
    corners = zip(points[::2], points[1::2], strict=True)
    return ",".join(f"({to_thousandths(x, width)},{to_thousandths(y, height)})" for x, y in corners)


def read_points(text: str, corners: int) -> list[int] | None:
    """The coordinates `x, y, x, y, ..` of a text that is the inside of a box (2 corners) or quadrilateral (4).

    Returns:
      Thousandths from 0 to 1000, which means the far edge; None if the text is anything else. White space between
      the signs is borne.
    """
    match = _ALL_POINTS[corners].fullmatch(text)
    return [int(value) for value in match.groups()] if match else None


def first_box(text: str) -> tuple[float, float, float, float]:
    """The first box of an answer, read as the released evaluate_grounding.py does.

    Only the first match of `(..),(..)` counts, because the answer starts inside `<box>`. A text that does not read as
    two pairs of finite numbers gives the zero box, which overlaps nothing.
    """
    match = _FIRST_BOX.search(text)
    if match is None:
        return (0.0, 0.0, 0.0, 0.0)
    try:
        (x1, y1), (x2, y2) = ([float(value) for value in side.split(",")] for side in match.groups())
    except ValueError:
        return (0.0, 0.0, 0.0, 0.0)
    return (x1, y1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) else (0.0, 0.0, 0.0, 0.0)


def parse_refs(text: str) -> list[str]:
    """What stands in every `<ref>` of an answer, in order.

    A reference ends at `</ref>` or, if that is missing, where the next tag begins or the answer ends.
    """
    return [match.group(1) for match in _REF.finditer(text)]


def parse_boxes(text: str) -> list[tuple[str, list[BoxInThousandths]]]:
    """All boxes of an answer with the reference before them: `[(ref, [(x1, y1, x2, y2), ..]), ..]` in thousandths.

    The boxes that directly follow one `</ref>` share it, as multi-box references are written; a box without one
    gets "". References without boxes are left out, malformed boxes are skipped and closing tags may be missing
    (an answer cut off by its length). Coordinates are as written, 1000 too, and so is the order of the corners.
    """
    return [(regions[0].ref, [(n[0], n[1], n[2], n[3]) for _, _, n in regions]) for regions in _groups_of(text, _BOX)]


def parse_quads(text: str) -> list[tuple[str, list[QuadInThousandths]]]:
    """All quadrilaterals of an OCR answer with the text before them: `[(text, [quad, ..]), ..]`; see `parse_boxes`."""
    return [
        (regions[0].ref, [((n[0], n[1]), (n[2], n[3]), (n[4], n[5]), (n[6], n[7])) for _, _, n in regions])
        for regions in _groups_of(text, _QUAD)
    ]


def parse_regions(text: str) -> list[Region]:
    """All boxes of an answer, then all its quadrilaterals; read as by `parse_boxes`."""
    return [region for shape in (_BOX, _QUAD) for regions in _groups_of(text, shape) for region in regions]


def _groups_of(text: str, shape: re.Pattern[str]) -> list[list[Region]]:
    """The shapes of an answer grouped by the `<ref>` that they follow without other text in between."""
    groups: list[list[Region]] = []
    refs = [(match.end(), match.group(1).strip()) for match in _REF.finditer(text)]
    for match in shape.finditer(text):
        points = tuple(int(value) for value in match.groups())
        before = bisect.bisect_right(refs, match.start(), key=lambda reference: reference[0])
        end, ref = refs[before - 1] if before else (0, "")
        gap = text[end : match.start()]
        # Between a reference and its shape only other shapes may stand, readable or not; words end its reach.
        if not before or re.sub(r"<(box|quad)>[^<]*(</\1>)?", "", gap).strip():
            groups.append([Region(match.start(), "", points)])
            continue
        region = Region(match.start(), ref, points)
        if groups and groups[-1][0].ref == ref and re.search(r"<(box|quad)>", gap):
            groups[-1].append(region)
        else:
            groups.append([region])
    return groups
