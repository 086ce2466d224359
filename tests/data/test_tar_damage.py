"""Damaged WebDataset shards and indexes: what came before is kept, the rest is reported."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.data.record_samples import content, encoded_image
from tests.data.source_files import records_of, tar_sample, write_tar

# An index that cannot be kept next to its shard goes to a folder of the test.
pytestmark = pytest.mark.usefixtures("index_cache")


def test_a_truncated_shard_gives_what_came_before(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (shards / "00001.tar").read_bytes()
    with tarfile.open(shards / "00001.tar") as archive:
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
        (shards / "00001.tar").write_bytes(whole[:cut])
        reader = TarReader(shards)
        assert len(reader) == 8 + left and reader.left_out["truncated"] == 1, cut
        assert [reader[k].images[0] for k in range(5 + left)] == [encoded_image(k) for k in range(5 + left)]
        assert reader[5 + left].content == {"caption": "caption 10"}
        assert "1 shards that are cut off or damaged, read up to there, the first 00001.tar" in capsys.readouterr().out
    damaged = bytearray(whole)
    damaged[third.offset : third.offset + 512] = b"\x07" * 512
    (shards / "00001.tar").write_bytes(damaged)
    assert len(TarReader(shards)) == 10


def test_a_member_with_a_negative_size_ends_the_shard(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*tar_sample(0), *tar_sample(2)])
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
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", [*tar_sample(0), *tar_sample(1)])
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


def test_a_shard_that_changes_under_the_reader(shards: Path) -> None:
    reader = TarReader(shards)
    (shards / "00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"00000\.tar, member '00003': the shard has changed"):
        reader[3]
    (shards / "00000.tar").unlink()
    with pytest.raises(StorageError, match=r"00000\.tar was there when it was opened and is gone"):
        reader[3]


@pytest.mark.parametrize("field", ["image", "image_size", "text", "text_size", "samples"])
@pytest.mark.parametrize("value", [-5, 1 << 50])
def test_a_kept_index_that_leaves_its_shard_is_made_again(field: str, value: int, shards: Path) -> None:
    shard = shards / "00000.tar"
    wanted = records_of(TarReader(shard))
    place = shards / ".00000.tar.index.npz"
    with np.load(place) as kept:
        samples_S, notes = kept["samples"].copy(), kept["notes"]
    if field == "samples":
        samples_S = np.full(len(samples_S), value)  # of another form altogether
    else:
        samples_S[field][1] = value
    with place.open("wb") as file:
        np.savez(file, samples=samples_S, notes=notes)
    assert records_of(TarReader(shard)) == wanted
