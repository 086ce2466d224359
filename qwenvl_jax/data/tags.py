"""The written form of places in an image: `<ref>`, `<box>`, `<quad>` and `<img>`, and coordinates in [0, 1000).

A box is `<box>(x1,y1),(x2,y2)</box>` and a quadrilateral `<quad>(x,y),(x,y),(x,y),(x,y)</quad>`, without spaces, in
thousandths of the image's width and height (paper, section 3.2 and Box B.1). Nothing here knows a tokenizer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from qwenvl_jax.runtime.errors import UserError

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
REF, REF_END, BOX, BOX_END = "<ref>", "</ref>", "<box>", "</box>"
QUAD, QUAD_END, IMG, IMG_END, IMGPAD = "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"

CONTROL_TAGS = (ENDOFTEXT, IM_START, IM_END)  # before the spare ids in the vocabulary (released tokenization_qwen.py)
IMAGE_TAGS = (REF, REF_END, BOX, BOX_END, QUAD, QUAD_END, IMG, IMG_END, IMGPAD)  # after them

Box = tuple[int, int, int, int]
Quad = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]

_FIRST_BOX = re.compile(r"\((.*?)\),\((.*?)\)")  # the pattern of the released evaluate_grounding.py
_POINT = r"\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)"
_BOX = re.compile(rf"<box>\s*{_POINT}\s*,\s*{_POINT}")
_QUAD = re.compile(r"<quad>\s*" + r"\s*,\s*".join([_POINT] * 4))
_REF = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)


def to_thousandths(value: float, size: float) -> int:
    """The coordinate `value`, in pixels of a side of `size` pixels, as an integer in [0, 1000).

    The floor of `value * 1000 / size`; the far edge itself, which would be 1000, becomes 999 (paper 3.2: the range
    is [0, 1000); the encoder that made the released training data is not published).
    """
    return min(math.floor(value * 1000 / size), 999)


def to_pixels(box: Sequence[float], width: float, height: float, denominator: float = 1000) -> tuple[float, ...]:
    """Thousandths `x, y, x, y, ..` to pixels of a `width` x `height` image.

    `denominator` is 1000 as in the released drawing code; the released RefCOCO evaluation divides by 999.
    """
    return tuple(value / denominator * (height if k % 2 else width) for k, value in enumerate(box))


def check_points(points: Sequence[float], width: float, height: float, what: str) -> None:
    """Checks that `x, y, x, y, ..` lie in an image of `width` x `height` pixels, edges included.

    Raises:
      UserError: for a coordinate that is not a finite number or lies outside; `what` names the shape.
    """
    if not (_finite(width) and _finite(height) and width > 0 and height > 0):
        raise UserError(f"an image of {width} x {height} pixels has no place for {what}; correct its size")
    for k, value in enumerate(points):
        side = height if k % 2 else width
        if not _finite(value) or not 0 <= value <= side:
            raise UserError(
                f"{what} {list(points)} lies outside its image of {width} x {height} pixels; correct or drop it"
            )


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def box_to_text(box: Sequence[float], width: float, height: float) -> str:
    """`[x1, y1, x2, y2]` in pixels to `(x1,y1),(x2,y2)` in thousandths, without the tags.

    Raises:
      UserError: if the box is not four numbers, leaves the image, or its corners are not top left, bottom right.
    """
    if len(box) != 4:
        raise UserError(f"box {list(box)} must be four numbers [x1, y1, x2, y2]")
    check_points(box, width, height, "box")
    x1, y1, x2, y2 = box
    if x1 >= x2 or y1 >= y2:
        raise UserError(f"box {list(box)} is inverted or empty; give the top left and then the bottom right corner")
    left, right = to_thousandths(x1, width), to_thousandths(x2, width)
    top, bottom = to_thousandths(y1, height), to_thousandths(y2, height)
    return f"({left},{top}),({right},{bottom})"


def quad_to_text(quad: Sequence[Sequence[float]], width: float, height: float) -> str:
    """Four `[x, y]` corners in pixels to `(x,y),(x,y),(x,y),(x,y)` in thousandths, without the tags.

    Raises:
      UserError: if there are not four corners of two numbers, or one leaves the image.
    """
    if len(quad) != 4 or any(len(point) != 2 for point in quad):
        raise UserError(f"quadrilateral {[list(p) for p in quad]} must be four [x, y] corners")
    check_points([value for point in quad for value in point], width, height, "quadrilateral")
    return ",".join(f"({to_thousandths(x, width)},{to_thousandths(y, height)})" for x, y in quad)


def first_box(text: str) -> tuple[float, float, float, float]:
    """The first box of an answer, read as the released evaluate_grounding.py does.

    Only the first match of `(..),(..)` counts, the answer starts inside `<box>`, and whatever does not read as two
    pairs of numbers is the zero box, which overlaps nothing.
    """
    match = _FIRST_BOX.search(text)
    if match is None:
        return (0.0, 0.0, 0.0, 0.0)
    try:
        (x1, y1), (x2, y2) = ([float(value) for value in side.split(",")] for side in match.groups())
    except ValueError:
        return (0.0, 0.0, 0.0, 0.0)
    return (x1, y1, x2, y2)


def parse_boxes(text: str) -> list[tuple[str, list[Box]]]:
    """All boxes of an answer with the reference before them: `[(ref, [(x1, y1, x2, y2), ..]), ..]` in thousandths.

    The boxes that directly follow one `</ref>` share it, as multi-box references are written; a box without one
    gets "". References without boxes are left out, malformed boxes are skipped and the closing tag may be missing
    (an answer cut off by its length).
    """
    return [(ref, [(n[0], n[1], n[2], n[3]) for n in found]) for ref, found in _parse(text, _BOX)]


def parse_quads(text: str) -> list[tuple[str, list[Quad]]]:
    """All quadrilaterals of an OCR answer with the text before them: `[(text, [quad, ..]), ..]`; see `parse_boxes`."""
    return [
        (ref, [((n[0], n[1]), (n[2], n[3]), (n[4], n[5]), (n[6], n[7])) for n in found])
        for ref, found in _parse(text, _QUAD)
    ]


def _parse(text: str, shape: re.Pattern[str]) -> list[tuple[str, list[tuple[int, ...]]]]:
    """The shapes of an answer grouped by the `<ref>` that they follow without other text in between."""
    groups: list[tuple[str, list[tuple[int, ...]]]] = []
    refs = [(match.end(), match.group(1).strip()) for match in _REF.finditer(text)]
    for match in shape.finditer(text):
        numbers = tuple(int(value) for value in match.groups())
        before = [(end, ref) for end, ref in refs if end <= match.start()]
        end, ref = before[-1] if before else (0, "")
        gap = text[end : match.start()]
        # Between a reference and its shape only other shapes may stand; ordinary words end its reach.
        if before and not re.sub(r"<(box|quad)>[\d\s(),]*(</\1>)?", "", gap).strip():
            if groups and groups[-1][0] == ref and re.search(r"<(box|quad)>", gap):
                groups[-1][1].append(numbers)
            else:
                groups.append((ref, [numbers]))
        else:
            groups.append(("", [numbers]))
    return groups
