"""Checks of the JSON values inside a record's content. Each raises UserError with one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.runtime.errors import UserError

_KIND_NAMES: dict[type, str] = {
    str: "a text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def text_at(content: Mapping[str, Any], key: str, *, blank: bool = False) -> str:
    """The text at a key. Unless `blank` is set, it must have more than white space."""
    value = content.get(key)
    if not isinstance(value, str):
        raise UserError(f"{key!r} must be a text, not {kind_of(value)}")
    if not blank and not value.strip():
        raise UserError(f"{key!r} is empty; leave the record out or fill it")
    return value


def list_at(content: Mapping[str, Any], key: str, *, optional: bool = False) -> Sequence[Any]:
    """The list at a key. If `optional` is set, a missing list is an empty one."""
    value = content.get(key)
    if optional and value is None:
        return []
    if not isinstance(value, list | tuple):
        raise UserError(f"{key!r} must be a list, not {kind_of(value)}")
    return value


def objects_at(content: Mapping[str, Any], key: str, *, empty: bool = False) -> Sequence[dict[str, Any]]:
    """The objects in the list at a key. Unless `empty` is set, there must be at least one."""
    values = list_at(content, key)
    if not values and not empty:
        raise UserError(f"{key!r} is empty; leave the record out or fill it")
    for value in values:
        if not isinstance(value, dict):
            raise UserError(f"{key!r} must list objects, not {kind_of(value)}")
    return values


def check_segments(content: Mapping[str, Any]) -> None:
    """Raises UserError if the segments of a caption are malformed, or have no words together."""
    caption = ""
    for segment in objects_at(content, "segments"):
        has_boxes = bool(list_at(segment, "boxes", optional=True))
        caption += text_at(segment, "text", blank=not has_boxes)
    if not caption.strip():
        raise UserError("its segments say nothing; leave the record out")


def check_lines(content: Mapping[str, Any]) -> None:
    """Raises UserError if the lines of a page are malformed."""
    for line in objects_at(content, "lines"):
        text_at(line, "text")


def kind_of(value: object) -> str:
    """The kind of a JSON value in words, such as "a list"."""
    if value is None:
        return "nothing"
    return _KIND_NAMES.get(type(value), f"a {type(value).__name__}")
