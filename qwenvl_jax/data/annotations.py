"""Several samples of one image in one record: its content lists them under one key, next to keys that they share.

Each object of the list, joined with the other keys of the content, is the content of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.runtime.errors import UserError

ANNOTATIONS = "annotations"  # the key


def contents_of(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The content of every sample of a checked record: one, or one per annotation."""
    if ANNOTATIONS not in content:
        return [content]
    shared = {key: value for key, value in content.items() if key != ANNOTATIONS}
    return [{**shared, **annotation} for annotation in content[ANNOTATIONS]]


def check_one_size(contents: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError if the samples of a record state several sizes of their image."""
    first = contents[0]
    for number, content in enumerate(contents, start=1):
        if (content["width"], content["height"]) != (first["width"], first["height"]):
            raise UserError(
                f"annotation {number} states the size {content['width']} x {content['height']} of the image, and the "
                f"first one {first['width']} x {first['height']}; correct the wrong one"
            )
