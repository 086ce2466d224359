"""Runs of adapters with values that nobody trained, so that a test has them at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.manager import Checkpoints, save_frozen
from qwenvl_jax.config import Config, LoraConfig
from qwenvl_jax.models import lora
from qwenvl_jax.params import LORA_B, Params, flatten, split, unflatten


def configure(config: Config, targets: tuple[str, ...], vocabulary: bool) -> Config:
    """The config of a run that trains adapters of some projections, and maybe the vocabulary."""
    trainable = ("lora", "vocabulary") if vocabulary else ("lora",)
    return dataclasses.replace(
        config,
        lora=LoraConfig(rank=4, alpha=6.0, dropout=0.0, targets=targets),
        train=dataclasses.replace(config.train, trainable=trainable),
    )


def with_adapters(config: Config, params: Params) -> Params:
    """The base with adapters that are not zero, and another vocabulary if that is trained."""
    rng = np.random.default_rng(7)
    leaves = flatten(lora.init_params(config.model, config.lora, jax.random.key(1))) | flatten(params)
    for path, leaf in leaves.items():
        vocabulary = path[-1] in ("embedding", "lm_head") and "vocabulary" in config.train.trainable
        if path[-1] == LORA_B or vocabulary:
            leaves[path] = np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
    return unflatten(leaves)


def write_run(config: Config, params: Params, workdir: Path) -> Path:
    """Saves parameters as the last checkpoint of such a run, and returns its folder."""
    trainable, frozen = split(jax.tree.map(jnp.asarray, params), config.train.trainable)
    lineage.begin(workdir, config)
    save_frozen(workdir, frozen)
    lineage.write(workdir, config, dict.fromkeys(("vit", "resampler", "decoder")))
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(config.train.steps, trainable, {"count": jnp.zeros(())}, {})
    return workdir
