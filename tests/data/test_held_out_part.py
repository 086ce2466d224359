"""The part of a JSON file that is held out: deterministic, disjoint, and equal conversations on one side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.data.dialogues import DialogueContent
from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.readers.source import Source, has_splits, open_source
from qwenvl_jax.data.schema import content_of
from qwenvl_jax.runtime.errors import UserError
from tests.data.source_files import write_jsonl

SHARE = 0.25


def talk(number: int) -> list[dict[str, str]]:
    asked = f"Picture 1: <img>pictures/{number % 7}.png</img>\nWhat is number {number}?"
    return [{"from": "user", "value": asked}, {"from": "assistant", "value": f"The {number}th."}]


def write_file(folder: Path, numbers: list[int]) -> Path:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(7):
        Image.new("RGB", (8, 8)).save(folder / f"pictures/{number}.png")
    lines = [{"id": f"{place}", "conversations": talk(number)} for place, number in enumerate(numbers)]
    return write_jsonl(folder / "train.jsonl", lines)


def open_part(path: Path, split: str, share: float = SHARE) -> Source:
    return open_source(SourceConfig("talk", "dialogue", str(path), 1.0), split, heldout_share=share)


def taught(source: Source) -> list[str]:
    return [json.dumps(content_of(source[index], DialogueContent)["turns"]) for index in range(len(source))]


def test_the_parts_are_disjoint_and_together_whole(tmp_path: Path) -> None:
    path = write_file(tmp_path, list(range(400)))
    whole = JsonReader(path, "dialogue")
    train, held_out = (open_part(path, split) for split in ("train", "heldout"))
    assert not set(taught(train)) & set(taught(held_out))
    assert sorted(taught(train) + taught(held_out)) == sorted(taught(whole))
    assert train.samples + held_out.samples == whole.samples == 400
    assert len({source.digest() for source in (train, held_out, whole)}) == 3
    assert len(held_out) == pytest.approx(400 * SHARE, abs=4 * (400 * SHARE * (1 - SHARE)) ** 0.5)
    assert {held_out[0].id} <= {str(place) for place in range(400)}
    with pytest.raises(IndexError):
        held_out[len(held_out)]


def test_equal_conversations_are_on_one_side_in_every_order_and_folder(tmp_path: Path) -> None:
    numbers = list(range(60))
    once = taught(open_part(write_file(tmp_path / "a", numbers), "heldout"))
    twice = taught(open_part(write_file(tmp_path / "b", [*reversed(numbers), *numbers]), "heldout"))
    assert sorted(twice) == sorted(2 * once)
    moved = Path(shutil.move(tmp_path / "a", tmp_path / "c"))
    assert taught(open_part(moved / "train.jsonl", "heldout")) == once
    # A larger share holds out these and more.
    assert set(once) < set(taught(open_part(moved / "train.jsonl", "heldout", 0.5)))


def test_a_part_that_cannot_be_made_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    path = write_file(tmp_path, [1])
    with pytest.raises(UserError, match=r"leaves none (held out|left to train on); change config.data.heldout_share"):
        [open_part(path, split) for split in ("train", "heldout")]
    records = SourceConfig("captions", "caption", str(tiny_data / "caption"), 1.0)
    with pytest.raises(UserError, match="is no JSON file; leave that out"):
        open_source(records, heldout_share=SHARE)
    assert has_splits(records)
    assert not has_splits(SourceConfig("talk", "dialogue", str(path), 1.0))
