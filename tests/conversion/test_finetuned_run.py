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

from qwenvl_jax.checkpoint.restore import deferred_params, load_params
from qwenvl_jax.checkpoint.starting_point import find_starting_point
from qwenvl_jax.config import Config, LoraConfig
from qwenvl_jax.conversion import from_torch, peft_adapters, to_torch
from qwenvl_jax.models import quantised
from qwenvl_jax.params import flatten, unflatten
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


def adapters_of(data: Path, base: Path, stage: str, *, kernels: str = "plain", rate: float = 3e-2) -> Config:
    """A short run of adapters that starts from `base`, a run of the stage `stage`."""
    init = {f"init__{tower}": str(base) for tower in ("vit", "resampler", "decoder")}
    config = tiny_run.make_config(
        data, **init, init__stage=stage, train__stage="sft", train__trainable=("vit",), train__steps=6,
        optimizer__peak_learning_rate=rate, optimizer__min_learning_rate=0.0,
    )  # fmt: skip
    return dataclasses.replace(
        config,
        lora=LoraConfig(rank=4, alpha=8.0),
        compute=dataclasses.replace(config.compute, frozen_kernels=kernels),
        train=dataclasses.replace(config.train, trainable=("lora",)),
    )


def weights(workdir: Path) -> dict[Any, np.ndarray]:
    """All weights of a run, its adapters merged, in float32."""
    return {path: np.asarray(leaf, np.float32) for path, leaf in flatten(load_params(workdir)[0]).items()}


def assert_close(ours: dict[Any, np.ndarray], theirs: dict[Any, np.ndarray], atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], atol=atol, err_msg="/".join(path))


@pytest.mark.slow
def test_a_run_beside_quantised_kernels_goes_out_and_comes_back(tiny_data: Path, tmp_path: Path) -> None:
    """Its release holds the quantised base with the adapters; the files for PEFT hold the adapters alone."""
    loop.train(tiny_run.make_config(tiny_data, train__steps=6), tmp_path / "base")
    loop.train(adapters_of(tiny_data, tmp_path / "base", "multitask", kernels="nf4"), tmp_path / "run")
    base, trained = weights(tmp_path / "base"), weights(tmp_path / "run")

    to_torch.release(*deferred_params(tmp_path / "run"), tmp_path / "merged")
    from_torch.import_release(tmp_path / "merged", tmp_path / "imported")
    assert_close(weights(tmp_path / "imported"), trained, 1e-6)

    peft_adapters.export(find_starting_point(tmp_path / "run"), tmp_path / "adapters")
    to_torch.release(*deferred_params(tmp_path / "base"), tmp_path / "released_base")
    from_torch.import_release(tmp_path / "released_base", tmp_path / "adapted", adapters=tmp_path / "adapters")
    adapted = weights(tmp_path / "adapted")
    beside = flatten(load_params(tmp_path / "run", adapters_apart=True)[0])
    stored = quantised.kernels(unflatten(beside))
    rounded = {path: np.asarray(quantised.dequantise(leaves)) for path, leaves in stored.items()}
    assert rounded and all(np.abs(rounded[path] - base[path]).max() > 1e-4 for path in rounded)
    update = {path: trained[path] - rounded.get(path, base[path]) for path in base}
    assert max(np.abs(leaf).max() for leaf in update.values()) > 1e-2
    assert_close({path: adapted[path] - base[path] for path in base}, update, 1e-6)

    # LoRA that follows starts from the quantised base with its adapters.
    loop.train(adapters_of(tiny_data, tmp_path / "run", "sft", rate=1e-12), tmp_path / "following")
    assert_close(weights(tmp_path / "following"), trained, 1e-8)


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
