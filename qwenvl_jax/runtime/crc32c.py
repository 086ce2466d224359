"""CRC-32C, the checksum that an object store keeps of every object."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import google_crc32c


def crc32c(parts: Iterable[bytes]) -> str:
    """The CRC-32C of bytes that come in parts, as an object store writes it: four bytes in base64."""
    checksum = google_crc32c.Checksum()
    for part in parts:
        checksum.update(part)
    return base64.b64encode(checksum.digest()).decode()
