"""The truth of a record, in any of the forms that data sets use.

All texts are returned in the form in which a model can write them (`tags.normal_form`): a letter and its accent may be
one character or two, which look the same but are not equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.runtime.errors import UserError


def texts(value: Any, key: str) -> list[str]:
    """One or several texts: a text, a whole number, an object with either under `key`, or a list of these.

    `[{"answer": "net", "answer_id": 1}, ..]` is how VQAv2 writes its annotators. `"net"` is one answer, not three.

    Returns:
      The texts; an empty list for None and for an empty list.

    Raises:
      UserError: for a value whose text is ambiguous, such as a fraction or a boolean.
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
        raise UserError(f"its {key} {value!r} is not a text; write the text that an answer should equal")
    return tags.normal_form(value)


def text(value: Any, name: str) -> str:
    """One text. Raises UserError, which calls the value `name`, if it is not a text."""
    if not isinstance(value, str):
        raise UserError(f"{name} {value!r} is not a text")
    return tags.normal_form(value)


def size(content: Mapping[str, Any]) -> tuple[float, float]:
    """Width and height in pixels. Raises UserError if they are not positive numbers."""
    width = content["width"]
    height = content["height"]
    if not (tags.is_finite(width) and tags.is_finite(height) and width > 0 and height > 0):
        raise UserError(f"its image cannot have {width!r} x {height!r} pixels; correct its size")
    return width, height


def box(value: Any, width: float, height: float) -> list[float]:
    """`[x1, y1, x2, y2]` in pixels of the image. Raises UserError for the boxes that training refuses, too."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise UserError(f"its box {value!r} must be four numbers [x1, y1, x2, y2]")
    tags.box_to_text(value, width, height)
    return tags.clip_points(value, width, height, "its box")
