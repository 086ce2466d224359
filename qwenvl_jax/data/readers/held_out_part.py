"""One of the two parts of a JSON file: the conversations that are trained on, or those that are held out.

A digest of the content decides, so the same conversation is always on the same side: twice in one file, in another
file, under another id, on every host.
"""

from __future__ import annotations

import hashlib
from typing import Any

from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime.errors import UserError


class HeldOutPart:
    """A `Source` with some of the entries of another one, in their order. Those that cannot be parsed are trained on.

    Args:
      reader: of the whole file.
      share: of the entries that are held out, above 0.
      held_out: whether these are the entries, or the others.

    Raises:
      UserError: if there are none.
    """

    def __init__(self, reader: JsonReader, share: float, *, held_out: bool):
        self._reader = reader
        self._share = share
        self._held_out = held_out
        self._indices = [
            index for index in range(len(reader)) if is_held_out(reader.identity(index), share) == held_out
        ]
        self.samples = sum(reader.samples_of_entry[index] for index in self._indices)
        if not self._indices:
            part = "held out" if held_out else "left to train on"
            raise UserError(
                f"{reader.path} has {len(reader):,} samples, of which a share of {share:g} leaves none {part}; change "
                "config.data.heldout_share"
            )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._reader[self._indices[index]]

    def findings(self) -> Any:
        """Those of the whole file."""
        return self._reader.findings()

    def digest(self) -> str:
        """Of the file and of the part of it."""
        return hashlib.sha256(f"{self._reader.digest()} {self._share!r} {self._held_out}".encode()).hexdigest()


def is_held_out(identity: bytes | None, share: float) -> bool:
    """Whether a sample belongs to the share that is held out.

    Args:
      identity: bytes that say what the sample is, equal for equal samples; None if it cannot be parsed.
      share: from 0 to 1.
    """
    if identity is None:
        return False
    number = int.from_bytes(hashlib.sha256(identity).digest()[:8], "big")
    return number < share * 2**64
