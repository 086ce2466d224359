"""The tokens of a sample read back: spans of text, tags and images, and the regions among them.

Shape suffixes: L tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from qwenvl_jax.data import tags
from qwenvl_jax.data.examples import Tokens
from qwenvl_jax.data.readers.conversations import is_placeholder
from qwenvl_jax.data.tokenizer import Tokenizer

_POINTS = {tags.BOX: 2, tags.QUAD: 4}
_CLOSING = {tags.BOX: tags.BOX_END, tags.QUAD: tags.QUAD_END}


class Span(NamedTuple):
    """Neighbouring tokens of one kind: text, one special token, or the feature slots of one image.

    `supervised` says whether they are predicted with loss; the first token of a sample never is. `image` is the
    index of the image in the sample, -1 for other spans.
    """

    kind: Literal["text", "special", "image"]
    text: str
    tokens: int
    supervised: bool
    image: int = -1


class SpelledRegion(NamedTuple):
    """A box or quadrilateral as the tokens spell it.

    Attributes:
      span: index of the span that opens it.
      images: indices of the images before it, the latest last. If there are several, the text alone does not tell which
        image is meant.
      corners: (x, y) in thousandths, as written: two for a box, four for a quadrilateral, empty if unreadable.
      supervised: whether the model is taught to write it.
    """

    span: int
    images: tuple[int, ...]
    corners: tuple[tuple[int, int], ...]
    supervised: bool

    @property
    def polygon(self) -> tuple[tuple[int, int], ...]:
        """The corners of the outline, four for a box too."""
        if len(self.corners) != 2:
            return self.corners
        (x1, y1), (x2, y2) = self.corners
        return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))

    @property
    def empty(self) -> bool:
        """Whether it has no area, the corners of a box are in the wrong order, or it cannot be read."""
        if len(self.corners) == 2:
            (x1, y1), (x2, y2) = self.corners
            return x1 >= x2 or y1 >= y2
        following = (*self.corners[1:], *self.corners[:1])
        return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(self.corners, following, strict=True)) == 0


def spans_of(tokens: Tokens, tokenizer: Tokenizer, queries: int) -> list[Span]:
    """The tokens of a sample as text. If the loss begins inside a character, that character counts as supervised."""
    ids_L = tokens.tokens_L
    supervised_L = tokens.is_target_L.copy()
    supervised_L[:1] = False  # no token comes before the first one to predict it
    image_L = np.where(tokens.image_query_L < 0, -1, tokens.image_query_L // queries)
    # The index of every special token, -1 for the others: a special token is a span of its own.
    is_special_L = (ids_L >= tokenizer.special.first) & (image_L < 0)
    special_L = np.where(is_special_L, np.arange(len(ids_L)), -1)
    spans: list[Span] = []
    for start, stop in _runs(image_L, special_L):
        if image_L[start] >= 0:
            image = int(image_L[start])
            spans.append(Span("image", f"image {image + 1}", stop - start, bool(supervised_L[start]), image))
        elif special_L[start] >= 0:
            name = tokenizer.decode(ids_L[start:stop])
            spans.append(Span("special", name, 1, bool(supervised_L[start])))
        else:
            spans += _text_spans(ids_L[start:stop], supervised_L[start:stop], tokenizer)
    return spans


def _text_spans(ids_L: np.ndarray, supervised_L: np.ndarray, tokenizer: Tokenizer) -> list[Span]:
    """A stretch of text, cut where its supervision changes."""
    text = tokenizer.decode(ids_L)
    spans = []
    text_start = 0
    for start, stop in _runs(supervised_L):
        text_stop = len(text)
        if stop < len(ids_L):  # a character cut in two belongs to the next span
            text_stop = len(tokenizer.decode(ids_L[:stop]).rstrip("\ufffd"))
        spans.append(Span("text", text[text_start:text_stop], stop - start, bool(supervised_L[start])))
        text_start = text_stop
    return spans


def _runs(*keys_L: np.ndarray) -> list[tuple[int, int]]:
    """Start and end of the stretches in which no key changes."""
    changes: set[int] = {0, len(keys_L[0])}
    for key_L in keys_L:
        changes.update((np.flatnonzero(key_L[1:] != key_L[:-1]) + 1).tolist())
    return list(itertools.pairwise(sorted(changes)))


def regions_of(spans: Sequence[Span]) -> list[SpelledRegion]:
    """The boxes and quadrilaterals that special tokens enclose, in order."""
    regions: list[SpelledRegion] = []
    images: dict[int, None] = {}  # ordered: the latest image is the last key
    for index, span in enumerate(spans):
        if span.kind == "image":
            images.pop(span.image, None)
            images[span.image] = None
        if span.kind != "special" or span.text not in _POINTS:
            continue
        inner = [*itertools.takewhile(lambda other: other.kind == "text", spans[index + 1 :])]
        text = "".join(part.text for part in inner)
        end = index + 1 + len(inner)
        closed = end < len(spans) and spans[end].text == _CLOSING[span.text]
        values = (tags.read_points(text, _POINTS[span.text]) if closed else None) or []
        if not span.supervised and is_placeholder(text):
            continue  # the user only says how a region is written
        corners = tuple(zip(values[::2], values[1::2], strict=True))
        regions.append(SpelledRegion(index, tuple(images), corners, span.supervised))
    return regions
