"""The training step is a CUDA program: lowered on a CPU, with cuDNN's attention and everything that it refuses.

Nothing runs, and no library of NVIDIA is needed but its version, which is made up here.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from qwenvl_jax.models.attention import attention
from qwenvl_jax.sharding.batch import abstract_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.state import abstract_state
from qwenvl_jax.training.step import make_train_step
from tests.support import tiny_run


@pytest.fixture(autouse=True)
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91200)


def calls(function: Any, *args: Any) -> dict[str, int]:
    """How often the lowered program calls each kernel of cuDNN."""
    text = function.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    names = re.findall(r"custom_call @__cudnn\$(\w+)\(", text)
    return {name: names.count(name) for name in sorted(set(names))}


def gradient(causal: bool = False) -> Any:
    """Of the attention by queries and keys; within segments if it is causal."""

    def loss(q: jax.Array, k: jax.Array, ids: jax.Array) -> jax.Array:
        segment_ids = ids if causal else None
        out = attention(q, k, k, segment_ids_BL=segment_ids, causal=causal, implementation="cudnn")
        return jnp.sum(out.astype(jnp.float32))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def shapes(queries: int, keys: int, size: int) -> tuple[Any, ...]:
    q, k = (jax.ShapeDtypeStruct((2, length, 2, size), jnp.bfloat16) for length in (queries, keys))
    return q, k, jax.ShapeDtypeStruct((2, queries), jnp.int32)


def test_attention_of_the_vit_has_heads_of_104() -> None:
    assert calls(gradient(), *shapes(256, 256, 104)) == {"fmhaSoftmax": 1, "fmhaSoftmaxBackward": 1}


def test_attention_of_the_resampler_has_more_keys_than_queries() -> None:
    assert calls(gradient(), *shapes(256, 1024, 128)) == {"fmhaSoftmax": 1, "fmhaSoftmaxBackward": 1}


def test_attention_of_the_decoder_is_causal_within_segments() -> None:
    assert list(calls(gradient(causal=True), *shapes(512, 512, 128)).values()) == [1, 1]  # forward and backward


def full_step(trainable: tuple[str, ...], remat: str) -> dict[str, int]:
    config = tiny_run.make_config(
        train__trainable=trainable,
        compute__compute_dtype="bfloat16",
        compute__frozen_dtype="bfloat16",
        compute__attention="cudnn",
        compute__remat_vit=remat,
        compute__remat_decoder=remat,
        compute__unroll_layers=False,
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state, batch = abstract_state(config, mesh), abstract_batch(config, mesh)
    with jax.set_mesh(mesh):
        step = make_train_step(config, mesh, state)
        return calls(step.jitted, state.step, state.trainable, state.opt_state, state.means, state.frozen, batch)


@pytest.mark.parametrize(
    "trainable",
    [("vit", "vit_head", "resampler"), ("vit", "vit_head", "resampler", "decoder"), ("resampler", "decoder")],
    ids=["stage1", "stage2", "stage3"],
)
def test_the_step_lowers_for_cuda(trainable: tuple[str, ...]) -> None:
    kernels = full_step(trainable, "full")
    backward = sum(count for name, count in kernels.items() if name.endswith("Backward"))
    # One loop over the ViT's layers, the resampler, one loop over the decoder's; a frozen ViT has no backward pass.
    assert backward == (3 if "vit" in trainable else 2), kernels


@pytest.mark.parametrize(("remat", "forward"), [("full", 5), ("attention_saved", 3), ("matmuls_saved", 3)])
def test_a_kept_attention_is_not_computed_again(remat: str, forward: int) -> None:
    kernels = full_step(("vit", "vit_head", "resampler", "decoder"), remat)
    assert sum(count for name, count in kernels.items() if not name.endswith("Backward")) == forward, kernels
