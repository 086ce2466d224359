"""The arithmetic of a step against what XLA compiles."""

from __future__ import annotations

import dataclasses

import pytest

from qwenvl_jax.config import Config, MeshConfig, load_config
from qwenvl_jax.models.flops import Work, forward_flops, full_work, training_flops
from qwenvl_jax.sharding.batch import abstract_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import make_train_step
from tests.support import hlo_flops, tiny_run

STAGES = {
    "text": ("decoder",),
    "pretrain": ("vit", "vit_head", "resampler"),
    "multitask": ("vit", "vit_head", "resampler", "decoder"),
    "sft": ("resampler", "decoder"),
}


def stage_config(stage: str) -> Config:
    """A small model whose matrix products outweigh everything else, as in the full one."""
    config = tiny_run.make_config(
        train__stage=stage,
        train__trainable=STAGES[stage],
        data__sequence_length=96,
        data__rows_per_step=4,
        data__image_size=56,
        data__images_per_row=0.0 if stage == "text" else 1.0,
        compute__loss_chunk=10_000,
    )
    vit = dataclasses.replace(config.model.vit, width=128, mlp_dim=512, layers=3, position_grid=4)
    decoder = dataclasses.replace(config.model.decoder, width=128, mlp_dim=344, layers=3)
    resampler = dataclasses.replace(config.model.resampler, query_grid=4)
    model = dataclasses.replace(config.model, vit=vit, decoder=decoder, resampler=resampler)
    return dataclasses.replace(config, model=model)


def compiled_flops(config: Config) -> float:
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1, slices=1, max_replicated_bytes=0))
    abstract = abstract_state(config, mesh)
    lowered = make_train_step(config, mesh, abstract).lower(abstract, abstract_batch(config, mesh))
    return hlo_flops.count(lowered.compile().as_text())


@pytest.mark.parametrize(
    "stage", ["pretrain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("text", "multitask", "sft"))]
)
def test_compiled_step_has_the_operations_of_the_arithmetic(stage: str) -> None:
    config = stage_config(stage)
    expected = sum(training_flops(config, causal_share=1.0).values())
    assert compiled_flops(config) == pytest.approx(expected, rel=0.02)


def test_windows_save_the_operations_that_xla_does_not_compile() -> None:
    config = stage_config("pretrain")
    vit = dataclasses.replace(config.model.vit, window=2, global_every=2)  # 4 x 4 patches
    windowed = dataclasses.replace(config, model=dataclasses.replace(config.model, vit=vit))
    expected = sum(training_flops(windowed, causal_share=1.0).values())
    assert expected < sum(training_flops(config, causal_share=1.0).values())
    assert compiled_flops(windowed) == pytest.approx(expected, rel=0.02)


def test_stage_1_computes_no_weight_gradient_of_the_decoder() -> None:
    frozen = training_flops(stage_config("pretrain"))
    trained = training_flops(stage_config("multitask"))
    forward = dict.fromkeys(("decoder", "lm_head"), 0.0)
    for product in forward_flops(stage_config("pretrain"), full_work(stage_config("pretrain"))):
        if product.part in forward and product.component:
            forward[product.part] += product.forward
    for part, flops in forward.items():
        assert trained[part] - frozen[part] == pytest.approx(flops)


def test_full_size_stage_1_costs_less_than_three_forwards() -> None:
    """11.6 TFLOP per sample with 100 text tokens: 2x the forward of the decoder, 3x that of the ViT."""
    from configs import stage1_pretrain

    config = load_config(stage1_pretrain.get_config())
    flops = training_flops(config, Work(tokens=358, context=358, supervised=100, images=1))
    assert sum(flops.values()) == pytest.approx(11.6e12, rel=0.1)
