"""The command `python -m qwenvl_jax.audit`: what it writes, what it loads, and how it ends on mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.commands import run_commands

ROOT = Path(__file__).parents[2]

# Each command says at its end what it has loaded.
AT_END = """
from jax._src import xla_bridge
heavy = {"torch", "tensorflow", "flax", "qwenvl_jax.models"} & set(sys.modules)
print("backends", len(xla_bridge._backends), "heavy", len(heavy), flush=True)
"""


def test_the_former_name_of_the_command_says_the_new_one() -> None:
    command = [sys.executable, "-m", "qwenvl_jax.data.audit", "--output=x"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: the audit is now a command of its own; write python -m qwenvl_jax.audit\n"


def test_the_command(tiny_data: Path, tmp_path: Path) -> None:
    """Tables, both files, no device; one sentence and exit code 2 for every mistake."""
    config = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}:{tiny_data}"
    output, blocked = tmp_path / "seen", tmp_path / "a file"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "audit.html").write_text("old")
    blocked.write_text("")
    lines = {
        (config, f"--output={output}", "--samples=40", "--shown=1"): "supervision in the first 40 samples",
        (config,): "error: --output is missing",
        (config, f"--output={output}", "--samples=0"): "error: --samples must be at least 1",
        (config, f"--output={output}", "--sample=9"): "error: unknown flag --sample; did you mean 'samples'?",
        (config, f"--output={output}", "--config.data.sequence_lengt=9"): "did you mean 'sequence_length'",
        (
            config,
            f"--output={output}",
            "--config.tokenizer.path=none.model",
        ): "the vocabulary none.model does not exist",
        (config, f"--output={output}", "--config.model.decoder.vocab_size=8"): "choose a smaller vocabulary",
        (config, f"--output={blocked}"): "name another path",
        (config, "stray"): "unexpected argument 'stray'",
    }
    answers = run_commands("qwenvl_jax.audit", list(lines), at_end=AT_END)
    assert [answer.code for answer in answers] == [0, *[2] * (len(lines) - 1)], answers
    for answer, expected in zip(answers, lines.values(), strict=True):
        assert expected in answer.text and "Traceback" not in answer.text
        assert "backends 0 heavy 0" in answer.text
    assert sorted(path.name for path in output.iterdir()) == ["audit.html", "audit.json", "notes.txt"]
    numbers = json.loads((output / "audit.json").read_text())
    assert [source["name"] for source in numbers["sources"]] == ["caption", "vqa", "text"]
    assert [source["samples"] for source in numbers["sources"]] == [20, 10, 10]
    assert (output / "audit.html").read_text().startswith("<!doctype html>")
