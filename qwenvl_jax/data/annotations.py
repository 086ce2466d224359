"""Several samples of one image in one record: its content lists them under one key, next to keys that they share.

Each object of the list, joined with the other keys of the content, is the content of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANNOTATIONS = "annotations"  # the key


def contents_of(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The content of every sample of a checked record: one, or one per annotation."""
    if ANNOTATIONS not in content:
        return [content]
    shared = {key: value for key, value in content.items() if key != ANNOTATIONS}
    return [{**shared, **annotation} for annotation in content[ANNOTATIONS]]
