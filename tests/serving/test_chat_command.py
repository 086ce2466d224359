"""`python -m qwenvl_jax.chat` as a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from qwenvl_jax import chat
from qwenvl_jax.checkpoint import restore
from qwenvl_jax.config import Config
from qwenvl_jax.conversion import to_torch
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.options import AnswerOptions
from tests.evaluation.samples import noise

ROOT = Path(__file__).parents[2]


def run_chat(workdir: Path | str, *flags: str, lines: str = "What is it?\nWhy?\n") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwenvl_jax.chat", f"--workdir={workdir}", "--max_new_tokens=8", *flags]
    return subprocess.run(command, cwd=ROOT, input=lines, capture_output=True, text=True)


@pytest.mark.slow
def test_a_release_answers_as_its_run(checkpoint: Path, config: Config, tmp_path: Path) -> None:
    params, _ = restore.deferred_params(checkpoint)
    release = to_torch.release(params, config, tmp_path / "release")
    (tmp_path / "my picture.jpg").write_bytes(noise(1))
    lines = f"/image '{tmp_path}/my picture.jpg'\nWhat is it?\nWhy?\n"
    drawn = ["--sampling=released", "--top_p=0.9", "--seed=3", f"--boxes={tmp_path}/boxes"]
    of_run = run_chat(checkpoint, *drawn, lines=lines)
    of_release = run_chat(str(release), *drawn, f"--imported={tmp_path}/imported", lines=lines)
    assert of_run.returncode == of_release.returncode == 0, of_release.stderr
    said = [line for line in of_run.stdout.splitlines() if line.startswith("model: ")]
    assert len(said) == 2
    assert [line for line in of_release.stdout.splitlines() if line.startswith("model: ")] == said
    assert "importing" in of_release.stdout
    again = run_chat(str(release), *drawn, f"--imported={tmp_path}/imported", lines=lines)
    assert "importing" not in again.stdout and "model: " in again.stdout


@pytest.mark.parametrize(
    "given,message",
    [
        ({"top_k": 5}, "need a --temperature"),
        ({"temperature": 1e-8}, "at least 0.0001"),
        ({"top_p": 2.0, "temperature": 1.0}, "top_p 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, float], message: str) -> None:
    flags.FLAGS(["chat"])
    with flagsaver.flagsaver(**given), pytest.raises(UserError, match=message):
        chat._options()


def test_flags_change_one_setting_of_the_named_ones() -> None:
    flags.FLAGS(["chat"])
    assert chat._options() == AnswerOptions(max_new_tokens=128)
    with flagsaver.flagsaver(sampling="released", top_p=0.9, seed=4):
        assert chat._options() == AnswerOptions(max_new_tokens=512, temperature=1.0, top_p=0.9, seed=4)
