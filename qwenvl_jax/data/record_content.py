"""What the content of a record must hold, task by task, so that every sample has something to read and to learn.

Boxes, quadrilaterals and languages are checked where they are written out (`formats`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwenvl_jax.data.schema import TASKS, Record
from qwenvl_jax.runtime.errors import UserError, nearest

# The keys that a task's content must have; schema.Record describes their values.
CONTENT_KEYS: dict[str, tuple[str, ...]] = {
    "caption": ("caption",),
    "vqa": ("question", "answer"),
    "grounding": ("segments", "width", "height"),
    "ref_grounding": ("phrase", "box", "width", "height"),
    "grounded_caption": ("box", "description", "width", "height"),
    "ocr": ("lines", "width", "height"),
    "text": (),  # a text, or a task and the words for its picture
    "dialogue": ("turns",),
}

# Sides that stand for "places are in thousandths" and say nothing about the picture (`conversations`).
THOUSANDTHS = 1000

_TEXTS = ("caption", "question", "answer", "phrase", "description")  # keys whose values must say something
_SIZED = ("grounding", "ref_grounding", "grounded_caption", "ocr")


def check_record(record: Record) -> Record:
    """Checks task, texts, images and content of a record, and that there is something to learn from it.

    Raises:
      UserError: naming the record.
    """
    name = f"record {record.id!r} of {record.source!r}"
    if record.task not in TASKS:
        raise UserError(f"record {record.id!r} has the unknown task {record.task!r}{nearest(record.task, TASKS)}")
    for field in ("id", "source", "language", "license"):
        if not getattr(record, field):
            raise UserError(f"{name} has no {field}; every record needs one")
    try:
        _check_content(record.task, record.content)
    except UserError as error:
        raise UserError(f"{name}, task {record.task!r}: {error}") from None
    if record.task not in ("text", "dialogue") and len(record.images) != 1:
        raise UserError(f"{name}, task {record.task!r}, has {len(record.images)} images instead of one")
    return record


def stated_sizes(record: Record) -> list[tuple[float, float] | None]:
    """[width, height] in pixels that a checked record states of each of its images; None where it states nothing.

    Places in thousandths of a picture (`conversations`) state nothing about its size.
    """
    content, count = record.content, len(record.images)
    if record.task in _SIZED:
        return [(content["width"], content["height"])] * count
    sizes = (content.get("sizes") or ()) if record.task == "dialogue" else ()
    stated = [None if list(size) == [THOUSANDTHS, THOUSANDTHS] else (size[0], size[1]) for size in sizes[:count]]
    return stated + [None] * (count - len(stated))


def _check_content(task: str, content: Any) -> None:
    if not isinstance(content, dict):
        raise UserError(f"its content is {_kind(content)} instead of an object; write the record again")
    missing = [key for key in CONTENT_KEYS[task] if key not in content]
    if missing:
        raise UserError(f"it lacks {', '.join(missing)} in its content")
    for key in _TEXTS:
        if key in CONTENT_KEYS[task]:
            _text(content, key)
    if task in _CHECKS:
        _CHECKS[task](content)


def _check_grounding(content: Mapping[str, Any]) -> None:
    said = ""
    for segment in _objects(content, "segments"):
        has_boxes = bool(_list(segment, "boxes", optional=True))
        said += _text(segment, "text", blank=not has_boxes)
    if not said.strip():
        raise UserError("its segments say nothing; leave the record out")


def _check_ref(content: Mapping[str, Any]) -> None:
    if content.get("ref") is not None:
        _text(content, "ref", blank=True)  # a blank one becomes "This"


def _check_ocr(content: Mapping[str, Any]) -> None:
    for line in _objects(content, "lines"):
        _text(line, "text")


def _check_text(content: Mapping[str, Any]) -> None:
    if "words" not in content and "text" in content:
        _text(content, "text")
    elif not {"task", "words"} <= content.keys():
        raise UserError("it has neither a text nor a picture made of words and that picture's task")
    elif content["task"] not in TASKS or content["task"] == "text":
        raise UserError(f"its words stand for a picture of the task {content['task']!r}; name one that shows pictures")
    else:
        _text(content, "words")
        _check_content(content["task"], content)


def _check_dialogue(content: Mapping[str, Any]) -> None:
    if content.get("system") is not None:
        _text(content, "system", blank=True)
    for size in _list(content, "sizes", optional=True):
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise UserError("'sizes' must hold [width, height] of every image")
    answered = False
    for turn in _objects(content, "turns"):
        says = False
        for part in _objects(turn, "parts", empty=True):
            _check_part(part)
            if "text" in part:
                says |= bool(_text(part, "text", blank=True).strip())
            if "ref" in part:
                _text(part, "ref", blank=True)
            says |= bool(_list(part, "boxes", optional=True) or _list(part, "quads", optional=True))
        if turn.get("role") == "assistant":
            if not says:
                raise UserError("a turn of the assistant says nothing; remove it or the record")
            answered = True
    if not answered:
        raise UserError("no turn is the assistant's, so there is nothing to learn; leave the record out")


def _check_part(part: Mapping[str, Any]) -> None:
    """Refuses a part of which something would be lost: it is a text, an image or a place, and images have numbers."""
    beside = [key for key in ("image", "ref", "boxes", "quads") if key in part]
    if "text" in part and beside:
        raise UserError(f"a part has both 'text' and {beside[0]!r}; make two parts of it")
    image = part.get("image", 0)
    if isinstance(image, bool) or not isinstance(image, int) or image < 0:
        raise UserError(f"'image' in a part must be the number of an image, the first being 0, not {image!r}")
    if "tag" in part:
        _text(part, "text", blank=True)
    if not isinstance(part.get("numbered", True), bool):
        raise UserError(f"'numbered' must be true or false, not {part['numbered']!r}")


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "grounding": _check_grounding,
    "grounded_caption": _check_ref,
    "ocr": _check_ocr,
    "text": _check_text,
    "dialogue": _check_dialogue,
}


def _text(content: Mapping[str, Any], key: str, *, blank: bool = False) -> str:
    """The text under a key. Raises UserError if it is none or, unless it may be `blank`, says nothing."""
    value = content.get(key)
    if not isinstance(value, str):
        raise UserError(f"{key!r} must be a text, not {_kind(value)}")
    if not blank and not value.strip():
        raise UserError(f"{key!r} is empty; leave the record out or fill it")
    return value


def _list(content: Mapping[str, Any], key: str, *, optional: bool = False) -> Sequence[Any]:
    value = content.get(key)
    if optional and value is None:
        return []
    if not isinstance(value, list | tuple):
        raise UserError(f"{key!r} must be a list, not {_kind(value)}")
    return value


def _objects(content: Mapping[str, Any], key: str, *, empty: bool = False) -> Sequence[dict[str, Any]]:
    """The objects listed under a key, one at least unless it may be `empty`."""
    values = _list(content, key)
    if not values and not empty:
        raise UserError(f"{key!r} is empty; leave the record out or fill it")
    for value in values:
        if not isinstance(value, dict):
            raise UserError(f"{key!r} must list objects, not {_kind(value)}")
    return values


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "nothing"
    names = {
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")
