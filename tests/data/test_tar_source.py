"""WebDataset shards: samples, the kept index, what is left out, and damaged shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.readers import tar_files, tar_index
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.data.record_samples import content, encoded_image
from tests.data.source_files import bad_images, write_tar


def records_of(reader: TarReader) -> list[Record]:
    return [reader[index] for index in range(len(reader))]


def sample(k: int) -> list[tuple[str, bytes]]:
    """Members of sample `k`, some with JSON."""
    members = [(f"{k:05d}.png", encoded_image(k)), (f"{k:05d}.txt", f" caption {k}\n".encode())]
    return [*members, (f"{k:05d}.json", json.dumps({"key": k}).encode())] if k % 2 else members


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qwenvl_jax"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of 5 samples and one of 3."""
    folder = tmp_path / "laion"
    folder.mkdir()
    for number, keys in enumerate((range(5), range(5, 10), range(10, 13))):
        write_tar(folder / f"{number:05d}.tar", [member for k in keys for member in sample(k)])
    return folder


def test_samples_in_the_order_of_names(folder: Path) -> None:
    for path in (folder, folder / "*.tar", folder.parent / "l*" / "0000[0-2].tar"):
        reader = open_source(SourceConfig("a", "caption", str(path), 1.0))
        assert len(reader) == 13
        for k in (12, 0, 4, 5, 9, 10):
            record = reader[k]
            assert (record.id, record.language) == (f"{k // 5:05d}.tar:{k:05d}", "en")
            assert record.content == {"caption": f"caption {k}"} and record.images == (encoded_image(k),)
    assert len(TarReader(folder / "00002.tar")) == 3
    with pytest.raises(IndexError):
        reader[13]


def test_the_index_is_kept_and_made_again_when_the_shard_changes(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []
    scan = tar_index._scan

    def noted_scan(path: epath.Path, size: int) -> tar_index.ShardIndex:
        scanned.append(path.name)
        return scan(path, size)

    monkeypatch.setattr(tar_index, "_scan", noted_scan)
    assert len(TarReader(folder)) == 13 and sorted(scanned) == ["00000.tar", "00001.tar", "00002.tar"]
    first = [TarReader(folder)[k] for k in range(13)]
    assert len(scanned) == 3 and not cache.exists()
    write_tar(folder / "00001.tar", sample(77))
    assert len(TarReader(folder)) == 9 and scanned[3:] == ["00001.tar"]
    for kept in folder.glob(".*.npz"):
        kept.write_bytes(kept.read_bytes()[:50])  # a damaged index is no index
    assert [TarReader(folder)[k] for k in range(5)] == first[:5]


def test_a_shard_of_the_same_size_written_within_a_second_is_indexed_again(folder: Path) -> None:
    shard = folder / "00000.tar"
    for number in (1, 2):
        write_tar(shard, sample(number))
        os.utime(shard, ns=(number, number))
        assert TarReader(shard)[0].content == {"caption": f"caption {number}"}


def test_the_index_goes_to_the_cache_when_the_folder_cannot_be_written(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tar_index.storage.write_bytes

    def refuse(path: os.PathLike[str], payload: bytes) -> None:
        if Path(path).parent == folder:  # file modes do not stop root, who may be running this
            raise PermissionError(path)
        write(path, payload)

    monkeypatch.setattr(tar_index.storage, "write_bytes", refuse)
    assert len(TarReader(folder)) == 13 and len(list(cache.iterdir())) == 3
    assert not [path for path in folder.iterdir() if path.suffix != ".tar"]
    monkeypatch.setattr(tar_index, "_scan", None)  # not needed again
    assert TarReader(folder)[12].content == {"caption": "caption 12"}


def test_neither_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(tar_index.storage, "write_bytes", refuse)
    assert len(TarReader(folder)) == 13


def test_captions_and_languages(tmp_path: Path) -> None:
    image = encoded_image(0)
    members = [
        ("deep/er/a.b.png", b"a mask, no image of the sample"),
        ("deep/er/a.JPEG", image),
        ("deep/er/a.json", json.dumps({"caption": " from json ", "language": "zh_CN"}).encode()),
        ("c.png", image),
        ("c.txt", "一只 cat 在桌子上".encode()),
        ("d.txt", b"before its image"),
        ("d.png", image),
        ("d.json", json.dumps({"caption": "not this", "language": None}).encode()),
        ("._d.png", b"hidden"),
    ]
    reader = TarReader(write_tar(tmp_path / "a.tar", members))
    found = [(r.id, content(r)["caption"], r.language, r.images == (image,)) for r in (reader[0], reader[1], reader[2])]
    assert found == [
        ("a.tar:deep/er/a", "from json", "zh_CN", True),
        ("a.tar:c", "一只 cat 在桌子上", "zh", True),
        ("a.tar:d", "before its image", "en", True),
    ]
    assert len(reader) == 3 and not any(reader.left_out.values())


def test_what_is_left_out_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = encoded_image(0)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, payload in [
            ("../up.png", image),
            ("a/../../up.txt", b"up"),
            ("/etc/abs.png", image),
            *sample(0),
            ("lonely.png", image),
            ("blank.png", image),
            ("blank.txt", b" \n"),
            ("words.txt", b"no image"),
            ("bytes.png", image),
            ("bytes.txt", b"\xff\xfe"),
            ("half.png", image),
            ("half.json", b'{"caption": "\\ud800"}'),
            ("broken.png", image),
            ("broken.txt", b"fine"),
            ("broken.json", b"{"),
            ("long.png", image),
            ("long.txt", b"a" * (tar_index.MAX_TEXT_BYTES + 1)),
            ("french.png", image),
            ("french.txt", b"un chat"),
            ("french.json", b'{"language": "fr"}'),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    expected = {"refused": 4, "no_image": 1, "no_caption": 2, "unreadable": 4, "language": 1, "truncated": 0}
    expected |= {"unknown": 0, "repeated": 0}
    for _ in range(2):  # scanned, then from the kept index
        reader = TarReader(path)
        assert len(reader) == 1 and reader.left_out == expected
        said = capsys.readouterr().out
        assert "1 samples; left out: 4 members refused" in said and "the first 'x.png' in a.tar" in said


def left_out(reader: TarReader) -> dict[str, int]:
    return {why: count for why, count in reader.left_out.items() if count}


def test_joined_shards_give_all_their_samples(tmp_path: Path) -> None:
    """As `cat a.tar b.tar` makes them: the zeros at an archive's end do not end the file."""
    parts = [write_tar(tmp_path / f"part{k}", [*sample(2 * k), *sample(2 * k + 1)]).read_bytes() for k in range(3)]
    path = tmp_path / "a.tar"
    for between in (b"", bytes(512), bytes(3 << 20)):
        path.write_bytes(between.join(parts))
        reader = TarReader(path)
        assert [reader[k].images[0] for k in range(len(reader))] == [encoded_image(k) for k in range(6)]
        assert [content(reader[k])["caption"] for k in range(6)] == [f"caption {k}" for k in range(6)]
        assert not left_out(reader)
    for tail in (b"x" * 2000, parts[1][:700], b"x"):
        path.write_bytes(parts[0] + tail)
        reader = TarReader(path)
        assert len(reader) == 2 and left_out(reader) == {"truncated": 1}
    # The last sample of one and the first of the next have one name, but are two.
    path.write_bytes(write_tar(tmp_path / "one", sample(0)).read_bytes() * 2)
    assert len(TarReader(path)) == 2
    path.write_bytes(parts[0].rstrip(b"\0").ljust(len(parts[0].rstrip(b"\0")) // 512 * 512 + 900, b"\0"))
    assert TarReader(path).left_out["truncated"] == 1


def test_pictures_of_one_name_never_get_one_anothers_caption(tmp_path: Path) -> None:
    red, blue = encoded_image(1), encoded_image(2)
    members = [("a.png", red), ("a.png", blue), ("a.txt", b"of the second"), *sample(0)]
    reader = TarReader(write_tar(tmp_path / "a.tar", members))
    assert len(reader) == 1 and reader[0].id == "a.tar:00000" and left_out(reader) == {"repeated": 2}
    texts = [("a.png", red), ("a.txt", b"one"), ("a.TXT", b"two"), *sample(0)]
    assert left_out(TarReader(write_tar(tmp_path / "b.tar", texts))) == {"repeated": 1}
    apart = [("a.png", red), ("a.txt", b"one"), *sample(0), ("a.png", blue), ("a.txt", b"two")]
    reader = TarReader(write_tar(tmp_path / "c.tar", apart))
    assert [(reader[k].images[0], content(reader[k])["caption"]) for k in (0, 2)] == [(red, "one"), (blue, "two")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.sampled_from(["png txt", "txt png", "png json", "png"])), max_size=5
        ),
        min_size=1,
        max_size=3,
    )
)
def test_every_picture_has_its_own_caption_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, archives: list[list[tuple[str, str]]]
) -> None:
    """Whatever the names, in shards joined of several archives."""
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    pictures: list[bytes] = []
    joined = b""
    for archive in archives:
        members = []
        for key, suffixes in archive:
            number = len(pictures)
            pictures.append(encoded_image(number))
            payloads = {
                "png": pictures[-1],
                "txt": b"%d" % number,
                "json": json.dumps({"caption": str(number)}).encode(),
            }
            members += [(f"{key}.{suffix}", payloads[suffix]) for suffix in suffixes.split()]
        joined += write_tar(path, members).read_bytes()
    path.write_bytes(joined)
    try:
        reader = TarReader(path)
    except UserError as error:
        assert "no sample with an image and a caption" in str(error)
        return
    for record in (reader[k] for k in range(len(reader))):
        assert record.images[0] == pictures[int(content(record)["caption"])]
    assert len(reader) + reader.left_out["no_caption"] + reader.left_out["repeated"] == len(pictures)


@pytest.mark.parametrize(
    ("names", "counts", "first"),
    [
        (
            ["img.2020.01.png", "img.2020.01.txt", "img.2020.02.png", "img.2020.02.txt"],
            {"unknown": 2},
            "img.2020.01.png",
        ),
        (["img.png", "img.txt", "img.a.png", "img.a.txt"], {"unknown": 1}, "img.a.png"),
        (["x.avif", "x.caption"], {"unknown": 1}, "x.avif"),
        (["x.avif", "x.txt"], {"unknown": 1}, "x.avif"),
        (["x.cls", "x.npy"], {"unknown": 1}, "x.cls"),
        (["deep/LICENSE"], {"unknown": 1}, "deep/LICENSE"),
        (["img.png", "img.txt", "img.mask.png", "img.cls"], {}, ""),
    ],
)
def test_what_makes_no_sample_is_counted_and_named(
    names: list[str], counts: dict[str, int], first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [(name, b"a text" if name.endswith("txt") else encoded_image(0)) for name in names]
    reader = TarReader(write_tar(tmp_path / "a.tar", [*members, *sample(0)]))
    assert len(reader) == (2 if "img.png" in names else 1)
    assert left_out(reader) == counts
    assert not first or f"the first '{first}' in a.tar" in capsys.readouterr().out


def test_long_names_folders_and_links(tmp_path: Path) -> None:
    image, name = encoded_image(0), "long/" * 60 + "x" * 120
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
            for suffix, payload in (("png", image), ("txt", "naïve".encode())):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(payload)
                archive.addfile(info, io.BytesIO(payload))
            link = tarfile.TarInfo("hard.png")
            link.type, link.linkname = tarfile.LNKTYPE, f"{name}.png"
            archive.addfile(link)
        reader = TarReader(tmp_path / "a.tar")
        assert (len(reader), reader[0].images, content(reader[0])["caption"]) == (1, (image,), "naïve")
        assert left_out(reader) == {"refused": 1}


def test_a_truncated_shard_gives_what_came_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / "00001.tar").read_bytes()
    with tarfile.open(folder / "00001.tar") as archive:
        members = archive.getmembers()
    third = next(member for member in members if member.name == "00007.png")
    for cut, left in (
        (third.offset, 2),  # between two samples: only the end mark is missing
        (third.offset + 100, 2),  # in a header
        (third.offset_data + 10, 2),  # in an image
        (members[-1].offset_data + 1, 5),  # in the JSON of the last, which has image and caption already
        (100, 0),
        (0, 0),
    ):
        (folder / "00001.tar").write_bytes(whole[:cut])
        reader = TarReader(folder)
        assert len(reader) == 8 + left and reader.left_out["truncated"] == 1, cut
        assert [reader[k].images[0] for k in range(5 + left)] == [encoded_image(k) for k in range(5 + left)]
        assert reader[5 + left].content == {"caption": "caption 10"}
        assert "1 shards that are cut off or damaged, read up to there, the first 00001.tar" in capsys.readouterr().out
    damaged = bytearray(whole)
    damaged[third.offset : third.offset + 512] = b"\x07" * 512
    (folder / "00001.tar").write_bytes(damaged)
    assert len(TarReader(folder)) == 10


def test_a_member_with_a_negative_size_ends_the_shard(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*sample(0), *sample(2)])
    payload = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        place = archive.getmember("00002.png").offset
    header = payload[place : place + 512]
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    payload[place : place + 512] = header
    path.write_bytes(payload)
    reader = TarReader(path)
    assert len(reader) == 1 and reader.left_out["truncated"] == 1


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_damage_hangs_or_fails_otherwise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", [*sample(0), *sample(1)])
    payload = bytearray(path.read_bytes()[: data.draw(st.integers(0, 6000))])
    for _ in range(data.draw(st.integers(0, 4))):
        if payload:
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(payload)
    try:
        reader = TarReader(path)
    except UserError:
        return
    for k in range(len(reader)):
        assert content(reader[k])["caption"]


def test_paths_and_files_that_are_none(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none.tar", tmp_path / "*.tar", tmp_path / "no*" / "*.tar"):
        with pytest.raises(UserError, match=r"names no \.tar file"):
            TarReader(path)
    with pytest.raises(UserError, match=r"is for task 'vqa', but .* WebDataset shards, which are read as captions"):
        open_source(SourceConfig("a", "vqa", str(folder), 1.0))
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder / "00000.tar")
    with pytest.raises(UserError, match=r"packed\.tar is not an uncompressed tar file"):
        TarReader(packed)
    write_tar(tmp_path / "bare.tar", [("a.png", encoded_image(0))])
    with pytest.raises(UserError, match=r"no sample with an image and a caption \(1 samples without a caption"):
        TarReader(tmp_path / "bare.tar")
    write_tar(tmp_path / "nothing.tar", [])
    with pytest.raises(UserError, match="it is empty"):
        TarReader(tmp_path / "nothing.tar")


def test_a_shard_that_changes_under_the_reader(folder: Path) -> None:
    reader = TarReader(folder)
    (folder / "00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"00000\.tar, member '00003': the shard has changed"):
        reader[3]
    (folder / "00000.tar").unlink()
    with pytest.raises(StorageError, match=r"00000\.tar was there when it was opened and is gone"):
        reader[3]


def test_bad_images_are_left_to_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are samples like others; decoding refuses them, which the loader counts."""
    monkeypatch.setattr("qwenvl_jax.data.readers.tar_files.MAX_BYTES", 2000)
    bad = {**bad_images(), "long": encoded_image(3, 60, 60)}
    members = [(f"{n}.{s}", p) for n, payload in bad.items() for s, p in (("png", payload), ("txt", b"a"))]
    reader = TarReader(write_tar(tmp_path / "a.tar", members))
    assert len(reader) == len(bad)
    for k in range(len(reader)):
        assert len(reader[k].images[0]) <= 40_000
        with pytest.raises(UserError, match="image"):
            decode_image(reader[k].images[0])


def test_reading_is_a_seek(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample costs its own bytes, wherever in the shard it lies."""
    reader = TarReader(folder)
    monkeypatch.setattr(tar_files, "index_shard", None)
    monkeypatch.setattr(tarfile, "open", None)
    assert reader[12].content == {"caption": "caption 12"}


@pytest.mark.parametrize("field", ["image", "image_size", "text", "text_size", "samples"])
@pytest.mark.parametrize("value", [-5, 1 << 50])
def test_a_kept_index_that_leaves_its_shard_is_made_again(field: str, value: int, folder: Path) -> None:
    shard = folder / "00000.tar"
    wanted = records_of(TarReader(shard))
    place = folder / ".00000.tar.index.npz"
    with np.load(place) as kept:
        samples_S, notes = kept["samples"].copy(), kept["notes"]
    if field == "samples":
        samples_S = np.full(len(samples_S), value)  # of another form altogether
    else:
        samples_S[field][1] = value
    with place.open("wb") as file:
        np.savez(file, samples=samples_S, notes=notes)
    assert records_of(TarReader(shard)) == wanted
