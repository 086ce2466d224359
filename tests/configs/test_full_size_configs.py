"""The three full-size stages: every number of Table 8, the mixtures of Tables 2 and 3, the meshes."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from configs import stage1_pretrain, stage2_multitask, stage3_sft
from qwenvl_jax.config import Config, load_config

ROOT = Path(__file__).parents[2]
STAGES = {"pretrain": stage1_pretrain, "multitask": stage2_multitask, "sft": stage3_sft}


def load(stage: str, **arguments: str) -> Config:
    return load_config(STAGES[stage].get_config(**arguments))


def load_rows(stage: str, **arguments: str) -> Config:
    """With the batch of the paper read as packed rows; in stage 1 every row is a sample."""
    return load(stage, **arguments, **({} if stage == "pretrain" else {"batch": "rows"}))


# Table 8: pixels, sequence, peak, minimum, steps, warm-up, global batch, layer decay, trained. The batch is read as
# rows; tests/configs/test_recommended.py has the other reading.
TABLE_8 = {
    "pretrain": (224, 512, 2e-4, 1e-6, 50_000, 500, 30_720, 0.95, {"vit", "vit_head", "resampler"}),
    "multitask": (448, 2048, 5e-5, 1e-5, 19_000, 400, 4096, 0.95, {"vit", "vit_head", "resampler", "decoder"}),
    "sft": (448, 2048, 1e-5, 1e-6, 8000, 3000, 128, 1.0, {"resampler", "decoder"}),
}


@pytest.mark.parametrize("stage", TABLE_8)
def test_numbers_of_table_8(stage: str) -> None:
    config = load_rows(stage)
    data, optimizer = config.data, config.optimizer
    numbers = (
        data.image_size,
        data.sequence_length,
        optimizer.peak_learning_rate,
        optimizer.min_learning_rate,
        config.train.steps,
        optimizer.warmup_steps,
        data.rows_per_step,
        optimizer.vit_layer_decay,
        set(config.train.trainable),
    )
    assert numbers == TABLE_8[stage]
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.98, 1e-6)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.05, 1.0)
    assert config.model.resampler.queries == 256
    assert config.train.stage == stage


def test_accumulation_of_table_8() -> None:
    # TPUs have other microbatches.
    assert [load_rows(stage, mesh="gpu").data.accumulation for stage in STAGES] == [6, 8, 8]


def test_mixture_of_stage_1() -> None:
    weights = {source.name: source.weight for source in load("pretrain").data.mixture}
    chinese = weights["laion_zh"] + weights["in_house_zh"]
    assert sum(weights.values()) == pytest.approx(1417.4)  # 1.4 billion pairs
    assert chinese / sum(weights.values()) == pytest.approx(0.227, abs=0.003)  # 22.7 % Chinese


def test_mixture_of_stage_2() -> None:
    weights = {source.task: source.weight for source in load("multitask").data.mixture}
    assert sum(weights.values()) == pytest.approx(76.8)
    assert weights["ocr"] == 24.8 and len(weights) == 7


def test_stages_follow_one_another() -> None:
    folders = [load(stage, mesh="v5p", data="gs://d", runs="gs://r").init for stage in STAGES]
    assert (folders[0].stage, folders[0].vit, folders[0].resampler) == ("import", "gs://r/openclip_bigg", "")
    assert (folders[1].stage, folders[1].vit) == ("pretrain", "gs://r/stage1_pretrain")
    assert (folders[2].stage, folders[2].decoder) == ("multitask", "gs://r/stage2_multitask")
    assert load("sft", data="gs://d").data.mixture[0].records == "gs://d/sft/dialogue"


def test_an_unknown_mesh_is_refused() -> None:
    with pytest.raises(ValueError, match="not one of cpu"):
        stage1_pretrain.get_config(mesh="v9")


def test_configs_import_nothing_but_configs_and_the_schema() -> None:
    allowed = {"ml_collections", "configs", *sys.stdlib_module_names}
    for path in sorted((ROOT / "configs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed or name == "qwenvl_jax.config.schema", f"{path}: {name}"
