"""Dialogues: the content of their records, its checks, and ChatML (paper, Box B.2) with the labels of finetune.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from qwenvl_jax.data.content_checks import list_at, objects_at, text_at
from qwenvl_jax.data.pieces import Piece, box_pieces, quad_pieces, ref_pieces, tagged_pieces
from qwenvl_jax.data.tags import IM_END, IM_START
from qwenvl_jax.runtime.errors import UserError

DEFAULT_SYSTEM = "You are a helpful assistant."  # released qwen_generation_utils.py and finetune.py

# A stated size of [1000, 1000] means that regions are in thousandths of the image, whose size is not stated.
THOUSANDTHS = 1000


class Part(TypedDict, total=False):
    """A part of a turn: a text, an image, a region or a tag.

    text    {"text": str}
    image   {"image": index into the record's images}. "Picture n: " goes before it and a line break after it, unless
            "numbered" is false.
    region  {"ref": str, "boxes": [box], "quads": [quad], "image": index of the image that shows it}, each optional
    tag     {"tag": "ref" | "box" | "quad", "text": str}: a tag that a user only mentions, as in
            "Answer as <box>(x1,y1),(x2,y2)</box>"
    """

    text: str
    image: int
    numbered: bool
    ref: str
    boxes: Sequence[Sequence[float]]
    quads: Sequence[Sequence[Sequence[float]]]
    tag: str


class Turn(TypedDict):
    """What one side says; `role` is "user" or "assistant"."""

    role: str
    parts: Sequence[Part]


class DialogueContent(TypedDict):
    """A dialogue. `sizes` has [width, height] of every image, in the unit of the boxes and quadrilaterals."""

    turns: Sequence[Turn]
    system: NotRequired[str]
    sizes: NotRequired[Sequence[Sequence[float]]]


def check_dialogue(content: Mapping[str, Any]) -> None:
    """Raises UserError if a dialogue is malformed, or has no turn of the assistant from which to learn."""
    for size in list_at(content, "sizes", optional=True):
        if not isinstance(size, list | tuple) or len(size) != 2:
            raise UserError("'sizes' must hold [width, height] of every image")
    answered = False
    for turn in objects_at(content, "turns"):
        says_something = False
        for part in objects_at(turn, "parts", empty=True):
            _check_part(part)
            if "text" in part and text_at(part, "text", blank=True).strip():
                says_something = True
            if "ref" in part:
                text_at(part, "ref", blank=True)
            boxes = list_at(part, "boxes", optional=True)
            if boxes or list_at(part, "quads", optional=True):
                says_something = True
        if turn.get("role") == "assistant":
            if not says_something:
                raise UserError("a turn of the assistant says nothing; remove it or the record")
            answered = True
    if not answered:
        raise UserError("no turn is the assistant's, so there is nothing to learn; leave the record out")


def dialogue_words(content: DialogueContent) -> str:
    """The turns in words, one a line, as a page shows them."""
    lines = []
    for turn in content["turns"]:
        said = "".join(part.get("text") or part.get("ref", "") for part in turn["parts"])
        lines.append(f"{turn['role']}: {said}")
    return "\n".join(lines)


def _check_part(part: Mapping[str, Any]) -> None:
    """Raises UserError for a part with something that would be ignored, or with a wrong image index."""
    others = [key for key in ("image", "ref", "boxes", "quads") if key in part]
    if "text" in part and others:
        raise UserError(f"a part has both 'text' and {others[0]!r}; make two parts of it")
    image = part.get("image", 0)
    if isinstance(image, bool) or not isinstance(image, int) or image < 0:
        raise UserError(f"'image' in a part must be the number of an image, the first being 0, not {image!r}")
    if "tag" in part:
        text_at(part, "text", blank=True)
    if not isinstance(part.get("numbered", True), bool):
        raise UserError(f"'numbered' must be true or false, not {part['numbered']!r}")


def chat_pieces(
    turns: Sequence[Mapping[str, Any]],
    *,
    system: str = "",
    sizes: Sequence[Sequence[float]] = (),
    open_end: bool = False,
) -> list[Piece]:
    r"""A conversation in ChatML.

        <|im_start|>system\n{system}<|im_end|>\n
        <|im_start|>user\nPicture 1: <img/>\n{text}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n

    Pictures are numbered through the whole conversation, in order of occurrence. Supervised as in the released
    finetune.py: in every turn, the system's and the user's too, `<|im_start|>`, `<|im_end|>` and the line break
    after it; and what the assistant says. Role names, what system and user say, and images are not.

    Args:
      turns: as in `Turn`.
      system: the text of the system's turn; if empty, the default one.
      sizes: [width, height] per image, in the unit of the boxes and quadrilaterals.
      open_end: end where the model continues: with `<|im_start|>assistant\n` after a user's turn. If the last turn
        is the assistant's, it is dropped.

    Raises:
      UserError: for an unknown role, an assistant that speaks first, or no turns.
    """
    turns = list(turns)
    if open_end and turns and turns[-1].get("role") == "assistant":
        turns.pop()
    if not turns or turns[0].get("role") != "user":
        raise UserError("a dialogue must begin with a turn of the user")
    pieces = _turn("system", [Piece("text", system or DEFAULT_SYSTEM)])
    pictures = 0
    for turn in turns:
        role = turn.get("role", "")
        if role not in ("user", "assistant"):
            raise UserError(f"a dialogue turn has the role {role!r}; use 'user' or 'assistant'")
        if role == "assistant" and any("tag" in part for part in turn["parts"]):
            raise UserError(
                "a turn of the assistant has a part with 'tag', which only a user's turn may have; give the region as "
                "boxes or quads"
            )
        content, pictures = _turn_content(turn["parts"], sizes, pictures)
        pieces += _turn(role, content)
    if open_end:
        pieces += [Piece("special", IM_START), Piece("text", "assistant"), Piece("text", "\n")]
    return pieces


def _turn(role: str, content: Sequence[Piece]) -> list[Piece]:
    """One turn. Role, line break and content are tokenised apart (released qwen_generation_utils.py)."""
    is_answer = role == "assistant"
    return [
        Piece("special", IM_START, True),
        Piece("text", role),
        Piece("text", "\n"),
        *(dataclasses.replace(piece, supervised=is_answer and piece.kind != "image") for piece in content),
        Piece("special", IM_END, True),
        Piece("text", "\n", True),
    ]


def _turn_content(
    parts: Sequence[Mapping[str, Any]], sizes: Sequence[Sequence[float]], pictures: int
) -> tuple[list[Piece], int]:
    """Pieces of one turn and the number of pictures so far. Neighbouring text is tokenised as one string."""
    pieces: list[Piece] = []
    text = ""
    for part in parts:
        if "text" in part and "tag" not in part:
            text += part["text"]
            continue
        text_after = ""
        if "tag" in part:
            part_pieces = tagged_pieces(part["tag"], part["text"])
        elif part.keys() & {"ref", "boxes", "quads"}:
            part_pieces = _region_pieces(part, sizes)
        elif "image" in part:
            part_pieces = [Piece("image", int(part["image"]))]
            if part.get("numbered", True):
                pictures += 1
                text += f"Picture {pictures}: "
                text_after = "\n"
        else:
            raise UserError(f"a dialogue part has the keys {', '.join(part)}; use text, image, or ref with boxes")
        if text:
            pieces.append(Piece("text", text))
        pieces += part_pieces
        text = text_after
    if text:
        pieces.append(Piece("text", text))
    return pieces, pictures


def _region_pieces(part: Mapping[str, Any], sizes: Sequence[Sequence[float]]) -> list[Piece]:
    """The reference of a region, if it has one, then its boxes and its quadrilaterals."""
    pieces = ref_pieces(part["ref"]) if "ref" in part else []
    for key, write in (("boxes", box_pieces), ("quads", quad_pieces)):
        for shape in part.get(key, ()):
            width, height = sizes[part.get("image", 0)]
            pieces += write(shape, width, height)
    return pieces
