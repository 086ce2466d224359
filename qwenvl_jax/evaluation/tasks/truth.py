"""What answers are compared with, read from records in the forms that data sets write.

All texts come out in the form in which a model can write them (`tags.normal_form`), because a letter with its accent as
one character and as two look the same and are not equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.runtime.errors import UserError


def texts(value: Any, key: str) -> list[str]:
    """One or several texts: a text, a whole number, an object that has one under `key`, or a list of these.

    `[{"answer": "net", "answer_id": 1}, ..]` is how VQAv2 writes its annotators; `"net"` is one answer, not letters.

    Returns:
      As many as there are; none for None and an empty list.

    Raises:
      UserError: for anything whose text is not plain, such as a fraction or true and false.
    """
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [_one(item, key) for item in value]
    return [_one(value, key)]


def _one(value: Any, key: str) -> str:
    if isinstance(value, Mapping) and key in value:
        value = value[key]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"its {key} {value!r} is not a text; write the text that an answer shall equal")
    return tags.normal_form(value)


def text(value: Any, what: str) -> str:
    """One text; `what` names it. Raises UserError for anything else."""
    if not isinstance(value, str):
        raise UserError(f"{what} {value!r} is not a text")
    return tags.normal_form(value)


def size(content: Mapping[str, Any]) -> tuple[float, float]:
    """Width and height in pixels. Raises UserError if they are not positive numbers."""
    width, height = content["width"], content["height"]
    if not (tags.is_finite(width) and tags.is_finite(height) and width > 0 and height > 0):
        raise UserError(f"an image of {width!r} x {height!r} pixels is none; correct its size")
    return width, height


def box(value: Any, width: float, height: float) -> list[float]:
    """`[x1, y1, x2, y2]` in pixels of the image. Raises UserError for a box that training refuses as well."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise UserError(f"its box {value!r} must be four numbers [x1, y1, x2, y2]")
    tags.box_to_text(value, width, height)
    return tags.clip_points(value, width, height, "its box")
