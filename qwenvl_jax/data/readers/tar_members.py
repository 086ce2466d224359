"""The members of a tar file, in one forward pass of large reads.

`tarfile` needs about 50 microseconds for a member, as long as a fast disk needs for 90 kB. Nearly all members of
WebDataset shards are plain: a regular file whose name fits into one header. Such headers are checked and read here,
many at once with numpy, by the rules of `tarfile`; everything else (pax, long names of GNU tar, links, the end of an
archive, damage) is left to `tarfile`, so that the result is the same.

Axes: H headers, B bytes of a header.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Generator, Iterator
from typing import IO, Literal, NamedTuple, cast

import numpy as np
from etils import epath

from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

_HEADER = tarfile.BLOCKSIZE
# Bytes of one read. On a disk the block should still be in the processor's cache when its headers are read.
_REMOTE_BLOCK = 16 << 20
_LOCAL_BLOCK = 4 << 20
# Size and type of a header that may be plain: a regular file, or a pax header.
_PLAIN_HEADER = re.compile(rb"(?s).{124}([0-7]{11})[\0 ].{20}([0x]).{100}ustar.{250}")
_TIME_RECORDS = re.compile(rb"([1-9]\d?) [acm]time=[0-9.]+\n(?:[1-9]\d? [acm]time=[0-9.]+\n)*")
_TIMES = -1
_NUMBER_FIELDS = (  # mode, uid, gid, time, checksum, device numbers
    *((100, 108), (108, 116), (116, 124), (136, 148), (148, 156)),
    *((329, 337), (337, 345)),
)
_NUMBERS = np.concatenate([np.arange(start, end) for start, end in _NUMBER_FIELDS])
_NUMBER_STARTS = np.isin(_NUMBERS, [start for start, _ in _NUMBER_FIELDS])


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
      name: its path in the archive.
      start: offset of its contents in the file, in bytes.
      size: of its contents in bytes.
      regular: whether it is an ordinary file, neither a link nor sparse nor a device.
    """

    name: str
    start: int
    size: int
    regular: bool


class BlockFile:
    """A file that is read forwards in large blocks; it has the methods that `tarfile` calls.

    Only one block is in memory. What a caller skips is not read.

    Args:
      path: of the file.
      size: of the file in bytes.
      block: bytes of one read, by default 16 MiB on an object store and 4 MiB on a disk.
    """

    def __init__(self, path: epath.Path, size: int, block: int = 0):
        self.size = size
        self._path = path
        self._block = block or (_REMOTE_BLOCK if storage.is_remote(path) else _LOCAL_BLOCK)
        self._start = 0  # offset of `_data` in the file
        self._data = b""
        self._offset = 0  # at which `read` continues

    def bytes_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer only at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._data):
            self._load(offset, size)
            begin = offset - self._start
        return self._data[begin : begin + size]

    def window(self, offset: int) -> tuple[bytes, int]:
        """The bytes that are in memory, and the index of byte `offset` among them.

        At least a header from there on is in memory, unless the file ends before.
        """
        begin = offset - self._start
        if begin < 0 or begin + _HEADER > len(self._data):
            self._load(offset, _HEADER)
            begin = offset - self._start
        return self._data, begin

    def read(self, size: int) -> bytes:
        """The next bytes, as of a file."""
        data = self.bytes_at(self._offset, max(0, min(size, self.size - self._offset)))
        self._offset += len(data)
        return data

    def seek(self, offset: int) -> int:
        """Sets the offset at which `read` continues."""
        self._offset = offset
        return offset

    def tell(self) -> int:
        """The offset at which `read` continues."""
        return self._offset

    def _load(self, offset: int, size: int) -> None:
        """Brings the bytes from `offset` into memory, at least `size` of them."""
        begin = offset - self._start
        kept = self._data[begin:] if 0 <= begin < len(self._data) else b""
        next_offset = offset + len(kept)
        wanted = min(max(self._block, size - len(kept)), self.size - next_offset)
        self._data = b""  # before the next block is in memory
        read = storage.read_bytes(self._path, next_offset, wanted) if wanted > 0 else b""
        self._start = offset
        self._data = kept + read if kept else read


def members(path: epath.Path, file: BlockFile) -> Iterator[Member | Literal["end", "damaged"]]:
    """All whole members but folders; "end" where an archive ends as it should, "damaged" if nothing more can be read.

    Raises:
      UserError: if the file is no uncompressed tar file.
    """
    start = 0
    size = file.size
    while start < size:
        file.seek(start)
        try:
            archive = None
            if size - start >= _HEADER:
                archive = tarfile.open(fileobj=cast(IO[bytes], file), mode="r:")  # noqa: SIM115
        except tarfile.TarError:
            if not start:
                raise UserError(f"{path} is not an uncompressed tar file; unpack or remove it") from None
            archive = None
        if archive is None:
            break
        if not (yield from _members_of(archive, file)):
            yield "damaged"
            return
        # tarfile also stops, without a word, at a header that is cut off or damaged. A whole archive ends in zeros,
        # after which another may follow.
        end = archive.offset
        start = _after_zeros(file, end)
        if start - end < _HEADER:
            break
        yield "end"
    else:
        if size:
            return
    yield "damaged"


def _members_of(archive: tarfile.TarFile, file: BlockFile) -> Generator[Member, None, bool]:
    """The members of one archive of the file; returns whether `tarfile` reached its end without a complaint."""
    before = -1
    while True:
        file.seek(archive.offset)  # or `tarfile` would look at the byte before, which may no longer be in memory
        member = _next(archive)
        if member is None:
            return True
        # Sizes come from the file: a negative one would lead backwards, one too large beyond the end.
        if member == "damaged" or member.offset <= before or member.size < 0:
            return False
        if member.isreg() and member.offset_data + member.size > file.size:
            return False
        before = member.offset
        archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
        if not member.isdir():
            yield Member(member.name, member.offset_data, member.size, member.isreg() and not member.issparse())
        if not archive.pax_headers:  # of the whole archive: they may change the name and size of every member
            plain_end = yield from _plain_members(archive, file)
            if plain_end is None:
                return False
            before = max(before, plain_end - 1)


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | Literal["damaged"] | None:
    try:
        return archive.next()
    except (OSError, StorageError):
        raise
    except Exception:  # tarfile raises nearly anything on damaged headers
        return "damaged"


def _plain_members(archive: tarfile.TarFile, file: BlockFile) -> Generator[Member, None, int | None]:
    """The plain members from `archive.offset` on, up to the first header that is not plain, to which the offset moves.

    Returns:
      The end of the last one, or None if its contents go beyond the end of the file.
    """
    offset = archive.offset
    encoding = archive.encoding or "utf-8"
    errors = archive.errors or "strict"
    whole = True
    while whole:
        data, begin = file.window(offset)
        starts, sizes = _chain(data, begin)
        number, names = _plain(data, starts, sizes)
        if not number:
            break
        whole = number == len(starts)
        contents = offset - begin + _HEADER  # of a header at the first byte of `data`, in the file
        texts = b"\0".join(names).decode(encoding, errors).split("\0")
        batch = [
            Member(text, contents + start, size, True)
            for text, start, size in zip(texts, starts, sizes, strict=False)
            if size != _TIMES
        ]
        last = batch[-1]
        if last.start + last.size > file.size:
            yield from batch[:-1]
            return None
        yield from batch
        offset = last.start + _padded(last.size)
    archive.offset = offset
    return offset


def _chain(data: bytes, start: int) -> tuple[list[int], list[int]]:
    """The headers from `start` on that seem plain, each where the one before says that its contents end.

    Returns:
      Their offsets in `data` and the sizes of their contents; _TIMES instead of a size for a pax header that states
      nothing but times, as webdataset writes one for every member.
    """
    starts = []
    sizes = []
    match_header = _PLAIN_HEADER.match
    while header := match_header(data, start):
        digits, kind = header.groups()
        size = int(digits, 8)
        starts.append(start)
        if kind == b"0":
            sizes.append(size)
            start += _HEADER + _padded(size)
            continue
        records = _TIME_RECORDS.fullmatch(data, start + _HEADER, start + _HEADER + size)
        if not records or size > _HEADER or not _has_stated_lengths(records):
            starts.pop()
            break
        sizes.append(_TIMES)
        start += 2 * _HEADER
    return starts, sizes


def _has_stated_lengths(records: re.Match[bytes]) -> bool:
    """Whether each record of a pax header is as long as it states."""
    if int(records[1]) == records.end() - records.start():
        return True  # the only one
    return all(int(record.partition(b" ")[0]) == len(record) for record in records[0].splitlines(keepends=True))


def _plain(data: bytes, starts: list[int], sizes: list[int]) -> tuple[int, list[bytes]]:
    """How many of the headers of a chain, from the first on, are plain, and their names.

    A header is plain if `tarfile` takes it as it is for a regular file, or for a pax header that a regular file
    follows: every number field is octal digits and then blanks, and the name is the one in the first 100 bytes.
    """
    if not starts:
        return 0, []
    blocks = np.frombuffer(data, np.uint8, (starts[-1] - starts[0]) + _HEADER, starts[0]).reshape(-1, _HEADER)
    bytes_HB = blocks[(np.array(starts) - starts[0]) // _HEADER]
    numbers_HB = bytes_HB[:, _NUMBERS]
    digits_HB = (numbers_HB & 0xF8) == ord("0")
    blanks_HB = (numbers_HB | ord(" ")) == ord(" ")
    valid_H = (digits_HB | blanks_HB).all(axis=1)
    valid_H &= ~(digits_HB[:, 1:] & ~digits_HB[:, :-1] & ~_NUMBER_STARTS[1:]).any(axis=1)
    valid_H &= _byte_sums(bytes_HB) == _checksums(bytes_HB)
    valid_H &= bytes_HB[:, 345] == 0  # the name has no first part
    names_HB = bytes_HB[:, :100]
    valid_H &= ~((names_HB[:, 1:] != 0) & (names_HB[:, :-1] == 0)).any(axis=1)
    times_H = np.array(sizes, np.int64) == _TIMES
    valid_H[:-1] &= ~(times_H[:-1] & times_H[1:])
    number = len(starts) if valid_H.all() else int(valid_H.argmin())
    if number and sizes[number - 1] == _TIMES:  # its member is not plain, or begins in the next window
        number -= 1
    return number, np.ascontiguousarray(names_HB[:number]).view("S100").ravel().tolist()


def _byte_sums(bytes_HB: np.ndarray) -> np.ndarray:
    """Sums [H] of the bytes of headers, as `_checksums` states them: eight bytes at a time, in lanes of 16 bits."""
    words = bytes_HB.view(np.uint64)
    lanes = np.uint64(0x00FF00FF00FF00FF)
    sums = ((words & lanes) + ((words >> np.uint64(8)) & lanes)).sum(axis=1)  # a lane holds at most 128 * 255
    totals = sums.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64)
    # The checksum counts its own field as blanks.
    return totals - bytes_HB[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * ord(" ")


def _checksums(bytes_HB: np.ndarray) -> np.ndarray:
    """The numbers [H] in the checksum fields: octal digits, then blanks."""
    values = np.zeros(len(bytes_HB), np.int64)
    for column in range(148, 156):
        digits = bytes_HB[:, column]
        values = np.where(digits >= ord("0"), 8 * values + digits - ord("0"), values)
    return values


def _padded(size: int) -> int:
    """Bytes that contents of `size` bytes take up in an archive."""
    return -(-size // _HEADER) * _HEADER


def _after_zeros(file: BlockFile, start: int) -> int:
    """The first block from `start` on that is not all zeros, or the end of the file."""
    step = 1 << 20
    while block := file.bytes_at(start, min(step, max(0, file.size - start))):
        kept = block.lstrip(b"\0")
        if kept:
            return start + (len(block) - len(kept)) // _HEADER * _HEADER
        start += len(block)
    return start
