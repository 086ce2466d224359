"""Pieces of a sample: text, special tokens and images. Text is tokenised apart, so it cannot forge special tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from qwenvl_jax.data.tags import BOX, BOX_END, QUAD, QUAD_END, REF, REF_END, box_to_text, quad_to_text
from qwenvl_jax.runtime.errors import UserError

_TAGS = {"ref": (REF, REF_END), "box": (BOX, BOX_END), "quad": (QUAD, QUAD_END)}


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One stretch of a sample, tokenised on its own.

    Attributes:
      kind: "text", "special", or "image": a whole `<img>..</img>` block.
      value: the text; the written form of the special token; the index into the record's images.
      supervised: whether its tokens are training targets. Never true of an image.
    """

    kind: Literal["text", "special", "image"]
    value: str | int
    supervised: bool = False


def ref_pieces(text: str) -> list[Piece]:
    """`<ref>text</ref>`."""
    return tagged_pieces("ref", text)


def box_pieces(box: Sequence[float], width: float, height: float) -> list[Piece]:
    """`<box>(x1,y1),(x2,y2)</box>` of a box in pixels of a `width` x `height` image; see `tags.box_to_text`."""
    return tagged_pieces("box", box_to_text(box, width, height))


def quad_pieces(quad: Sequence[Sequence[float]], width: float, height: float) -> list[Piece]:
    """`<quad>..</quad>` of four corners in pixels of a `width` x `height` image; see `tags.quad_to_text`."""
    return tagged_pieces("quad", quad_to_text(quad, width, height))


def tagged_pieces(name: str, text: str) -> list[Piece]:
    """A text between two tags: "ref" gives `<ref>text</ref>`.

    Raises:
      UserError: for a name other than "ref", "box" or "quad".
    """
    if name not in _TAGS:
        raise UserError(f"a part has the tag {name!r}; use one of {', '.join(_TAGS)}")
    opening, closing = _TAGS[name]
    return [Piece("special", opening), Piece("text", text), Piece("special", closing)]
