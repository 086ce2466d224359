"""Files on a disk and on an object store behave alike."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from etils import epath

from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

LARGE = os.urandom(1 << 20) * 70  # more than two parts of an upload


@pytest.fixture(params=["disk", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> epath.Path:
    return storage.path(tmp_path if request.param == "disk" else request.getfixturevalue("gcs")) / "some/folder"


def test_what_is_written_is_read(folder: epath.Path) -> None:
    file = folder / "a b#ü%.bin"
    assert not storage.exists(file) and not storage.is_folder(folder)
    storage.write_bytes(file, b"0123456789")
    assert storage.exists(file) and storage.exists(folder) and storage.is_folder(folder)
    assert not storage.is_folder(file)
    assert storage.size(file) == 10
    assert storage.read_bytes(file) == b"0123456789"
    assert storage.read_bytes(file, 3) == b"3456789"
    assert storage.read_bytes(file, 3, 4) == b"3456"
    assert storage.read_bytes(file, 8, 4) == b"89"
    assert storage.read_bytes(file, 10, 4) == storage.read_bytes(file, 40, 4) == storage.read_bytes(file, 2, 0) == b""
    storage.write_bytes(file, b"")
    assert storage.size(file) == 0 and storage.read_bytes(file) == b""
    with storage.open_read(file) as opened:
        assert opened.read() == b""


def test_listing(folder: epath.Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.txt"):
        storage.write_bytes(folder / name, name.encode())
    assert storage.names(folder) == ["a.txt", "b.txt", "sub"]
    assert storage.sizes(folder) == {"a.txt": 5, "b.txt": 5, "sub": None}
    with pytest.raises(FileNotFoundError):
        storage.names(folder / "no")


def test_listing_of_several_pages(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenvl_jax.runtime.gcs_store._LISTED_AT_ONCE", 3)
    wanted = {f"{index:02d}": index for index in range(10)}
    for name, size in wanted.items():
        storage.write_bytes(f"{gcs}/folder/{name}", b"x" * size)
    assert storage.sizes(f"{gcs}/folder") == wanted


def test_remove(folder: epath.Path) -> None:
    for name in ("run/manifest.json", "run/sub/c.txt", "run2/kept", "file"):
        storage.write_bytes(folder / name, b"x")
    storage.remove(folder / "run")
    storage.remove(folder / "file")
    storage.remove(folder / "never")
    assert storage.names(folder) == ["run2"]


def test_reading_by_places(folder: epath.Path) -> None:
    storage.write_bytes(folder / "large", LARGE)
    with storage.open_read(folder / "large") as file:
        assert file.read(5) == LARGE[:5]
        assert file.seek(-7, os.SEEK_END) == len(LARGE) - 7
        assert file.read() == LARGE[-7:]
        assert file.read() == b""
        assert file.seek(12_345_678) == 12_345_678
        assert file.read(3 << 20) == LARGE[12_345_678 : 12_345_678 + (3 << 20)]
        assert file.tell() == 12_345_678 + (3 << 20)


def test_through_local_files(folder: epath.Path) -> None:
    with storage.local_output(folder / "out.bin") as file:
        file.write_bytes(LARGE)
        assert not storage.exists(folder / "out.bin")
    assert storage.names(folder) == ["out.bin"]
    assert not storage.is_remote(folder) or not file.exists()
    with storage.local_copy(folder / "out.bin") as copy:
        assert Path(copy).name == "out.bin" and Path(copy).read_bytes() == LARGE
    with pytest.raises(ZeroDivisionError), storage.local_output(folder / "never") as file:
        file.write_bytes(b"half")
        _ = 1 / 0
    assert storage.names(folder) == ["out.bin"]


def test_missing_files(folder: epath.Path) -> None:
    storage.write_bytes(folder / "there", b"")
    for call in (storage.read_bytes, storage.size):
        with pytest.raises(FileNotFoundError, match="never"):
            call(folder / "never")
    for block in (storage.open_read, storage.local_copy):
        with pytest.raises(FileNotFoundError, match="never"), block(folder / "never"):
            pass


def test_a_missing_bucket_is_told_at_once(gcs_server: str) -> None:
    assert not storage.exists("gs://no-such-bucket/file")
    assert not storage.is_folder("gs://no-such-bucket")
    with pytest.raises(FileNotFoundError, match="gs://no-such-bucket"):
        storage.read_bytes("gs://no-such-bucket/file")
    with pytest.raises(StorageError, match="the bucket gs://no-such-bucket does not exist; make it"):
        storage.write_bytes("gs://no-such-bucket/file", b"")
    epath.Path("gs://no-such-bucket/folder").mkdir(parents=True, exist_ok=True)
    assert not storage.exists("gs://no-such-bucket")


def test_other_libraries_see_the_same_files(gcs: str) -> None:
    """etils goes through the same client and remembers no listing."""
    file = epath.Path(gcs) / "folder" / "file"
    assert list(epath.Path(gcs).iterdir()) == []
    storage.write_bytes(file, b"text")
    assert file.exists() and file.read_text() == "text"
    assert [path.name for path in file.parent.iterdir()] == ["file"]
    file.write_text("other")
    assert storage.read_bytes(file) == b"other"
    file.parent.rmtree()
    assert not storage.exists(file)


def test_paths_as_a_user_writes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert str(storage.path("~/run")) == f"{tmp_path}/run"
    assert str(storage.path("run/x")) == "run/x"
    assert str(storage.absolute("run/../x")) == f"{tmp_path}/x"
    for same in (storage.path, storage.absolute):
        assert str(same("gs://bucket/run/x")) == "gs://bucket/run/x"
        with pytest.raises(UserError, match="only local paths and gs:// can be used, not s3://"):
            same("s3://bucket/run")
        with pytest.raises(UserError, match="https://"):
            same("https://storage.googleapis.com/bucket/run")
        with pytest.raises(UserError, match="names no bucket"):
            same("gs:///run")
    assert storage.is_remote("gs://bucket/x") and not storage.is_remote(tmp_path)


def test_a_file_whose_block_fails_is_not_written(gcs: str) -> None:
    whole, half = storage.path(f"{gcs}/whole"), storage.path(f"{gcs}/half")
    with whole.open("wb") as file:
        file.write(b"all")
    with pytest.raises(ZeroDivisionError), half.open("wb") as file:
        file.write(b"a part")
        1 / 0  # noqa: B018
    assert storage.names(gcs) == ["whole"] and storage.read_bytes(whole) == b"all"
