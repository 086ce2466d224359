"""Paths of sources: brace patterns as a shell writes them, and files of kinds that no source is made of."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.data.readers.paths import MAX_SHARDS, expand_braces, other_kind
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.readers.tar_files import TarReader, find_shards
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import encoded_image
from tests.data.source_files import write_tar


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{00000..00002}.tar", ["00000.tar", "00001.tar", "00002.tar"]),
        ("gs://b/{8..11}.tar", ["gs://b/8.tar", "gs://b/9.tar", "gs://b/10.tar", "gs://b/11.tar"]),
        ("{098..101..2}", ["098", "100"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{x,{0..1}y}", ["x", "0y", "1y"]),
        ("a{}b{c}d", ["a{}b{c}d"]),
        ("a{0..1", ["a{0..1"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash to compare with")
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 120), st.integers(0, 120), st.integers(0, 4)).map(
            lambda t: f"{{{t[0]:0{t[2]}d}..{t[1]:0{t[2]}d}}}"
        )
        | st.sampled_from(["a", "{b,c}", "{d,}", "-"]),
        min_size=1,
        max_size=2,
    ).map("".join)
)
def test_braces_mean_what_they_mean_to_a_shell(pattern: str) -> None:
    expected = subprocess.run(["bash", "-c", f"printf '%s\\n' x{pattern}"], capture_output=True, text=True, check=True)
    assert expand_braces(f"x{pattern}") == expected.stdout.splitlines()


def test_a_slip_of_the_hand_is_refused() -> None:
    with pytest.raises(UserError, match=f"more than {MAX_SHARDS:,} shards"):
        expand_braces("{0..99999999999}/{0..9}.tar")


def test_shards_by_braces(tmp_path: Path) -> None:
    for k in range(4):
        (tmp_path / f"part{k % 2}").mkdir(exist_ok=True)
        write_tar(tmp_path / f"part{k % 2}" / f"{k:05d}.tar", [(f"{k}.png", encoded_image(k)), (f"{k}.txt", b"a")])
    every = sorted(tmp_path.glob("part?/*.tar"))
    for pattern in ("part{0..1}", "part{0,1}/*.tar", "{part0/{00000,00002},part1/{00001,00003}}.tar"):
        assert [Path(shard) for shard in find_shards(tmp_path / pattern)] == every
        assert len(open_source(SourceConfig("a", "caption", str(tmp_path / pattern), 1.0))) == 4
    with pytest.raises(UserError, match=r"3 of 5 are missing, the first .*part0/00001\.tar"):
        TarReader(tmp_path / "part0" / "{00000..00004}.tar")
    odd = write_tar(tmp_path / "{a,b}.tar", [])
    assert [Path(shard) for shard in find_shards(odd)] == [odd]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("x.tgz", "is compressed, which allows no seek; unpack it with gunzip to a .tar file"),
        ("x-{000..127}.tar.gz", "unpack it with gunzip to a .tar file"),
        ("x.TAR.ZST", "unpack it with unzstd"),
        ("x.parquet", "is a Parquet table; write its rows as a .jsonl file"),
        ("*.parquet", "is a Parquet table"),
        ("x.jsonl.gz", "unpack it with gunzip to a .jsonl file"),
        ("x.csv", "is a table; write its rows as a .jsonl file"),
        ("x.tfrecord-00000-of-00010", "is a TFRecord file"),
        ("caption-train.array_record-00000-of-00002", "is one shard; name the record folder"),
        ("x.bin", "a file of a kind that cannot be a source"),
        ("*.jsonl", "a JSON source is one file; give each an entry of its own"),
        ("{a,b}.json", "a JSON source is one file"),
        ("none", "does not exist; build it with data_pipelines or correct the path"),
        ("s3://bucket/x", "only local paths and gs:// can be used"),
        ("", "has no path; name its files"),
    ],
)
def test_other_kinds_are_refused_with_the_step_that_helps(name: str, what: str, tmp_path: Path) -> None:
    path = name if "://" in name or not name else str(tmp_path / name)
    if not any(sign in path for sign in "*{:") and name not in ("none", ""):
        Path(path).write_bytes(b"anything")
    with pytest.raises(UserError) as error:
        open_source(SourceConfig("a", "caption", path, 1.0))
    assert what in str(error.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [("0.parquet", "is a Parquet table"), ("a.jsonl", "name a file in it, such as a.jsonl"), ("a.tar.gz", "gunzip")],
)
def test_folders_of_other_kinds(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({}))
    with pytest.raises(UserError, match="no record folder .*" + what):
        open_source(SourceConfig("a", "caption", str(tmp_path), 1.0))
    assert not other_kind("x.tar") and not other_kind("gs://bucket/records")
