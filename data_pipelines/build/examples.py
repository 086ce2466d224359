"""Examples for the report: pairs as a rule dropped them, and kept pairs; one JSON object each, with a thumbnail.

A line of `examples/dropped.jsonl`:

    {"rule": "emoji", "reason": "emoji", "file": "0001.tar", "row": 3, "id": "..", "texts": [..], "evidence": [..],
     "size": [640, 480], "thumbnail": "<base64 of a JPEG>"}

A line of `examples/kept.jsonl` has `records` instead of a rule, a reason and evidence:

    {"file": "0001.tar", "row": 4, "id": "..", "texts": [..], "size": [640, 480], "thumbnail": "..",
     "records": {"caption": {"id": "..", "language": "en", "license": "..", "content": {..}}}}

`size` and `thumbnail` are of the first picture, and null if the rule saw a pair without a picture or before its picture
was opened, or the picture cannot be decoded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from data_pipelines.clean.rule import Judged
from data_pipelines.pair import RawPair
from data_pipelines.thumbnails import jpeg_thumbnail
from qwenvl_jax.data.images.exact import FORMATS, decode_image

PER_REASON = 12  # examples of pairs that a rule dropped for one reason
KEPT = 36  # examples of pairs that were kept
DROPPED_SIDE = 160  # px, the longer side of a thumbnail
KEPT_SIDE = 448  # px
_CHARACTERS = 500  # of a text that is shown
_TEXTS = 5
_EVIDENCE = 5  # of a pair that is listed


class Examples:
    """The first pairs that each rule dropped for each reason."""

    def __init__(self, earlier: Iterable[Mapping[str, Any]] = ()):
        self._by_reason: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for example in earlier:
            self.add(example)

    def wants(self, rule: str, reason: str, position: int) -> bool:
        """Whether a row would be kept."""
        examples = self._by_reason.get((rule, reason), [])
        return len(examples) < PER_REASON or position < examples[-1]["position"]

    def add(self, example: Mapping[str, Any]) -> None:
        """Adds an example, in any order of rows; the first ones are kept. `position` is that of the row in its part."""
        examples = self._by_reason.setdefault((example["rule"], example["reason"]), [])
        examples.append(dict(example))
        examples.sort(key=lambda each: each["position"])
        del examples[PER_REASON:]

    def entries(self) -> list[dict[str, Any]]:
        """All examples, by rule and reason, in the order of their rows."""
        return [each for key in sorted(self._by_reason) for each in self._by_reason[key]]


def with_evidence(judged: Judged, id: str, file: str, row: int) -> dict[str, Any]:
    """A pair that a rule dropped with evidence. All of these are listed, not only examples; see `finish`."""
    assert judged.dropped is not None
    head = {"rule": judged.rule, "reason": judged.dropped.reason, "file": file, "row": row, "id": id}
    return {**head, "evidence": list(judged.dropped.evidence[:_EVIDENCE])}


def describe(pair: RawPair) -> dict[str, Any]:
    """A pair in a few words, with the thumbnail of its first picture if it has the bytes."""
    texts = [*pair.texts, *(question.text for question in pair.questions), *(region.phrase for region in pair.regions)]
    texts += [line.text for line in pair.lines]
    encoded = pair.pictures[0].encoded if pair.pictures else b""
    return {"id": pair.id, "texts": shortened(texts), **thumbnail(encoded, DROPPED_SIDE)}


def shortened(texts: Iterable[str]) -> list[str]:
    """The beginnings of the first texts."""
    return [text[:_CHARACTERS] for text in list(texts)[:_TEXTS]]


def thumbnail(encoded: bytes, side: int) -> dict[str, Any]:
    """`size` and `thumbnail` of an encoded picture; its longer side is at most `side` px."""
    if not encoded:
        return {"size": None, "thumbnail": None}
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as header:
            size = header.size
        picture = decode_image(encoded, draft=side)
    except Exception:  # Pillow's plugins raise nearly anything on damaged files
        return {"size": None, "thumbnail": None}
    return {"size": list(size), "thumbnail": base64.b64encode(jpeg_thumbnail(picture, side)).decode()}
