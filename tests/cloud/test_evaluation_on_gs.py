"""Evaluation, report, chat and audit with every folder on an object store, against the same on a disk."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from qwenvl_jax.checkpoint import imported
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.report.page import write_report
from qwenvl_jax.evaluation.results import answers
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.runtime import storage
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]


def upload(folder: Path, remote: str) -> None:
    """Copies a folder, file by file."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{remote}/{path.relative_to(folder)}", path.read_bytes())


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_run.make_config(tiny_data)
    rng = np.random.default_rng(3)
    fresh = qwen_vl.init_params(config.model, jax.random.key(0))
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh)
    imported.save_params(folder, params, config)
    return folder


def settings(data: str, run: str, output: str) -> EvalConfig:
    tasks = tuple(BenchmarkConfig(name, f"{data}/{name}", "train", 6, 4, 1) for name in ("vqa", "caption"))
    tokenizer = dataclasses.replace(tiny_run.make_config().tokenizer, path=f"{data}/tiny.model")
    return EvalConfig((CheckpointConfig("a", run, 28),), tokenizer, tasks, 3, "training", output)


def test_a_sweep_and_its_report(
    gcs: str, run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after its first parts and run again: the same answers, scores and page as on a disk."""
    upload(tiny_data, f"{gcs}/data")
    upload(run, f"{gcs}/run")
    sweep(settings(str(tiny_data), str(run), str(tmp_path / "output")))
    remote = settings(f"{gcs}/data", f"{gcs}/run", f"{gcs}/output")
    add = answers.Answers.add

    def interrupted(self: answers.Answers, answer: answers.Answer) -> None:
        add(self, answer)
        if len(self.known) == 4 and "caption" in str(self._parts):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(answers, "PART_SECONDS", 0.0)
        patched.setattr(answers.Answers, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(remote)
    assert storage.names(f"{gcs}/output/predictions/a") == ["caption.parts", "vqa.json", "vqa.jsonl"]
    (settings_of_parts,) = storage.names(f"{gcs}/output/predictions/a/caption.parts")
    assert len(storage.names(f"{gcs}/output/predictions/a/caption.parts/{settings_of_parts}")) == 4
    scores = sweep(remote)
    assert storage.names(f"{gcs}/output/predictions/a") == ["caption.json", "caption.jsonl", "vqa.json", "vqa.jsonl"]
    assert json.loads(storage.read_bytes(f"{gcs}/output/scores.json")) == scores
    for name in ("predictions/a/vqa.jsonl", "predictions/a/caption.jsonl", "scores.json"):
        assert storage.read_bytes(f"{gcs}/output/{name}") == (tmp_path / "output" / name).read_bytes(), name
    assert write_report(f"{gcs}/output") == storage.path(f"{gcs}/output/report.html")
    write_report(tmp_path / "output")
    assert storage.read_bytes(f"{gcs}/output/report.html") == (tmp_path / "output/report.html").read_bytes()


@pytest.mark.slow
def test_a_chat_with_a_picture(
    gcs: str, gcs_environment: dict[str, str], run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    from qwenvl_jax.data.readers.record_folder import RecordReader

    picture = RecordReader(tiny_data / "vqa")[0].images[0]
    (tmp_path / "dog.png").write_bytes(picture)
    storage.write_bytes(f"{gcs}/pictures/my dog.png", picture)
    upload(run, f"{gcs}/run")

    def said(workdir: str, picture: str) -> str:
        command = [sys.executable, "-m", "qwenvl_jax.chat", f"--workdir={workdir}", "--max_new_tokens=8"]
        lines = f"/image {picture}\nWhat is it?\n".encode()
        done = subprocess.run(command, cwd=ROOT, env=gcs_environment, input=lines, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().partition("model: ")[2]

    here = said(str(run), f"{tmp_path}/dog.png")
    assert here and said(f"{gcs}/run", f"{gcs}/pictures/my dog.png") == here


@pytest.mark.slow
def test_an_audit(gcs: str, gcs_environment: dict[str, str], tiny_data: Path, tmp_path: Path) -> None:
    upload(tiny_data, f"{gcs}/data")

    def audited(data: str, output: str) -> None:
        command = [sys.executable, "-m", "qwenvl_jax.audit", f"--config={ROOT / 'tests/support/tiny_config.py'}:{data}"]
        command += [f"--output={output}", "--samples=40", "--shown=1", "--verify"]
        done = subprocess.run(command, cwd=ROOT, env=gcs_environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    audited(f"{gcs}/data", f"{gcs}/audit")
    audited(str(tiny_data), "~/audit" if os.environ["HOME"] == str(tmp_path) else str(tmp_path / "audit"))
    there = json.loads(storage.read_bytes(f"{gcs}/audit/audit.json"))
    here = json.loads((tmp_path / "audit/audit.json").read_text())
    for remote, local in zip(there["sources"], here["sources"], strict=True):
        assert remote.pop("path") == local.pop("path").replace(str(tiny_data), f"{gcs}/data")
    assert there.pop("config") != here.pop("config")  # it names the folders
    assert there == here
