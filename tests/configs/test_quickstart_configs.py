"""The quickstart's trainings are valid in every size, and the size for a GPU is the one that is promised."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import pytest

from configs.quickstart import stage0_text, stage1_pretrain, stage2_multitask, stage3_sft
from qwenvl_jax.config import load_config
from qwenvl_jax.models import qwen_vl

FOLDER = Path(__file__).parents[2] / "configs" / "quickstart"
TRAININGS = [path.stem for path in sorted(FOLDER.glob("*.py")) if "python -m qwenvl_jax.train" in path.read_text()]
STAGES = (stage0_text, stage1_pretrain, stage2_multitask, stage3_sft)


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_are_valid(name: str) -> None:
    load_config(importlib.import_module(f"configs.quickstart.{name}").get_config())


def test_all_trainings_are_found() -> None:
    assert {"taste", "corpora", "finetune_catalogue", "finetune_lora", "stage2_multitask"} < set(TRAININGS)


def test_the_size_for_a_gpu_has_100_million_parameters() -> None:
    for module in STAGES:
        config = load_config(module.get_config(size="100m"))
        assert 95e6 < sum(leaf.size for leaf in jax.tree.leaves(qwen_vl.abstract_params(config.model))) < 105e6
        assert config.compute.attention == "cudnn"
        small = load_config(module.get_config())
        assert small.data.rows_per_step == 8, "for 1, 2, 4 or 8 devices"
        assert config.data.rows_per_step == 64
        assert config.train.steps == 2 * small.train.steps and config.data.mixture == small.data.mixture
        assert config.data.image_size > small.data.image_size
        with pytest.raises(ValueError, match="size=large is not one of small, 100m"):
            module.get_config(size="large")
