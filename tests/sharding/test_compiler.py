"""XLA's options of the step: which chip gets which. The compiler takes them in `tests/planning`."""

from __future__ import annotations

import functools
import types
from typing import Any

import jax
import numpy as np
import pytest

from configs.meshes import tpu
from qwenvl_jax.models import qwen_vl
from qwenvl_jax.sharding.compiler import BESIDE_KERNELS, compiler_options, options_for_quick_compilation
from tests.support import tiny_run

TPUS = ("TPU v4", "TPU v5p", "TPU v5 lite", "TPU v6 lite", "TPU7x")  # JAX's names


def options(kind: str, chips: int = 4, chosen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Those of a mesh of `chips` devices of the kind; of a mesh only its devices matter."""
    device = types.SimpleNamespace(platform="tpu" if kind in TPUS else kind, device_kind=kind)
    mesh: Any = types.SimpleNamespace(devices=np.full((chips, 1, 1), device), size=chips)
    return compiler_options(mesh, chosen)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_options_of_tpus_go_to_tpus_alone(kind: str) -> None:
    assert options(kind) == {}
    assert options(kind, chosen=("xla_cpu_a=1",)) == {"xla_cpu_a": "1"}


def test_fresh_weights_have_the_same_bits_however_quickly_they_are_compiled() -> None:
    config = tiny_run.make_config()
    draw = functools.partial(qwen_vl.init_params, config.model, jax.random.key(0))
    quick = jax.jit(draw, compiler_options=options_for_quick_compilation("cpu"))()
    for one, other in zip(jax.tree.leaves(quick), jax.tree.leaves(jax.jit(draw)()), strict=True):
        np.testing.assert_array_equal(one, other)
    assert options_for_quick_compilation("tpu") is None and options_for_quick_compilation("gpu") is None


@pytest.mark.parametrize("kind", TPUS)
def test_one_chip_has_no_options_of_collectives(kind: str) -> None:
    assert set(options(kind, chips=1)) <= {"xla_tpu_scoped_vmem_limit_kib"}
    assert options(kind)["xla_tpu_enable_async_collective_fusion"] is True


@pytest.mark.parametrize("kind", TPUS)
def test_collectives_of_sparse_cores_are_no_part_of_a_fusion(kind: str) -> None:
    """A fusion runs on the TensorCore; a collective in one cannot run on a SparseCore."""
    selected = options(kind)
    offloaded = {name for name, value in selected.items() if "sparse_core_collective_offload" in name and value}
    fused = {name for name, value in selected.items() if "async_collective_fusion_fuse" in name and value}
    assert not (offloaded and fused) and (offloaded or fused)


@pytest.mark.parametrize("kind", TPUS)
def test_the_config_overrules(kind: str) -> None:
    selected = options(
        kind, chosen=("xla_tpu_scoped_vmem_limit_kib=8192", "xla_tpu_enable_async_collective_fusion=false")
    )
    assert selected["xla_tpu_scoped_vmem_limit_kib"] == "8192"
    assert selected["xla_tpu_enable_async_collective_fusion"] == "false"
    assert set(selected) == set(options(kind)) | {"xla_tpu_scoped_vmem_limit_kib"}


def test_recipes_choose_what_chips_of_one_core_get() -> None:
    name, _, value = tpu.BESIDE_KERNELS.partition("=")
    assert {name: value == "true"} == BESIDE_KERNELS
