"""The command `python -m qwenvl_jax.audit`: what it writes, what it loads, and how it ends on mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Runs main for each line of arguments in a forked process, and says at the end what each has loaded.
DRIVER = """
import os, sys
from jax._src import xla_bridge
from qwenvl_jax import audit
from qwenvl_jax.runtime import commandline
for line in sys.stdin.read().splitlines():
    child = os.fork()
    if not child:
        os.dup2(1, 2)
        sys.argv = ["audit", *line.split("\\t")]
        try:
            commandline.run(audit.main)
        except SystemExit as exit:
            heavy = {"torch", "tensorflow", "flax", "qwenvl_jax.models"} & set(sys.modules)
            print("backends", len(xla_bridge._backends), "heavy", len(heavy), flush=True)
            os._exit(exit.code or 0)
    print("===", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


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
    run = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input="\n".join("\t".join(line) for line in lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    outcomes = re.split(r"=== (\d+)\n", run.stdout)
    codes = [int(code) for code in outcomes[1::2]]
    assert codes == [0, *[2] * (len(lines) - 1)], run.stdout
    for said, expected in zip(outcomes[::2], lines.values(), strict=False):
        assert expected in said and "Traceback" not in said
        assert "backends 0 heavy 0" in said
    assert sorted(path.name for path in output.iterdir()) == ["audit.html", "audit.json", "notes.txt"]
    numbers = json.loads((output / "audit.json").read_text())
    assert [own["name"] for own in numbers["sources"]] == ["caption", "vqa", "text"]
    assert [own["samples"] for own in numbers["sources"]] == [20, 10, 10]
    assert (output / "audit.html").read_text().startswith("<!doctype html>")
