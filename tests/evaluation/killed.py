"""A sweep in another process that is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from qwenvl_jax.evaluation.config import EvalConfig

ROOT = Path(__file__).parents[2]
SWEEP_IN_SMALL_PARTS = """
import json, sys
from qwenvl_jax.config import from_config_dict
from qwenvl_jax.evaluation.results import answers
from qwenvl_jax.evaluation.config import EvalConfig
from qwenvl_jax.evaluation.sweep import sweep

answers.PART_SECONDS = 0.0
sweep(from_config_dict(EvalConfig, json.load(open(sys.argv[1]))))
"""


def kill_after_the_first_part(config: EvalConfig, parts: Path, tmp_path: Path) -> None:
    """Runs a sweep in another process and kills it as soon as it has written a part of its answers."""
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([sys.executable, "-c", SWEEP_IN_SMALL_PARTS, str(path)], cwd=ROOT, env=environment)
    while not (parts.exists() and list(parts.glob("*/*.json"))):
        assert running.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.002)
    running.kill()
    assert running.wait() == -signal.SIGKILL
