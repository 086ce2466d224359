"""Damaged files of every format: rows before the damage are unchanged, and nothing but a known error is raised."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import FailedRow, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.support.corpora import web
from tests.support.corpora.table import FIXTURES

LISTS = (".tar", ".parquet", ".tsv", ".json", ".jsonl", ".txt", ".token")
# One corpus per format; the others share its reader.
NAMES = ("laion_en", "laion_zh", "coyo_700m", "cc12m", "coco_captions", "flickr30k", "synthdog_en", "llava", "text")

fixtures_stay = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], tuple[bytes, int]]:
    """A change of some bytes: (file) -> the damaged file and the offset of the first change."""
    share = draw(st.floats(0, 1, exclude_max=True))
    kind = draw(st.sampled_from(["set", "cut", "remove", "insert"]))
    payload = draw(st.binary(min_size=1, max_size=40))

    def damage(whole: bytes) -> tuple[bytes, int]:
        at = int(share * len(whole))
        after = {"set": len(payload), "remove": len(payload), "insert": 0, "cut": len(whole)}[kind]
        put = payload if kind in ("set", "insert") else b""
        return whole[:at] + put + whole[at + after :], at

    return damage


@pytest.fixture(scope="module", params=NAMES)
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    FIXTURES[request.param](folder)
    return request.param, folder


def rows_of(name: str, folder: Path) -> list[Row]:
    """The rows of the first split; none if the reader refuses the folder."""
    splits = CORPORA[name].splits
    try:
        return list(CORPORA[name].read(folder, "all" if "all" in splits else next(iter(splits))))
    except (UserError, StorageError, OSError) as error:
        assert "\n" not in str(error)
        return []


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_damage_raises_only_known_errors(corpus: tuple[str, Path], data: st.DataObject) -> None:
    name, folder = corpus
    files = sorted(path for path in folder.rglob("*") if path.suffix in LISTS)
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    path.write_bytes(data.draw(damages())(whole)[0])
    try:
        rows = rows_of(name, folder)
    finally:
        path.write_bytes(whole)
    for row in rows:
        labels = (
            (row.id, row.license, row.language)
            if isinstance(row, RawPair)
            else (row.reason, getattr(row, "detail", ""))
        )
        assert all(label.encode() for label in labels if label)  # records and reports are UTF-8


@given(damage=damages())
@settings(max_examples=40, deadline=None)
def test_samples_before_the_damage_of_a_tar_are_unchanged(
    tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], tuple[bytes, int]]
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    web.write_laion_en(folder)
    expected = rows_of("laion_en", folder)
    path = folder / "00000.tar"
    with tarfile.open(path) as archive:
        ends = [member.offset_data + member.size for member in archive if member.name.endswith(".txt")]
    changed, at = damage(path.read_bytes())
    path.write_bytes(changed)
    before = sum(end <= at for end in ends)
    # A sample ends where the next begins: bytes that were inserted after it may be one more member of it.
    before -= before > 0 and at < ends[before - 1] + 1024
    assert rows_of("laion_en", folder)[:before] == expected[:before]
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["cc12m", "synthdog_en", "text"])
@given(damage=damages())
@settings(max_examples=30, deadline=None)
def test_lines_before_the_damage_are_unchanged(
    name: str, tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], tuple[bytes, int]]
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    FIXTURES[name](folder)
    expected = rows_of(name, folder)
    path = {
        "cc12m": folder / "cc12m.tsv",
        "synthdog_en": folder / "train" / "metadata.jsonl",
        "text": folder / "part-00000.jsonl",
    }[name]
    changed, at = damage(path.read_bytes())
    before = path.read_bytes()[:at].count(b"\n")
    path.write_bytes(changed)
    assert rows_of(name, folder)[:before] == expected[:before]
    shutil.rmtree(folder)


@given(damage=damages())
@settings(max_examples=40, deadline=None)
def test_row_groups_before_the_damage_of_a_table_are_unchanged(
    tmp_path_factory: pytest.TempPathFactory, damage: Callable[[bytes], tuple[bytes, int]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    web.write_coyo_700m(folder)
    expected = rows_of("coyo_700m", folder)
    path = folder / "00000.parquet"
    whole = path.read_bytes()
    table = pyarrow.parquet.ParquetFile(path).metadata
    ends = [max(end_of(table.row_group(k).column(c)) for c in range(table.num_columns)) for k in range(2)]
    data, at = damage(whole[: ends[-1]])
    path.write_bytes((data + bytes(len(whole)))[: ends[-1]] + whole[ends[-1] :])  # the footer stays where it is
    rows = rows_of("coyo_700m", folder)
    intact = 2 if at >= ends[0] else 0  # two rows are a group
    assert rows[:intact] == expected[:intact]
    assert rows
    shutil.rmtree(folder)


def test_row_groups_after_a_damaged_one_are_read(tmp_path: Path) -> None:
    web.write_coyo_700m(tmp_path)
    expected = rows_of("coyo_700m", tmp_path)
    path = tmp_path / "00000.parquet"
    payload = bytearray(path.read_bytes())
    payload[4:54] = b"\xff" * 50
    path.write_bytes(payload)
    damaged, *rest = rows_of("coyo_700m", tmp_path)
    assert isinstance(damaged, FailedRow)
    assert damaged.reason == "file damaged" and damaged.detail.startswith("00000.parquet, row group 0: ")
    assert rest == expected[2:]


def end_of(column: pyarrow.parquet.ColumnChunkMetaData) -> int:
    start = column.dictionary_page_offset or column.data_page_offset
    return start + column.total_compressed_size


def test_a_list_that_is_cut_off_is_refused_in_one_sentence(tmp_path: Path) -> None:
    FIXTURES["coco_captions"](tmp_path)
    path = tmp_path / "annotations" / "captions_train2017.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not valid JSON"):
        list(CORPORA["coco_captions"].read(tmp_path))


class Failing(io.BytesIO):
    """A file of which only the first reads succeed."""

    left = 3

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise StorageError("the bucket does not answer")
        return super().read(size)


def test_a_failed_read_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FIXTURES["coyo_700m"](tmp_path)
    payload = (tmp_path / "00000.parquet").read_bytes()
    monkeypatch.setattr(storage, "open_read", lambda path, buffer: contextlib.closing(Failing(payload)))
    for Failing.left in range(6):
        with pytest.raises(StorageError, match="does not answer"):
            list(CORPORA["coyo_700m"].read(tmp_path))


def test_names_that_are_not_utf8_make_ids_that_are(tmp_path: Path) -> None:
    name = b"caf\xe9"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for suffix, payload in ((b".jpg", b"x"), (b".json", b'{"caption": "a", "LICENSE": "\\ud83d"}')):
            member = tarfile.TarInfo(os.fsdecode(name + suffix))
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))
    [row] = CORPORA["laion_en"].read(tmp_path)
    assert isinstance(row, RawPair)
    assert (row.id, row.license) == ("a/caf\\udce9", "\\ud83d")
    (tmp_path / "b").mkdir()
    os.rename(tmp_path / "a.tar", os.fsencode(tmp_path / "b") + b"/\xff.tar")
    [row] = CORPORA["laion_en"].read(tmp_path / "b")
    assert isinstance(row, RawPair) and row.id.encode()


def test_a_lone_surrogate_reaches_the_rules(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "half \ud83d"}))
    [row] = CORPORA["text"].read(tmp_path)
    assert isinstance(row, RawPair) and row.texts == ("half \ud83d",)
