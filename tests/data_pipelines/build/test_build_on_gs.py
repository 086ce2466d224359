"""Input and output on an object store: the bytes of a disk, changes noticed by checksum, refused requests repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.build import run
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from tests.support import small_corpus
from tests.support.faulty_gcs import between, told


def contents_on(folder: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(f"{folder}/{name}") for name in storage.files_below(folder)}


def as_on_disk(manifest: bytes) -> bytes:
    """A manifest without the digests of its inputs, which a store and a disk state differently."""
    return json.dumps({key: value for key, value in json.loads(manifest).items() if key != "inputs"}).encode()


def test_the_bytes_are_those_on_a_disk(run_small: Callable[..., Any], gcs: str, tmp_path: Path) -> None:
    small_corpus.write(tmp_path / "corpus", 200)
    small_corpus.write(f"{gcs}/corpus", 200)
    run_small(tmp_path / "corpus", tmp_path / "output")
    run_small(f"{gcs}/corpus", f"{gcs}/output", workers=1)
    on_disk, on_store = contents_on(str(tmp_path / "output")), contents_on(f"{gcs}/output")
    for contents in (on_disk, on_store):
        contents["manifest.json"] = as_on_disk(contents["manifest.json"])
    assert {name for name in on_disk if on_disk[name] != on_store.get(name)} == set()
    assert set(on_disk) == set(on_store)
    assert len(RecordReader(f"{gcs}/output/text")) > 50
    small_corpus.add_missing_pictures(tmp_path / "corpus")
    small_corpus.add_missing_pictures(f"{gcs}/corpus")
    run_small(f"{gcs}/corpus", f"{gcs}/output", retry=True)
    run_small(tmp_path / "corpus", tmp_path / "output", retry=True)
    assert contents_on(str(tmp_path / "output"))["failed.jsonl"] == contents_on(f"{gcs}/output")["failed.jsonl"]


def test_a_run_that_ended_continues_and_notices_changes(
    run_small: Callable[..., Any], gcs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_corpus.write(f"{gcs}/corpus", 200, pictures=10)

    def ended(*_: Any) -> None:
        raise UserError("ended before the end")

    monkeypatch.setattr(run, "finish", ended)
    with pytest.raises(UserError, match="ended"):
        run_small(f"{gcs}/corpus", f"{gcs}/output")
    monkeypatch.undo()
    before = storage.entries(f"{gcs}/.output.work/clean")
    changed = storage.read_bytes(f"{gcs}/corpus/0001.jsonl").replace(b"Red", b"Tan")
    storage.write_bytes(f"{gcs}/corpus/0001.jsonl", changed)
    run_small(f"{gcs}/corpus", f"{gcs}/output", keep_work=True)
    after = storage.entries(f"{gcs}/.output.work/clean")
    assert len(set(before) & set(after)) == 1 and all(after[name] == before[name] for name in set(before) & set(after))
    run_small(f"{gcs}/corpus", f"{gcs}/fresh")
    assert contents_on(f"{gcs}/output") == contents_on(f"{gcs}/fresh")


def test_a_store_that_refuses_every_tenth_request_changes_nothing(
    run_small: Callable[..., Any], gcs: str, gcs_server: str
) -> None:
    small_corpus.write(f"{gcs}/corpus", 100, pictures=5)
    run_small(f"{gcs}/corpus", f"{gcs}/output")
    with between(gcs_server, seed=1, rate=0.1, kinds="503,429,reset") as url:
        run_small(f"{gcs}/corpus", f"{gcs}/again")
        assert sum(told(url)["faults"].values()) > 5
    assert contents_on(f"{gcs}/again") == contents_on(f"{gcs}/output")
