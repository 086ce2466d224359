"""A finished output holds what plain Python says it must, in readable records, and counts every row once."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from data_pipelines.build import parts
from data_pipelines.build.part_files import PartReader
from data_pipelines.build.table import table
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_format import encode_record
from qwenvl_jax.data.schema import content_of
from qwenvl_jax.data.tasks import TextContent
from tests.support import small_corpus


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Expected:
    """What must become of the rows of a small corpus, written down without the engine."""

    def __init__(self, folder: Path):
        self.counts: collections.Counter[str] = collections.Counter()
        self.failed: list[tuple[str, int, str]] = []
        pairs: list[tuple[str, str, bytes]] = []
        for file in sorted(folder.glob("*.jsonl")):
            for number, line in enumerate(file.read_text().splitlines()):
                reason = self.one(folder, line, pairs)
                if reason:
                    self.failed.append((file.name, number, reason))
        text_of = {name: text for name, text, _ in pairs}
        longest: dict[bytes, str] = {}
        for name, text, image in pairs:
            if image and (image not in longest or len(text) > len(text_of[longest[image]])):
                longest[image] = name
        first: dict[str, str] = {}
        self.kept: dict[str, tuple[str, bytes]] = {}
        for name, text, image in pairs:
            if image and longest[image] != name:
                self.counts["longest_of_picture"] += 1
            elif first.setdefault(text, name) != name:
                self.counts["same_text"] += 1
            else:
                self.kept[name] = (text, image)

    def one(self, folder: Path, line: str, pairs: list[tuple[str, str, bytes]]) -> str:
        """Adds a row to `pairs`, or counts why not; the reason if it fails."""
        if line.startswith("{broken"):
            return "not JSON"
        row = json.loads(line)
        if len(row["text"]) < 4:
            self.counts["not_short"] += 1
            return ""
        image = b""
        if "picture" in row:
            if not (folder / row["picture"]).exists():
                return "picture missing"
            image = (folder / row["picture"]).read_bytes()
        if "refused" in row["text"]:
            return "not well formed"
        if "nothing" in row["text"]:
            self.counts["compose"] += 1
            return ""
        pairs.append((row["id"], row["text"].lower(), image))
        return ""


def test_the_result_is_that_of_plain_python(built: Path) -> None:
    expected = Expected(built.parent / "corpus")
    manifest = json.loads((built / "manifest.json").read_text())
    texts = {record.id: content_of(record, TextContent)["text"] for record in RecordReader(built / "text", verify=True)}
    captions = {record.id: record for record in RecordReader(built / "caption", verify=True)}
    assert texts == {name: text for name, (text, _) in expected.kept.items()}
    assert list(texts) == list(expected.kept)  # in the order of the corpus
    pictures = {name: image for name, (_, image) in expected.kept.items() if image}
    assert {name: record.images[0] for name, record in captions.items()} == pictures
    dropped = {each["rule"]: sum(each["dropped"].values()) for each in manifest["rules"]}
    assert {name: count for name, count in dropped.items() if count} == dict(expected.counts)
    failed = [(row["file"], row["row"], row["reason"]) for row in lines(built / "failed.jsonl")]
    assert failed == expected.failed
    assert manifest["kept"] == len(expected.kept) and manifest["rows"] == 1000


def test_every_row_is_counted_once(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    dropped = sum(sum(each["dropped"].values()) for each in manifest["rules"])
    assert manifest["rows"] == manifest["failed"]["rows"] + dropped + manifest["kept"]
    left = manifest["rows"] - manifest["failed"]["rows"]
    for each in manifest["rules"]:
        assert each["seen"] == left, each["rule"]
        left -= sum(each["dropped"].values())
    rewritten = {each["rule"]: each["rewritten"] for each in manifest["rules"]}
    assert 0 < rewritten["lower_case"] < rewritten["opened"] and not rewritten["not_short"]


def test_tfds_reads_the_records(built: Path) -> None:
    builder = tfds.builder_from_directory(str(built / "text"))
    source = builder.as_data_source(split="train")
    assert len(source) == json.loads((built / "manifest.json").read_text())["kept"]
    assert source[0]["task"] in (b"text", "text")


def test_shards_end_with_the_record_that_fills_them(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    shards = manifest["tasks"]["text"]["shards"]
    assert len(shards) > 2
    assert all(shard["records"] > 0 for shard in shards)
    reader = RecordReader(built / "text")
    sizes = [len(encode_record(record)) for record in reader]
    start = 0
    for shard in shards:
        held = sizes[start : start + shard["records"]]
        start += shard["records"]
        assert sum(held[:-1]) < 20_000
        assert sum(held) >= 20_000 or shard is shards[-1]


def test_examples_show_pairs_that_each_rule_dropped(built: Path) -> None:
    dropped = lines(built / "examples" / "dropped.jsonl")
    by_rule = collections.Counter(example["rule"] for example in dropped)
    assert by_rule == {"not_short": 12, "compose": 12, "longest_of_picture": 12, "same_text": 8}
    longest = [example for example in dropped if example["rule"] == "longest_of_picture"]
    for example in longest:
        (better,) = example["evidence"]
        assert len(better["texts"][0]) >= len(example["texts"][0]) and better["thumbnail"]
        assert example["size"][1] == 6
    rows = [(example["file"], example["row"]) for example in longest]
    assert rows == sorted(rows)
    kept = lines(built / "examples" / "kept.jsonl")
    assert len(kept) == 36 and all(set(example["records"]) <= {"caption", "text"} for example in kept)


def test_examples_are_the_first_of_the_corpus_whatever_the_parts(
    run_small: Any, small_folder: Path, tmp_path: Path
) -> None:
    """Against all examples of all parts: the first twelve by file and row."""
    run_small(small_folder, tmp_path / "output", keep_work=True)
    every = [
        example
        for file in (tmp_path / ".output.work" / "clean").iterdir()
        for example in PartReader(file).lines("examples")
        if example["rule"] == "not_short"
    ]
    rows = sorted((example["file"], example["row"]) for example in every)
    shown = lines(tmp_path / "output" / "examples" / "dropped.jsonl")
    assert [(each["file"], each["row"]) for each in shown if each["rule"] == "not_short"] == rows[:12]


def test_the_end_report_adds_up(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    text = table(manifest)
    assert "original" in text and f"{manifest['kept']:,}" in text.splitlines()[-3]
    assert [line.split()[0] for line in text.splitlines() if line.startswith("same_text")] == ["same_text"]


def test_a_whole_file_and_its_strides_give_the_same_records(
    run_small: Any, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []
    for layout, strides in ((small_corpus.WHOLE, 1), (small_corpus.CUT, 4)):
        monkeypatch.setattr(parts, "BYTES_PER_STRIDE", 2500)
        output = small_folder.parent / f"in-{strides}"
        run_small(small_folder, output, corpus=dataclasses.replace(small_corpus.CORPUS, layout=layout), across=())
        outputs.append(sorted(record.id for record in RecordReader(output / "text")))
        failed = [(row["file"], row["row"]) for row in lines(output / "failed.jsonl")]
        assert failed == sorted(failed)
    assert outputs[0] == outputs[1]
