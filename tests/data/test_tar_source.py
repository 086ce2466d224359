"""WebDataset shards: samples, the kept index, what is left out, and damaged shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.readers import tar_index
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.readers.tar_samples import MAX_TEXT_BYTES, ShardIndex
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import content, encoded_image
from tests.data.source_files import bad_images, tar_sample, write_tar

# An index that cannot be kept next to its shard goes to a folder of the test.
pytestmark = pytest.mark.usefixtures("index_cache")


def test_samples_in_the_order_of_names(shards: Path) -> None:
    for path in (shards, shards / "*.tar", shards.parent / "l*" / "0000[0-2].tar"):
        reader = open_source(SourceConfig("a", "caption", str(path), 1.0))
        assert len(reader) == 13
        for k in (12, 0, 4, 5, 9, 10):
            record = reader[k]
            assert (record.id, record.language) == (f"{k // 5:05d}.tar:{k:05d}", "en")
            assert record.content == {"caption": f"caption {k}"} and record.images == (encoded_image(k),)
    assert len(TarReader(shards / "00002.tar")) == 3
    with pytest.raises(IndexError):
        reader[13]


def test_the_index_is_kept_and_made_again_when_the_shard_changes(
    shards: Path, index_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []
    scan = tar_index.scan_shard

    def noted_scan(path: epath.Path, size: int) -> ShardIndex:
        scanned.append(path.name)
        return scan(path, size)

    monkeypatch.setattr(tar_index, "scan_shard", noted_scan)
    assert len(TarReader(shards)) == 13 and sorted(scanned) == ["00000.tar", "00001.tar", "00002.tar"]
    first = [TarReader(shards)[k] for k in range(13)]
    assert len(scanned) == 3 and not index_cache.exists()
    write_tar(shards / "00001.tar", tar_sample(77))
    assert len(TarReader(shards)) == 9 and scanned[3:] == ["00001.tar"]
    for kept in shards.glob(".*.npz"):
        kept.write_bytes(kept.read_bytes()[:50])  # a damaged index is no index
    assert [TarReader(shards)[k] for k in range(5)] == first[:5]


def test_a_shard_of_the_same_size_written_within_a_second_is_indexed_again(shards: Path) -> None:
    shard = shards / "00000.tar"
    for number in (1, 2):
        write_tar(shard, tar_sample(number))
        os.utime(shard, ns=(number, number))
        assert TarReader(shard)[0].content == {"caption": f"caption {number}"}


def test_the_index_goes_to_the_cache_when_the_folder_cannot_be_written(
    shards: Path, index_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tar_index.storage.write_bytes

    def refuse(path: os.PathLike[str], payload: bytes) -> None:
        if Path(path).parent == shards:  # file modes do not stop root, who may be running this
            raise PermissionError(path)
        write(path, payload)

    monkeypatch.setattr(tar_index.storage, "write_bytes", refuse)
    assert len(TarReader(shards)) == 13 and len(list(index_cache.iterdir())) == 3
    assert not [path for path in shards.iterdir() if path.suffix != ".tar"]
    monkeypatch.setattr(tar_index, "scan_shard", None)  # not needed again
    assert TarReader(shards)[12].content == {"caption": "caption 12"}


def test_neither_can_be_written(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(tar_index.storage, "write_bytes", refuse)
    assert len(TarReader(shards)) == 13


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
        shards = tarfile.TarInfo("folder")
        shards.type = tarfile.DIRTYPE
        archive.addfile(shards)
        for name, payload in [
            ("../up.png", image),
            ("a/../../up.txt", b"up"),
            ("/etc/abs.png", image),
            *tar_sample(0),
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
            ("long.txt", b"a" * (MAX_TEXT_BYTES + 1)),
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
    parts = [
        write_tar(tmp_path / f"part{k}", [*tar_sample(2 * k), *tar_sample(2 * k + 1)]).read_bytes() for k in range(3)
    ]
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
    path.write_bytes(write_tar(tmp_path / "one", tar_sample(0)).read_bytes() * 2)
    assert len(TarReader(path)) == 2
    path.write_bytes(parts[0].rstrip(b"\0").ljust(len(parts[0].rstrip(b"\0")) // 512 * 512 + 900, b"\0"))
    assert TarReader(path).left_out["truncated"] == 1


def test_pictures_of_one_name_never_get_one_anothers_caption(tmp_path: Path) -> None:
    red, blue = encoded_image(1), encoded_image(2)
    members = [("a.png", red), ("a.png", blue), ("a.txt", b"of the second"), *tar_sample(0)]
    reader = TarReader(write_tar(tmp_path / "a.tar", members))
    assert len(reader) == 1 and reader[0].id == "a.tar:00000" and left_out(reader) == {"repeated": 2}
    texts = [("a.png", red), ("a.txt", b"one"), ("a.TXT", b"two"), *tar_sample(0)]
    assert left_out(TarReader(write_tar(tmp_path / "b.tar", texts))) == {"repeated": 1}
    apart = [("a.png", red), ("a.txt", b"one"), *tar_sample(0), ("a.png", blue), ("a.txt", b"two")]
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
    reader = TarReader(write_tar(tmp_path / "a.tar", [*members, *tar_sample(0)]))
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


def test_paths_without_shards_and_files_that_are_no_shards(shards: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none.tar", tmp_path / "*.tar", tmp_path / "no*" / "*.tar"):
        with pytest.raises(UserError, match=r"names no \.tar file"):
            TarReader(path)
    with pytest.raises(UserError, match=r"is for task 'vqa', but .* WebDataset shards, which are read as captions"):
        open_source(SourceConfig("a", "vqa", str(shards), 1.0))
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(shards / "00000.tar")
    with pytest.raises(UserError, match=r"packed\.tar is not an uncompressed tar file"):
        TarReader(packed)
    write_tar(tmp_path / "bare.tar", [("a.png", encoded_image(0))])
    with pytest.raises(UserError, match=r"no sample with an image and a caption \(1 samples without a caption"):
        TarReader(tmp_path / "bare.tar")
    write_tar(tmp_path / "nothing.tar", [])
    with pytest.raises(UserError, match="it is empty"):
        TarReader(tmp_path / "nothing.tar")


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


def test_reading_is_a_seek(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample costs its own bytes, wherever in the shard it lies."""
    reader = TarReader(shards)
    monkeypatch.setattr(tar_index, "scan_shard", None)
    monkeypatch.setattr(tarfile, "open", None)
    assert reader[12].content == {"caption": "caption 12"}
