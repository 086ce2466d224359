"""How full rows and image groups would be: the packer on the samples that an audit draws."""

from __future__ import annotations

import itertools
from typing import Any

from qwenvl_jax.config import DataConfig
from qwenvl_jax.data.examples import Drawn
from qwenvl_jax.data.packed_groups import items_of, make_packer
from qwenvl_jax.data.packing import Row, images_of


class PackingPreview:
    """Packs the samples of all streams as if they were one.

    Args:
      data: the config.
      queries: feature slots per image.
    """

    def __init__(self, data: DataConfig, queries: int):
        self._data = data
        self._packer = make_packer(data, queries)
        self._groups: list[list[Row]] = []
        self._positions = itertools.count()

    def add(self, drawn: Drawn) -> None:
        """Packs the samples of the next record."""
        for item in items_of(drawn, self._data.mixture[drawn.source].task, next(self._positions)):
            self._packer.add(item)
        while (group := self._packer.next_group()) is not None:
            self._groups.append(group)

    def numbers(self) -> dict[str, Any] | None:
        """Fill of rows and groups, and means per row; None if too few samples were drawn for a group."""
        if not self._groups:
            return None
        data = self._data
        rows = len(self._groups) * data.group_rows
        items = [item for group in self._groups for row in group for item in row.items]
        shown = sum(item.images * len(item.lengths) for item in items)
        images = sum(map(images_of, self._groups))
        return {
            "rows": rows,
            "samples_per_row": sum(len(item.lengths) for item in items) / rows,
            "images_per_row": images / rows,
            "shared_images": 1 - images / max(1, shown),
            "token_fill": sum(sum(item.lengths) for item in items) / (rows * data.sequence_length),
            "image_fill": images / (len(self._groups) * data.group_images),
        }
