"""A mixture of one source of each kind."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.mixture_reader import open_sources
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error
from tests.data.batches import KnownExamples, assert_equal, assert_is_example, packed_samples
from tests.data.record_samples import content, encoded_image, make_record, with_data
from tests.data.source_files import line_of, write_jsonl, write_tar, write_tfds


@pytest.fixture
def mixed(run_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Five sources: a record folder, JSON conversations, JSONL fields, WebDataset shards, a TFDS data set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_records(tmp_path / "text", {"train": [make_record("text", k) for k in range(9)]}, name="text")
    (tmp_path / "chat.png").write_bytes(encoded_image(5))
    chats = [
        {
            "id": f"chat{k}",
            "conversations": [
                {"from": "user", "value": f"Picture 1: <img>chat.png</img>\nWhere is dog {k}?"},
                {"from": "assistant", "value": f"<ref>dog</ref><box>({k},{k}),(500,999)</box>"},
            ],
        }
        for k in range(11)
    ]
    (tmp_path / "chat.json").write_text(json.dumps(chats))
    write_jsonl(tmp_path / "vqa.jsonl", [line_of(make_record("vqa", k), tmp_path) for k in range(13)])
    (tmp_path / "web").mkdir()
    for number in range(2):
        members = [
            (f"{number}{k}.{suffix}", payload)
            for k in range(6)
            for suffix, payload in (("jpg", encoded_image(k, form="JPEG")), ("txt", f"a bird {number} {k}".encode()))
        ]
        write_tar(tmp_path / "web" / f"{number:05d}.tar", members)
    tfds_name = write_tfds(tmp_path / "tfds", [make_record("ref_grounding", k) for k in range(10)])
    mixture = (
        SourceConfig("records", "text", str(tmp_path / "text"), 1.0),
        SourceConfig("chats", "dialogue", str(tmp_path / "chat.json"), 2.0),
        SourceConfig("lines", "vqa", str(tmp_path / "vqa.jsonl"), 1.0),
        SourceConfig("web", "caption", str(tmp_path / "web"), 2.0),
        SourceConfig("tfds", "ref_grounding", tfds_name, 1.0),
    )
    return with_data(run_config, mixture=mixture)


def test_every_packed_sample_is_the_example_of_a_record(mixed: Config, tokenizer: Tokenizer) -> None:
    assert [len(source) for source in open_sources(mixed.data)] == [9, 11, 13, 12, 10]
    known = KnownExamples(mixed, tokenizer)
    with make_loader(mixed, tokenizer) as loader:
        batches = [next(loader) for _ in range(8)]
        counters = loader.counters()
    sources_seen = set()
    for batch in batches:
        for sample in packed_samples(batch):
            example = known.find(sample, batch).example
            assert_is_example(sample, example)
            sources_seen.add(example.source)
    assert sources_seen == set(range(len(mixed.data.mixture)))
    assert not any(counters["corrupt"].values()) and not any(counters["dropped"].values())


def test_restoring_is_bitwise(mixed: Config, tokenizer: Tokenizer) -> None:
    with make_loader(mixed, tokenizer) as loader:
        for _ in range(3):
            next(loader)
        state = json.loads(json.dumps(loader.state()))
        after = [next(loader) for _ in range(3)]
    with make_loader(mixed, tokenizer) as restored:
        restored.restore(state)
        assert_equal([next(restored) for _ in range(3)], after)
    write_jsonl(Path(mixed.data.mixture[2].records), [{"image": "chat.png", "question": "a", "answer": "b"}])
    with make_loader(mixed, tokenizer) as other, pytest.raises(UserError, match="another stream"):
        other.restore(state)  # one source has another length


@pytest.mark.parametrize("kind", ["lines", "web", "tfds"])
def test_a_bad_image_is_counted_whatever_the_source(
    mixed: Config, tokenizer: Tokenizer, tmp_path: Path, kind: str
) -> None:
    """One empty image in 300 leaves padding, as in a record folder."""
    records = [make_record("caption", k) for k in range(300)]
    records[7] = dataclasses.replace(records[7], images=(b"",))
    if kind == "lines":
        path = str(write_jsonl(tmp_path / "captions.jsonl", [line_of(record, tmp_path) for record in records]))
    elif kind == "web":
        members = [
            (f"{record.id}.{suffix}", payload)
            for record in records
            for suffix, payload in (("png", record.images[0]), ("txt", content(record)["caption"].encode()))
        ]
        path = str(write_tar(tmp_path / "captions.tar", members))
    else:
        path = write_tfds(tmp_path / "captions", records)
    config = with_data(mixed, mixture=(SourceConfig("only", "caption", path, 1.0),))
    with make_loader(config, tokenizer) as loader:
        while not loader.counters()["corrupt"]["only"]:
            next(loader)
        counters = loader.counters()
    assert counters["corrupt"] == {"only": 1} and counters["seen"]["only"] > 0


def test_bad_lines_are_counted_like_bad_images(mixed: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Below the share they cost their sample; above it the run is refused before its first step."""
    lines: list[Any] = [{"text": f"word {k}"} for k in range(40)]
    lines[7] = {"text": None}
    source = SourceConfig("only", "text", str(write_jsonl(tmp_path / "texts.jsonl", lines)), 1.0)
    with make_loader(with_data(mixed, mixture=(source,), max_corrupt_share=0.05), tokenizer) as loader:
        while not loader.counters()["corrupt"]["only"]:
            next(loader)
        assert loader.counters()["corrupt"] == {"only": 1}
    with pytest.raises(UserError, match=r"line 8: .*max_corrupt_share above 0$"):
        open_sources(with_data(mixed, mixture=(source,), max_corrupt_share=0.0).data)


@pytest.mark.parametrize(("name", "task"), [("a.tar", "caption"), ("a.json", "text"), ("a.jsonl", "text")])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused_and_never_waited_for(name: str, task: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="a pipe, a device or a socket; name a file"):
        open_source(SourceConfig("a", task, str(path), 1.0))


@pytest.mark.parametrize("name", ["a.tar", "a.json", "records"])
def test_links_in_a_circle_and_endless_names_are_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).symlink_to(tmp_path / name)
    for path in (tmp_path / name, tmp_path / ("x" * 300 + name)):
        with pytest.raises(SystemExit) as ended, exit_on_user_error():
            open_source(SourceConfig("a", "caption", str(path), 1.0))
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
