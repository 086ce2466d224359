"""Rules across pairs against brute force: whatever the parts, groups and buckets, the same pairs are dropped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.build import survey
from data_pipelines.build.across_pairs import dropped_of
from data_pipelines.build.part_files import PartDamaged, PartReader, PartWriter, decode_frame, encode_frame, key_dtype
from data_pipelines.build.slices import read_slice, write_slices
from data_pipelines.clean.across import AcrossRule, Candidate
from data_pipelines.pair import RawPair
from qwenvl_jax.data.schema import Record
from tests.support import small_corpus


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair as brute force sees it."""

    part: int
    index: int
    rank: int
    keys: tuple[int, ...]
    signature: int


def table(pairs: list[Pair], signature_bytes: int) -> np.ndarray:
    fields = key_dtype(signature_bytes)
    dtype = np.dtype([("part", "<u4"), *((name, fields[name]) for name in fields.names or ())])
    rows = []
    for pair in pairs:
        for key in dict.fromkeys(pair.keys):
            signature = [pair.signature] * signature_bytes
            rows.append((pair.part, 1 << 63 | key, key % 3, pair.rank, pair.index, signature))
    return np.array(rows, dtype)


def near(signature: np.ndarray, better: np.ndarray) -> np.ndarray:
    return np.abs(signature.astype(int) - better.astype(int)).max(axis=1) <= 1


def brute_force(pairs: list[Pair], similar: bool) -> set[tuple[int, int]]:
    dropped = set()
    for pair in pairs:
        for other in pairs:
            better = (-other.rank, other.part, other.index) < (-pair.rank, pair.part, pair.index)
            shares = set(pair.keys) & set(other.keys)
            if better and shares and (not similar or abs(pair.signature - other.signature) <= 1):
                dropped.add((pair.part, pair.index))
    return dropped


@st.composite
def pairs_of(draw: st.DrawFn) -> list[Pair]:
    positions = draw(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=25))
    extremes = st.sampled_from([-(2**63), -1, 0, 1, 5, 2**63 - 1])
    keys = st.lists(st.integers(0, 6), max_size=3).map(tuple)
    return [
        Pair(part, index, draw(extremes), draw(keys), draw(st.integers(0, 8)))
        for part, index in draw(st.permutations(sorted(positions)))
    ]


@given(pairs_of(), st.booleans())
def test_dropped_pairs_are_those_of_brute_force(pairs: list[Pair], similar: bool) -> None:
    dropped = dropped_of(table(pairs, 2 if similar else 0), near)
    assert {(int(each["part"]), int(each["index"])) for each in dropped} == brute_force(pairs, similar)
    assert len(dropped) == len(brute_force(pairs, similar))
    by_position = {(pair.part, pair.index): pair for pair in pairs}
    for each in dropped:
        pair = by_position[int(each["part"]), int(each["index"])]
        better = by_position[int(each["by_part"]), int(each["by_index"])]
        assert set(pair.keys) & set(better.keys) and better.rank >= pair.rank and better != pair


@dataclasses.dataclass(frozen=True)
class NearNumbers(AcrossRule):
    """Pairs whose numbers differ by at most one and share a last digit of the number or of its neighbours."""

    reason = "a near number"

    @property
    def signature_bytes(self) -> int:
        return 2

    def candidate(self, pair: RawPair) -> Candidate | None:
        number = int(pair.texts[0].split()[-1])
        keys = tuple(f"{(number + shift) % 10}".encode() for shift in (0, 1))
        return Candidate(keys, rank=len(pair.texts[0]), signature=number.to_bytes(2, "little"))

    def similar(self, signature: np.ndarray, better: np.ndarray) -> np.ndarray:
        numbers = better.astype(int) @ [1, 256]
        return np.abs(numbers - signature.astype(int) @ [1, 256]) <= 1


@pytest.mark.parametrize("group_bytes", [1, 2000])
def test_groups_and_buckets_change_nothing(
    group_bytes: int, run_small: Any, contents: Any, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    across = (NearNumbers(), *small_corpus.ACROSS)
    run_small(small_folder, tmp_path / "one", across=across)
    monkeypatch.setattr(survey, "_GROUP_BYTES", group_bytes)
    monkeypatch.setattr(survey, "_BUCKET_BYTES", 500)
    run_small(small_folder, tmp_path / "many", across=across, keep_work=True)
    assert len(list((tmp_path / ".many.work").glob("across-0-*/bucket-*"))) > 10
    assert len(list((tmp_path / ".many.work").glob("across-0-*/verdict-*"))) > 2
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert [rule["rule"] for rule in manifest["rules"][-3:]] == ["near_numbers", "longest_of_picture", "same_text"]
    assert sum(manifest["rules"][-3]["dropped"].values()) > 50


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(1, 3))
def test_slices_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], width: int
) -> None:
    dtype = np.dtype([("a", "<u4"), ("b", "u1", (width,))])
    rows = np.zeros(sum(sizes), dtype)
    rows["a"] = np.arange(len(rows))
    path = tmp_path_factory.mktemp("slices") / "table"
    edges = np.cumsum([0, *sizes])
    write_slices(path, rows, edges)
    for number, size in enumerate(sizes):
        part = read_slice(path, number, dtype)
        assert part["a"].tolist() == list(range(edges[number], edges[number] + size))
        if size:
            payload = bytearray(path.read_bytes())
            payload[-1] ^= 1
            path.with_suffix(".bad").write_bytes(payload)
    if len(rows):
        last = max(number for number, size in enumerate(sizes) if size)
        with pytest.raises(PartDamaged):
            read_slice(path.with_suffix(".bad"), last, dtype)


texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)  # lone surrogates too


@given(st.lists(st.tuples(texts, st.lists(st.binary(max_size=9), max_size=3)), max_size=4), st.integers(0, 400))
def test_part_files_are_read_as_they_were_written_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, survivors: list[tuple[str, list[bytes]]], flipped: int
) -> None:
    path = tmp_path_factory.mktemp("parts") / "x.part"
    expected = []
    with path.open("wb") as file:
        writer = PartWriter(file, ("caption",), (0,))
        for row, (text, images) in enumerate(survivors):
            record = Record(text, "caption", "s", "en", "CC0-1.0", tuple(images), {"caption": text})
            writer.add(2 * row, encode_frame({"caption": record}, {"text": text}), (7,), (Candidate((b"k",)),))
            expected.append((record, text))
        writer.finish({"rows": 9}, {"failed": b"{}\n"})

    def everything() -> list[tuple[Record, str]]:
        reader = PartReader(path)
        assert reader.footer["rows"] == 9 and reader.lines("failed") == [{}]
        assert reader.keys(0, 0)["index"].tolist() == list(range(len(survivors)))
        with reader.frames() as frames:
            both = [frames[entry] for entry in reader.index()]
        return [(records["caption"], facts["text"]) for records, facts in both]

    assert everything() == expected
    payload = bytearray(path.read_bytes())
    payload[flipped % len(payload)] ^= 0x10
    path.write_bytes(bytes(payload))
    with pytest.raises(PartDamaged):
        everything()


def test_a_damaged_frame_is_noticed() -> None:
    frame = encode_frame({}, {"a": 1})
    assert decode_frame(frame, "x") == ({}, {"a": 1})
    with pytest.raises(PartDamaged, match="x: the checksum"):
        decode_frame(frame[:-1] + b"!", "x")
