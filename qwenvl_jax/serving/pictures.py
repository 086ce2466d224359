"""The pictures of a request: from addresses to bytes, within limits."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from qwenvl_jax.data.images.exact import FORMATS, size_of
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.addresses import FileAddress, WebAddress, parse_address
from qwenvl_jax.serving.refusals import Refusal, bad_request
from qwenvl_jax.serving.web_pictures import FetchSettings, WebPictures

MAX_PIXELS = 50_000_000  # of a picture: decoded, it takes 150 MB


@dataclasses.dataclass(frozen=True)
class PictureSettings:
    """Which pictures a request may show.

    Attributes:
      max_pictures: pictures of a request.
      max_bytes: of a picture, encoded.
      folder: below which files of the server may be shown; None for no files. It must be on a disk.
      fetch: what may be fetched from the web; None for nothing.
    """

    max_pictures: int = 16
    max_bytes: int = 20 << 20
    folder: str | None = None
    fetch: FetchSettings | None = None


class LoadedPicture(NamedTuple):
    """A picture of a request.

    Attributes:
      encoded: its bytes.
      size: width and height in pixels, as it is stored.
    """

    encoded: bytes
    size: tuple[int, int]


class PictureSource:
    """Reads the pictures that requests name. For use in one event loop."""

    def __init__(self, settings: PictureSettings):
        self._settings = settings
        self._web = WebPictures(settings.fetch) if settings.fetch is not None else None

    async def load(self, written: Sequence[str]) -> list[LoadedPicture]:
        """The pictures of some addresses, in their order. An address that is named twice is read once.

        Raises:
          Refusal: with status 400, if one cannot be had; it says which one.
        """
        pictures: dict[str, LoadedPicture] = {}
        for number, address in enumerate(written, 1):
            try:
                if address not in pictures:
                    pictures[address] = await self._read(address)
            except UserError as error:
                raise refused_picture(number, error) from None
        return [pictures[address] for address in written]

    async def _read(self, written: str) -> LoadedPicture:
        address = await asyncio.to_thread(parse_address, written)
        if isinstance(address, WebAddress):
            if self._web is None:
                raise UserError("this server fetches nothing from the web; send a data URL")
            picture = await self._web.fetch(address)
        elif isinstance(address, FileAddress):
            if self._settings.folder is None:
                raise UserError("this server shows none of its files; send a data URL")
            folder = self._settings.folder
            picture = await asyncio.to_thread(read_below, folder, address.path, self._settings.max_bytes)
        else:
            picture = address.encoded
        if len(picture) > self._settings.max_bytes:
            raise UserError(f"it has more than {self._settings.max_bytes:,} bytes; send a smaller one")
        return LoadedPicture(picture, _size(picture))


def refused_picture(number: int, error: UserError) -> Refusal:
    """The refusal of a request for the sake of its picture `number`, counted from 1."""
    return bad_request(f"picture {number} cannot be used: {error}", "messages", "invalid_image")


def _size(picture: bytes) -> tuple[int, int]:
    """Width and height, from the head of the file alone.

    Raises:
      UserError: for other files, and for pictures that would take too much memory.
    """
    try:
        width, height = size_of(picture)
    except Exception:  # Pillow raises nearly anything, also for its own limit
        formats = ", ".join(FORMATS)
        raise UserError(f"its {len(picture):,} bytes are not a picture that can be read; send {formats}") from None
    if width * height > MAX_PIXELS:
        raise UserError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}; scale it down")
    return width, height


def read_below(folder: str, path: str, max_bytes: int) -> bytes:
    """The bytes of a file below a folder, at most one more than `max_bytes`.

    Links are followed as long as they stay below the folder. The resolved path is then opened folder by folder without
    following any, so that one which is put there meanwhile leads nowhere.

    Raises:
      UserError: if there is no such file, it lies elsewhere, or is not a file. The message is the same for all of them:
        it tells nothing of the server's other files.
    """
    refused = UserError("there is no such file in the folder of this server; correct the address")
    try:
        root = os.path.realpath(folder)
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([root, real]) != root or real == root:
            raise refused
        *folders, name = os.path.relpath(real, root).split(os.sep)
        opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for each in folders:
                inner = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened)
                os.close(opened)
                opened = inner
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=opened)
        finally:
            os.close(opened)
        with os.fdopen(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise refused
            return stream.read(max_bytes + 1)
    except (OSError, ValueError):
        raise refused from None
