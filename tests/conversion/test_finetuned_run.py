"""A run of adapters that was trained, not made up: its release and its files for PEFT, by the commands."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwenvl_jax.config import LoraConfig
from qwenvl_jax.training import loop
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]


def convert(*arguments: str) -> None:
    command = [sys.executable, "-m", "qwenvl_jax.convert", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def logits(model: Any) -> np.ndarray:
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 300, (2, 30)))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.numpy()


@pytest.mark.slow
def test_the_release_of_a_trained_run_is_the_base_with_its_adapters(tiny_data: Path, tmp_path: Path) -> None:
    base = tiny_run.make_config(tiny_data, train__steps=6)
    loop.train(base, tmp_path / "base")
    init = {f"init__{tower}": str(tmp_path / "base") for tower in ("vit", "resampler", "decoder")}
    config = tiny_run.make_config(
        tiny_data, **init, init__stage="multitask", train__stage="sft",
        train__trainable=("vit",), train__steps=8, optimizer__peak_learning_rate=3e-2,
    )  # fmt: skip
    train = dataclasses.replace(config.train, trainable=("lora",))
    loop.train(dataclasses.replace(config, lora=LoraConfig(rank=4, alpha=8.0), train=train), tmp_path / "run")

    convert("release", f"--workdir={tmp_path}/run", f"--output={tmp_path}/merged")
    assert json.loads((tmp_path / "merged" / "parity.json").read_text())["passed"] is True
    convert("adapters", f"--workdir={tmp_path}/run", f"--output={tmp_path}/adapters")
    convert("release", f"--workdir={tmp_path}/base", f"--output={tmp_path}/released_base")

    merged, released = (
        AutoModelForCausalLM.from_pretrained(str(tmp_path / name), trust_remote_code=True)
        for name in ("merged", "released_base")
    )
    expected = logits(merged)
    before = logits(released)
    adapted = logits(peft.PeftModel.from_pretrained(released, str(tmp_path / "adapters")))
    scale = np.abs(expected).max()
    assert np.abs(before - expected).max() > 1e-2 * scale
    np.testing.assert_allclose(adapted, expected, atol=1e-5 * scale)
