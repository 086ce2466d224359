"""Conversations as the released finetune.py takes them -> the content of a dialogue record.

A turn is `{"from": "user" | "assistant", "value": text}`. In the text, `<img>path</img>` is a picture,
`<ref>..</ref>` a reference, `<box>(x1,y1),(x2,y2)</box>` and `<quad>` with four corners are regions in thousandths of
the picture. Everything else, "Picture 1: " and line breaks too, is kept as written. docs/data.md has the rules as a
table.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.dialogues import THOUSANDTHS, DialogueContent, Part, Turn
from qwenvl_jax.runtime.errors import UserError, nearest

_TAG = re.compile(r"<(/?)(img|ref|box|quad)>")
_WHOLE = re.compile(r"<(ref|box|quad)>((?:(?!</?(?:img|ref|box|quad)>).)*)</\1>", re.DOTALL)
_CORNERS = {"box": 2, "quad": 4}
_FORMS = {"box": "(x1,y1),(x2,y2)", "quad": "(x,y),(x,y),(x,y),(x,y)"}
_KEYS = {"from", "value"}
_FURTHER = {"name", "weight", "loss"}  # keys of messages
# The second pair is what LLaVA and ShareGPT write.
_ROLES = {"user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
_FOREIGN = re.compile(r"<(?:image|video|audio|(bbox|ref-object))>")  # the region's are those of ms-swift
_LLAVA_PICTURE = "<image>"
_AS_WORDS = 'write the tags in pairs or, where they are meant as words, give the sample as "turns" (docs/data.md)'

# Regions are in thousandths already. As pixels of a picture with sides of 1000 they are written unchanged.
_SIDE = THOUSANDTHS


def parse_conversation(turns: Any, system: str = "") -> tuple[DialogueContent, list[str]]:
    """Returns the content of a dialogue record and the paths of its images, each once, in order of occurrence.

    A first turn may be the system's. One of the assistant before the user's first is dropped, as the released
    finetune.py does.

    Args:
      turns: the list of turns.
      system: the system's text, the default one if empty.

    Raises:
      UserError: for turns of another form, an unknown role, a tag without its partner, a malformed region, or a
        conversation in which the user asks nothing.
    """
    system, said = _dialogue(turns, system)
    paths: dict[str, int] = {}
    parsed: list[Turn] = []
    for role, text in said:
        parsed.append({"role": role, "parts": _parse_text(text, paths, role)})
    return {"system": system, "turns": parsed, "sizes": sizes_of(len(paths))}, list(paths)


def sizes_of(pictures: int) -> list[list[int]]:
    """The `sizes` of a dialogue whose regions are in thousandths; also regions without a picture need one."""
    return [[_SIDE, _SIDE]] * max(1, pictures)


def turns_of_messages(messages: Any) -> tuple[list[dict[str, str]], list[str], list[str]]:
    """Messages in the form of OpenAI as turns in that of LLaVA.

    A message is `{"role": .., "content": ..}`. The content is a text, or a list of the parts
    `{"type": "text", "text": ..}`, `{"type": "image_url", "image_url": {"url": ..}}` or
    `{"type": "image", "image": ..}`. In a text `<image>` may stand for a picture that the sample lists elsewhere, and
    so may the part `{"type": "image"}`, which TRL writes. A message may have a `name`, and `weight` (OpenAI) or `loss`
    (ms-swift) if they ask for what is done anyway; further keys must be null.

    Returns:
      The turns, the pictures of the parts in the order of their `<image>`, and the keys of messages that are ignored.

    Raises:
      UserError: for a message or a part of another form.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError('"messages" must be a list of {"role": .., "content": ..}')
    turns: list[dict[str, str]] = []
    pictures: list[str] = []
    written = False
    ignored: set[str] = set()
    for message in map(_without_nulls, messages):
        ignored |= _check_message(message)
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        if not isinstance(parts, list):
            raise UserError('"content" must be a text or a list of parts')
        text = ""
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            picture = part.get(kind) if kind in ("image_url", "image") else None
            picture = picture.get("url") if isinstance(picture, dict) else picture
            listed = _is_listed_picture(part)
            if listed or (isinstance(picture, str) and picture):
                if message["role"] != "user":
                    raise UserError(f"a message of {message['role']!r} shows a picture; only the user's may")
                if picture is not None:
                    pictures.append(picture)
                text += _LLAVA_PICTURE
            elif kind == "text" and isinstance(part.get("text"), str):
                written |= message["role"] == "user" and _LLAVA_PICTURE in part["text"]
                text += part["text"]
            else:
                raise UserError(
                    f"a part of a message is of type {kind!r} and cannot be read; write "
                    '{"type": "text", "text": TEXT} or {"type": "image", "image": PATH or data URL}'
                )
        turns.append({"from": message["role"], "value": text})
    if pictures and written:
        raise UserError(f"{_LLAVA_PICTURE} stands in a text beside parts for pictures; remove one of the two")
    return turns, pictures, sorted(ignored)


def _check_message(message: Mapping[str, Any]) -> set[str]:
    """The keys of a message that mean nothing here.

    Raises:
      UserError: for keys that are missing or unknown, and for an answer that is not to be taught.
    """
    further = message.keys() - {"role", "content"}
    if not {"role", "content"} <= message.keys() or not isinstance(message["role"], str) or further - _FURTHER:
        may = " and ".join(f'"{key}"' for key in sorted(_FURTHER))
        raise UserError(
            f'a message has the keys {", ".join(message) or "none"}; it needs "role" and "content", and may have {may}'
        )
    for key in further - {"name"}:
        if message[key] != (message["role"] == "assistant"):
            raise UserError(
                f'a message of {message["role"]!r} has "{key}": {message[key]!r}, but all answers are taught, and '
                "nothing else; remove the key, or leave out the answers that are not to be learned"
            )
    return {"name"} & further


def _is_listed_picture(part: Any) -> bool:
    """Whether a part says only that the next picture of the sample's list stands here. Other keys may be null."""
    return isinstance(part, dict) and list(_without_nulls(part).items()) == [("type", "image")]


def _without_nulls(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry for key, entry in entries.items() if entry is not None}


def messages_of_query(sample: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a sample in the older form of ms-swift: `history`, pairs of texts, before `query` and `response`.

    Raises:
      UserError: for a history of another form, and for anything but texts in it or as query and response.
    """
    history = sample.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise UserError('"history" must be a list of pairs [query, response]')
    pairs = [*history, [sample["query"], sample["response"]]]
    if not all(isinstance(text, str) for pair in pairs for text in pair):
        raise UserError('"query", "response" and the pairs of "history" must be texts; correct or remove the sample')
    return [
        {"role": role, "content": said}
        for pair in pairs
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]


def parse_llava(turns: Any, pictures: int, system: str = "") -> tuple[str, list[Turn]]:
    """Returns the system's text, "" if it is the default one, and the turns of a conversation in the form of LLaVA.

    In the user's turns `<image>` stands for the next picture; everything else is text. As in LLaVA's training, the one
    picture of a turn comes before its text, without white space around the text, and a picture that no turn shows comes
    first. In a conversation without pictures `<image>` is a word.

    Args:
      turns: the list of turns, each with "from" and "value".
      pictures: how many there are.
      system: the system's text, the default one if empty.

    Raises:
      UserError: for turns of another form, an unknown role, more or fewer `<image>` than pictures, or a conversation in
        which the user asks nothing.
    """
    system, said = _dialogue(turns, system)
    shown = sum(text.count(_LLAVA_PICTURE) for role, text in said if role == "user") if pictures else 0
    if pictures == 1 and not shown:
        said[0] = ("user", f"{_LLAVA_PICTURE}{said[0][1]}")
    elif shown != pictures:
        raise UserError(f"{shown} times {_LLAVA_PICTURE} for {pictures} pictures; correct or remove the sample")
    numbers = itertools.count()
    parsed: list[Turn] = []
    for role, text in said:
        texts = text.split(_LLAVA_PICTURE) if pictures and role == "user" else [text]
        if len(texts) == 2:
            texts = ["", "".join(texts).strip()]
        parts: list[Part] = []
        for index, piece in enumerate(texts):
            if index:
                parts.append({"image": next(numbers)})
                piece = piece.removeprefix("\n")  # a numbered picture ends with one
            if piece:
                parts.append({"text": piece})
        parsed.append({"role": role, "parts": parts})
    return system, parsed


def with_regions(turns: Sequence[Turn]) -> list[Turn]:
    """The turns of `parse_llava`, in whose texts references and regions are tags, as in `parse_conversation`.

    Raises:
      UserError: as `parse_conversation`, and for `<img>`, because the pictures are given elsewhere.
    """
    parsed: list[Turn] = []
    for turn in turns:
        paths: dict[str, int] = {}
        parts: list[Part] = []
        for part in turn["parts"]:
            parts += _parse_text(part["text"], paths, turn["role"]) if "text" in part else [part]
        if paths:
            raise UserError(
                f"there are <img>{next(iter(paths))}</img> and pictures beside the turns; use one of the two"
            )
        parsed.append({"role": turn["role"], "parts": parts})
    return parsed


def _dialogue(turns: Any, system: str) -> tuple[str, list[tuple[str, str]]]:
    """The system's text, and role and text of the other turns, of which the user's is the first."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError('"conversations" must be a list of {"from": .., "value": ..}')
    said = [_said(turn) for turn in turns]
    if said and said[0][0] == "system":
        if system:
            raise UserError('there are both "system" and a turn of the system; keep one')
        system = said.pop(0)[1]
    if said and said[0][0] == "assistant":
        del said[0]
    if not said or said[0][0] != "user":
        raise UserError("a conversation needs a turn of the user first")
    if any(role == "system" for role, _ in said):
        raise UserError("only the first turn may be the system's; remove the others")
    return system, said


def prompt_parts(text: str) -> list[Part]:
    """A typed prompt as parts of a turn: `<ref>`, `<box>` and `<quad>` in pairs are tags, everything else is text.

    Nothing is refused, and the text between the tags is kept as typed, as the released `chat` does.
    """
    parts: list[Part] = []
    offset = 0
    for match in _WHOLE.finditer(text):
        if match.start() > offset:
            parts.append({"text": text[offset : match.start()]})
        parts.append({"tag": match.group(1), "text": match.group(2)})
        offset = match.end()
    return [*parts, {"text": text[offset:]}] if offset < len(text) or not parts else parts


def _said(turn: dict[str, Any]) -> tuple[str, str]:
    """Role and text of one turn."""
    if turn.keys() != _KEYS or not all(isinstance(value, str) for value in turn.values()):
        renamed = ', which "role" and "content" may be renamed to' if {"role", "content"} <= turn.keys() else ""
        has = ", ".join(turn) or "none"
        raise UserError(f'a turn has the keys {has}; it needs the texts "from" and "value"{renamed}, and nothing else')
    role = turn["from"]
    if role != "system" and role not in _ROLES:
        raise UserError(f"a turn is from {role!r}; use 'user' or 'assistant'{nearest(role, _ROLES)}")
    return _ROLES.get(role, role), turn["value"]


def _parse_text(text: str, paths: dict[str, int], role: str) -> list[Part]:
    """The parts of one turn; images that are new are added to `paths`."""
    if foreign := _FOREIGN.search(text):
        instead = "<img>PATH</img> for a picture"
        if foreign.group(1):
            instead = "<ref>WORDS</ref> and <box>(x1,y1),(x2,y2)</box> in thousandths of the picture for a region"
        raise UserError(
            f"{foreign.group(0)} in {_around(text, foreign)} shows nothing; write {instead} or, "
            'where it is meant as a word, give the sample as "turns" (docs/data.md)'
        )
    parts: list[Part] = []
    offset = 0
    while opening := _TAG.search(text, offset):
        name = opening.group(2)
        if opening.group(1):
            raise UserError(f"</{name}> closes nothing in {_around(text, opening)}; {_AS_WORDS}")
        closing = _TAG.search(text, opening.end())
        if closing is None or closing.group(0) != f"</{name}>":
            raise UserError(f"<{name}> is not closed in {_around(text, opening)}; {_AS_WORDS}")
        if opening.start() > offset:
            parts.append({"text": text[offset : opening.start()]})
        inside = text[opening.end() : closing.start()]
        if name == "img":
            if not inside.strip():
                raise UserError(f"<img></img> names no file; {_AS_WORDS}")
            parts.append({"image": paths.setdefault(inside, len(paths)), "numbered": False})
        elif name == "ref":
            parts.append({"ref": inside, "boxes": []})
        elif role == "user" and is_placeholder(inside):
            parts.append({"tag": name, "text": inside})
        else:
            numbers = _numbers(name, inside)
            parts.append({"boxes": [_box(numbers)]} if name == "box" else {"quads": [_pairs(numbers)]})
        offset = closing.end()
    return [*parts, {"text": text[offset:]}] if offset < len(text) else parts


def is_placeholder(inside: str) -> bool:
    """Whether the inside of a box says how one is written, as "(x1,y1),(x2,y2)" does: letters, or no number at all."""
    return any(sign.isalpha() for sign in inside) or not any(sign.isdigit() for sign in inside)


def _around(text: str, match: re.Match[str]) -> str:
    return repr(text[max(0, match.start() - 20) : match.end() + 20])


def _numbers(name: str, inside: str) -> list[int]:
    numbers = tags.read_points(inside, _CORNERS[name])
    if numbers is None:
        raise UserError(
            f"<{name}>{inside[:60]}</{name}> is not a region; write <{name}>{_FORMS[name]}</{name}> with whole numbers "
            "from 0 to 1000"
        )
    return numbers


def _box(numbers: list[int]) -> list[float]:
    """A box thinner than a thousandth has two equal coordinates; its far edge lies within the same thousandth."""
    x1, y1, x2, y2 = (min(value, _SIDE - 1) for value in numbers)  # 1000 is the far edge, which is written 999
    return [x1, y1, x2 + 0.5 * (x1 == x2), y2 + 0.5 * (y1 == y2)]


def _pairs(numbers: list[int]) -> list[list[int]]:
    return [numbers[k : k + 2] for k in range(0, len(numbers), 2)]
