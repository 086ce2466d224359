"""Conversations as the released finetune.py takes them -> the content of a dialogue record.

A turn is `{"from": "user" | "assistant", "value": text}`. In the text, `<img>path</img>` is a picture,
`<ref>..</ref>` a reference, `<box>(x1,y1),(x2,y2)</box>` and `<quad>` with four corners are places in thousandths of
the picture. Everything else, "Picture 1: " and line breaks too, is kept as written.
"""

from __future__ import annotations

import re
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.record_content import THOUSANDTHS
from qwenvl_jax.runtime.errors import UserError, nearest

_TAG = re.compile(r"<(/?)(img|ref|box|quad)>")
_CORNERS = {"box": 2, "quad": 4}
_KEYS = {"from", "value"}
_ROLES = ("user", "assistant")

# Places are in thousandths already. Said to be pixels of a picture with such sides, they come out as they went in.
_SIDE = THOUSANDTHS


def parse_conversation(turns: Any) -> tuple[dict[str, Any], list[str]]:
    """Returns the content of a dialogue record and the paths of its images, each once, in order of occurrence.

    A first turn that is not the user's is dropped, as the released finetune.py does.

    Raises:
      UserError: for turns of another form, an unknown role, a tag without its partner, or a place that is not one.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError('"conversations" must be a list of {"from": .., "value": ..}')
    paths: dict[str, int] = {}
    parsed = []
    for turn in turns:
        if turn.keys() != _KEYS or not all(isinstance(value, str) for value in turn.values()):
            raise UserError(f'a turn has the keys {", ".join(map(str, turn))}; it needs the texts "from" and "value"')
        role = turn["from"]
        if role not in _ROLES:
            raise UserError(f"a turn is from {role!r}; use 'user' or 'assistant'{nearest(role, _ROLES)}")
        parsed.append({"role": role, "parts": _parse_text(turn["value"], paths)})
    if parsed and parsed[0]["role"] != "user":
        del parsed[0]
        # Numbered again: the pictures of a dropped turn are nobody's.
        paths = {}
        for turn, kept in zip(turns[1:], parsed, strict=True):
            kept["parts"] = _parse_text(turn["value"], paths)
    if not parsed:
        raise UserError("a conversation needs at least one turn of the user")
    content = {"system": "", "turns": parsed, "sizes": [[_SIDE, _SIDE]] * max(1, len(paths))}
    return content, list(paths)


def _parse_text(text: str, paths: dict[str, int]) -> list[dict[str, Any]]:
    """The parts of one turn; images that are new are added to `paths`."""
    parts: list[dict[str, Any]] = []
    place = 0
    while opening := _TAG.search(text, place):
        name = opening.group(2)
        if opening.group(1):
            raise UserError(f"</{name}> closes nothing in {_around(text, opening)}; write the tags in pairs")
        closing = _TAG.search(text, opening.end())
        if closing is None or closing.group(0) != f"</{name}>":
            raise UserError(f"<{name}> is not closed in {_around(text, opening)}; write the tags in pairs")
        if opening.start() > place:
            parts.append({"text": text[place : opening.start()]})
        inside = text[opening.end() : closing.start()]
        if name == "img":
            parts.append({"image": paths.setdefault(inside, len(paths)), "numbered": False})
        elif name == "ref":
            parts.append({"ref": inside, "boxes": []})
        else:
            numbers = _numbers(name, inside)
            parts.append({"boxes": [_box(numbers)]} if name == "box" else {"quads": [_pairs(numbers)]})
        place = closing.end()
    return [*parts, {"text": text[place:]}] if place < len(text) else parts


def _around(text: str, match: re.Match[str]) -> str:
    return repr(text[max(0, match.start() - 20) : match.end() + 20])


def _numbers(name: str, inside: str) -> list[int]:
    numbers = tags.read_points(inside, _CORNERS[name])
    if numbers is None:
        form = "(x1,y1),(x2,y2)" if name == "box" else "(x,y),(x,y),(x,y),(x,y)"
        raise UserError(
            f"<{name}>{inside[:60]}</{name}> is not of the form <{name}>{form}</{name}> with whole numbers from 0 to "
            "1000; correct it"
        )
    return numbers


def _box(numbers: list[int]) -> list[float]:
    """A box thinner than a thousandth has two equal coordinates; its far edge lies within the same thousandth."""
    x1, y1, x2, y2 = (min(value, _SIDE - 1) for value in numbers)  # 1000 is the far edge, which is written 999
    return [x1, y1, x2 + 0.5 * (x1 == x2), y2 + 0.5 * (y1 == y2)]


def _pairs(numbers: list[int]) -> list[list[int]]:
    return [numbers[k : k + 2] for k in range(0, len(numbers), 2)]
