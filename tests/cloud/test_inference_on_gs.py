"""Batch inference with pictures, lists and answers on an object store, against the same on a disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qwenvl_jax import infer
from qwenvl_jax.checkpoint import imported
from qwenvl_jax.evaluation.inference.inputs import read_inputs
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime import storage
from tests.evaluation.samples import noise
from tests.support import tiny_run


@pytest.fixture
def pictures(gcs: str) -> str:
    """A folder on the object store with pictures, and lists of them."""
    for name in ("a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg", "notes.md"):
        storage.write_bytes(f"{gcs}/pictures/{name}", noise(len(name)))
    storage.write_bytes(f"{gcs}/pictures/list.txt", b"a.jpg\nx/c.jpg\n")
    return f"{gcs}/pictures"


def test_patterns_folders_and_lists(pictures: str) -> None:
    def named(text: str) -> list[str]:
        return [each.id.removeprefix(f"{pictures}/") for each in read_inputs([text], ["What?"]).asked]

    assert named(f"{pictures}/*.jpg") == ["a.jpg", "b.jpg"]
    assert named(f"{pictures}/**/*.jpg") == ["a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg"]
    assert named(f"{pictures}/x/*/?.jpg") == ["x/y/d.jpg"]
    assert named(pictures) == ["a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg"]
    assert named(f"{pictures}/list.txt") == ["a.jpg", "x/c.jpg"]


@pytest.mark.slow
def test_answers_are_those_on_a_disk(pictures: str, gcs: str, tiny_data: Path, tmp_path: Path) -> None:
    config = tiny_run.make_config(tiny_data)
    rng = np.random.default_rng(3)
    fresh = qwen_vl.init_params(config.model, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh)
    imported.save_params(tmp_path / "run", params, config)
    for name in ("a.jpg", "x/c.jpg"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(noise(len(name)))
    (tmp_path / "pictures" / "list.txt").write_text("a.jpg\nx/c.jpg\n")

    def rows(folder: str) -> list[dict[str, Any]]:
        infer.main(
            [f"--workdir={tmp_path}/run", f"--images={folder}/pictures/list.txt", "--prompt=What is it?",
             "--max_new_tokens=6", f"--output={folder}/answers"]
        )  # fmt: skip
        assert storage.names(f"{folder}/answers") == ["answers.html", "answers.jsonl", "inference.json"]
        text = storage.read_bytes(f"{folder}/answers/answers.jsonl").decode()
        return [json.loads(line) for line in text.split("\n")[:-1]]

    there, here = rows(gcs), rows(str(tmp_path))
    assert [row["id"].removeprefix(f"{gcs}/pictures/") for row in there] == ["a.jpg", "x/c.jpg"]
    assert [row["answer"] for row in there] == [row["answer"] for row in here]
    assert rows(gcs) == there  # nothing is asked again
    page = storage.read_bytes(f"{gcs}/answers/answers.html").decode()
    assert page.replace(gcs, str(tmp_path)) == (tmp_path / "answers/answers.html").read_text()
