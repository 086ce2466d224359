"""How full rows and image groups would be: the packer on the samples that an audit draws."""

from __future__ import annotations

import itertools
from typing import Any

from qwenvl_jax.config import DataConfig
from qwenvl_jax.data.examples import DrawnRecord
from qwenvl_jax.data.packed_groups import items_of, make_packer
from qwenvl_jax.data.packing import Row, images_of

PACKING_COLUMNS = ("rows", "samples per row", "images per row", "shared images", "token fill", "image fill")
EMPTY_ROWS = 0.02  # share of empty rows above which a note says what to change
IMAGE_FILL = 0.9  # image fill below which a note says what to change


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

    def add(self, drawn: DrawnRecord) -> None:
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
        rows = sum(map(len, self._groups))
        all_rows = len(self._groups) * data.group_rows
        items = [item for group in self._groups for row in group for item in row.items]
        shown = sum(item.images * len(item.lengths) for item in items)
        images = sum(map(images_of, self._groups))
        return {
            "rows": rows,
            "empty_rows": all_rows - rows,
            "samples_per_row": sum(len(item.lengths) for item in items) / rows,
            "images_per_row": images / rows,
            "shared_images": shown - images,
            "token_fill": sum(sum(item.lengths) for item in items) / (all_rows * data.sequence_length),
            "image_fill": images / (len(self._groups) * data.group_images),
        }

    def notes(self) -> list[str]:
        """What to change if a budget does not suit the mixture."""
        numbers = self.numbers()
        if numbers is None:
            return ["too few samples were drawn to fill an image group; audit more of them to see how rows are packed"]
        notes = []
        budget = f"config.data.images_per_row is {self._data.images_per_row:g}"
        needed = f"full rows show {numbers['images_per_row']:.2f} images"
        if numbers["empty_rows"] > EMPTY_ROWS * numbers["rows"]:
            share = numbers["empty_rows"] / (numbers["rows"] + numbers["empty_rows"])
            notes.append(
                f"{share:.0%} of the rows stay empty because their groups have no images left: {budget}; raise it"
            )
        elif numbers["image_fill"] < IMAGE_FILL and numbers["images_per_row"]:
            notes.append(f"{1 - numbers['image_fill']:.0%} of the images stay empty: {budget}, but {needed}; lower it")
        return notes


def packing_row(packing: dict[str, Any]) -> list[str]:
    """The numbers of `PackingPreview` as they are shown."""
    return [
        f"{packing['rows']:,}",
        f"{packing['samples_per_row']:.2f}",
        f"{packing['images_per_row']:.2f}",
        f"{packing['shared_images']:,}",
        f"{packing['token_fill']:.1%}",
        f"{packing['image_fill']:.1%}",
    ]
