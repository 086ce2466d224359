"""Members of tar files read in large blocks: those that `tarfile` gives, whatever the form, the block or the damage."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.readers import tar_members
from qwenvl_jax.data.readers.tar_members import BlockFile, members

Seen = list[tuple[str, bytes] | str]
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def by_blocks(path: Path, block: int) -> Seen:
    """Name and contents of every member as `members` gives them; "refused NAME" for links and the like."""
    file = BlockFile(epath.Path(path), path.stat().st_size, block)
    seen: Seen = []
    for member in members(epath.Path(path), file):
        if isinstance(member, str):
            seen.append(member)
        elif member.regular:
            seen.append((member.name, file.bytes_at(member.start, member.size)))
        else:
            seen.append(f"refused {member.name}")
    return seen


def by_tarfile(path: Path) -> Seen:
    """The same by `tarfile` alone, one header after the other."""
    seen: Seen = []
    size = path.stat().st_size
    start = 0
    with path.open("rb") as file:
        while start < size:
            file.seek(start)
            try:
                archive = tarfile.open(fileobj=file, mode="r:") if size - start >= 512 else None  # noqa: SIM115
            except tarfile.TarError:
                if not start:
                    raise
                archive = None
            if archive is None:
                return [*seen, "damaged"]
            for member in by_next(archive):
                if member is None or (member.isreg() and member.offset_data + member.size > size):
                    return [*seen, "damaged"]
                if not member.isreg() or member.issparse():
                    seen += [] if member.isdir() else [f"refused {member.name}"]
                    continue
                file.seek(member.offset_data)
                seen.append((member.name, file.read(member.size)))
            end = archive.offset
            file.seek(end)
            rest = file.read()
            kept = rest.lstrip(b"\0")
            start = end + (len(rest) - len(kept)) // 512 * 512 if kept else end + len(rest)
            if start - end < 512:
                return [*seen, "damaged"]
            seen.append("end")
    return seen if size else ["damaged"]


def by_next(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo | None]:
    """The members up to the end of an archive; None last if `tarfile` complains."""
    before = -1
    while True:
        try:
            member = archive.next()
        except Exception:
            yield None
            return
        if member is None:
            return
        if member.offset <= before or member.size < 0:
            yield None
            return
        before = member.offset
        yield member


NAMES = st.one_of(
    st.sampled_from(
        ["a.jpg", "a.txt", "b/c.json", "b/c.png", "..", "/abs.txt", "x" * 100, "d/" * 90 + "e.txt", "猫.txt"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
)
KINDS = st.sampled_from(["file"] * 6 + ["times", "times", "folder", "link", "symlink", "fifo", "comment", "v7"])
MEMBERS = st.lists(st.tuples(NAMES, st.integers(0, 1500), KINDS), max_size=8)


def add(archive: tarfile.TarFile, name: str, size: int, kind: str) -> None:
    member = tarfile.TarInfo(name)
    types = {"folder": tarfile.DIRTYPE, "link": tarfile.LNKTYPE, "symlink": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE}
    member.type = types.get(kind, tarfile.AREGTYPE if kind == "v7" else tarfile.REGTYPE)
    if kind == "times":
        member.mtime = 1700000000.25  # as webdataset does: a pax header for each member
    if kind == "comment":
        member.pax_headers = {"comment": "a"}
    member.linkname = "target" if kind in ("link", "symlink") else ""
    member.size = size if kind not in types else 0
    archive.addfile(member, io.BytesIO(np.random.default_rng(size).bytes(size)))


def archive_of(entries: list[tuple[str, int, str]], form: int, globals_: dict[str, str]) -> bytes:
    payload = io.BytesIO()
    headers = globals_ if form == tarfile.PAX_FORMAT else None
    with tarfile.open(fileobj=payload, mode="w", format=form, pax_headers=headers) as archive:
        for name, size, kind in entries:
            try:
                add(archive, name, size, kind)
            except ValueError:  # a name that the format cannot hold
                continue
    return payload.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("members")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_members_are_those_of_tarfile(folder: Path, data: st.DataObject) -> None:
    """For archives of all formats, joined, cut off at any byte and with any bytes changed, in blocks of any size."""
    archives = data.draw(st.lists(st.tuples(MEMBERS, st.sampled_from(FORMATS)), min_size=1, max_size=3))
    payload = b""
    for entries, form in archives:
        named = data.draw(st.sampled_from([{}, {}, {"comment": "x"}, {"path": "renamed.txt"}, {"size": "3"}]))
        payload += archive_of(entries, form, named)
    damaged = bytearray(payload)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 3]))):
        if damaged:
            # Headers are the bytes that matter: most flips hit one of the first blocks.
            most = data.draw(st.sampled_from([700, 3000, len(damaged)]))
            damaged[data.draw(st.integers(0, min(most, len(damaged)) - 1))] = data.draw(st.integers(0, 255))
    compare(folder / "a.tar", bytes(damaged), data.draw(st.sampled_from([1, 512, 700, 4096, 1 << 20])))


def compare(path: Path, payload: bytes, block: int) -> None:
    path.write_bytes(payload)
    try:
        expected = by_tarfile(path)
    except tarfile.TarError:
        with pytest.raises(Exception, match="not an uncompressed tar file"):
            by_blocks(path, block)
        return
    assert by_blocks(path, block) == expected


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_headers_whose_checksum_holds_are_read_as_tarfile_reads_them(folder: Path, data: st.DataObject) -> None:
    """Bytes of a header are changed and its checksum is corrected, so that every rule about fields counts."""
    form = data.draw(st.sampled_from(FORMATS))
    kind = data.draw(st.sampled_from(["file", "times"]))
    payload = bytearray(archive_of([("first.txt", 5, "file"), ("a.txt", 700, kind), ("b.txt", 9, "file")], form, {}))
    headers = [start for start in range(0, len(payload), 512) if payload[start + 257 : start + 262] == b"ustar"]
    start = data.draw(st.sampled_from(headers))
    fields = [(0, 100), (100, 108), (108, 116), (116, 124), (124, 136), (136, 148), (156, 157), (257, 265), (345, 500)]
    first, last = data.draw(st.sampled_from([*fields, (124, 136), (329, 345)]))
    texts = st.text("01234567 \0_+-89x\x80\xff", min_size=1, max_size=last - first).map(
        lambda text: text.encode("latin-1")
    )
    value = data.draw(st.one_of(texts, st.binary(min_size=1, max_size=last - first)))
    payload[start + first : start + first + len(value)] = value
    payload[start + 148 : start + 156] = b" " * 8
    total = sum(payload[start : start + 512])
    forms = [b"%06o\0 " % total, b"%06o \0" % total, b"%07o\0" % total, b" %06o\0" % total, b"%06o\0\xff" % total]
    payload[start + 148 : start + 156] = data.draw(st.sampled_from(forms))
    compare(folder / "b.tar", bytes(payload), data.draw(st.sampled_from([512, 4096])))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_pax_headers_are_read_as_tarfile_reads_them(folder: Path, data: st.DataObject) -> None:
    """The records of a pax header in any state: those of times alone are read here, all others by tarfile."""
    payload = bytearray(archive_of([("first.txt", 5, "file"), ("a.txt", 700, "times")], tarfile.PAX_FORMAT, {}))
    start = payload.index(b"mtime=") - 3
    records = data.draw(
        st.sampled_from(
            [
                b"19 mtime=1700000.5\n",
                b"19 mtime=1700000.5\n19 atime=1700000.5\n",
                b"20 mtime=17000000.5\n20 atime=17000000.5\n20 ctime=17000000.5\n",
                b"38 mtime=1700000.5\n19 atime=1700000.5\n",
                b"19 mtime=1700000.5\n20 atime=1700000.5\n",
                b"18 mtime=1700000.5\n",
                b"20 mtime=1700000.5\n",
                b"99 mtime=1700000.5\n",
                b"16 path=other.t\n",
                b"9 size=7\n",
                b"19 mtime=1700000.5\n9 size=7\n",
                b"28 mtime=1.5\n18 path=b.txt\n9\n",
                b"19 mtime=1.5.5.5.5.\n",
                b"30 hdrcharset=ISO-IR 10646 200\n",
                b"0 mtime=1\n",
                b"",
            ]
        )
    )
    payload[start : start + 512] = records.ljust(512, b"\0")
    header = start - 512
    size = data.draw(st.sampled_from([len(records), len(records), 28, 600]))
    payload[header + 124 : header + 136] = b"%011o\0" % size
    payload[header + 148 : header + 156] = b" " * 8
    payload[header + 148 : header + 156] = b"%06o\0 " % sum(payload[header : header + 512])
    compare(folder / "c.tar", bytes(payload), data.draw(st.sampled_from([512, 4096])))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["file", "times"])
def test_plain_members_do_not_need_tarfile(
    form: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tarfile` reads the first header and the end, and nothing between them."""
    path = tmp_path / "a.tar"
    path.write_bytes(archive_of([(f"{k:04d}.txt", 100 + k, kind) for k in range(500)], form, {}))
    headers: list[int] = []
    slow = tar_members._next

    def counted(archive: tarfile.TarFile) -> object:
        headers.append(archive.offset)
        return slow(archive)

    monkeypatch.setattr(tar_members, "_next", counted)
    seen = by_blocks(path, 4 << 20)
    assert len(seen) == 501 and seen[-1] == "end" and len(headers) == 2


def test_what_is_skipped_is_not_read_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive_of([(f"{k}.jpg", 100_000, "file") for k in range(50)], tarfile.USTAR_FORMAT, {}))
    reads: list[tuple[int, int]] = []
    read = tar_members.storage.read_bytes

    def noted(path: epath.Path, start: int, size: int) -> bytes:
        reads.append((start, start + size))
        return read(path, start, size)

    monkeypatch.setattr(tar_members.storage, "read_bytes", noted)
    file = BlockFile(epath.Path(path), path.stat().st_size, 8192)
    assert len(list(members(epath.Path(path), file))) == 51
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(reads))
    assert sum(end - start for start, end in reads) < 50 * 16384 + 20_000
