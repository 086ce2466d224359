"""Mesh sizes, the table of partitions against the real parameter tree, the replication check."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from configs import model as models
from qwenvl_jax.config import LORA_TARGETS, LoraConfig, MeshConfig, ModelConfig, from_config_dict
from qwenvl_jax.models import lora, quantised, qwen_vl
from qwenvl_jax.models.layers import Projection
from qwenvl_jax.params import flatten
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import check_batch
from qwenvl_jax.sharding.mesh import AXES, abstract_mesh, check_memory, config_of, make_mesh, mesh_shape
from qwenvl_jax.sharding.report import check_replicated, parameter_lines
from qwenvl_jax.sharding.rules import LOGICAL_AXES, check_heads, kernel_axes, param_spec
from tests.support.chips import chips, grid_mesh


def mesh_of(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, tensor), AXES)


def model_of(name: str) -> ModelConfig:
    values = {"full": models.qwen_vl_9b6, "tiny": models.tiny}[name]()
    return from_config_dict(ModelConfig, dict(values.items()))


def shapes(name: str) -> dict:
    return qwen_vl.abstract_params(model_of(name))


@pytest.mark.parametrize(
    ("sizes", "devices", "expected"),
    [
        ((-1, 1, 1), 1, (1, 1, 1)),
        ((-1, 64, 1), 512, (8, 64, 1)),
        ((1, -1, 2), 8, (1, 4, 2)),
        ((2, 2, 2), 8, (2, 2, 2)),
    ],
)
def test_mesh_takes_what_is_left(sizes: tuple[int, int, int], devices: int, expected: tuple[int, int, int]) -> None:
    assert mesh_shape(MeshConfig(*sizes, slices=1, max_replicated_bytes=0), devices) == expected


def test_slices_multiply_the_data_axis() -> None:
    config = MeshConfig(data=-1, fsdp=64, tensor=1, slices=4, max_replicated_bytes=0)
    assert mesh_shape(config, 1024) == (4, 64, 1)


@pytest.mark.parametrize(("sizes", "slices"), [((3, 1, 1), 1), ((-1, 3, 1), 1), ((1, 1, 1), 1), ((-1, 1, 1), 3)])
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int, int], slices: int) -> None:
    with pytest.raises(UserError, match="devices"):
        mesh_shape(MeshConfig(*sizes, slices=slices, max_replicated_bytes=0), 8)


def test_every_projection_finds_its_kernel_in_the_table() -> None:
    """By its module's path, and with it the axis that it gathers and the one that stays split."""
    model = from_config_dict(ModelConfig, dict(models.tiny().items()))
    projections = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, Projection):
            projections["/".join(context.module.path)] = context.module
        return call(*args, **kwargs)

    untraced: Any = qwen_vl.init_params
    with nn.intercept_methods(record):
        jax.eval_shape(lambda key: untraced.__wrapped__(model, key), jax.random.key(0))
    kernels = {name.removesuffix("/kernel") for name in LOGICAL_AXES if name.endswith("/kernel")}
    assert set(projections) == kernels - {"vit/patch_embed"}
    for name, module in projections.items():
        path = (*name.split("/"), "kernel")
        layers = (1,) if "blocks" in path else ()
        axes = kernel_axes(path)
        for name, axis, mesh in (("fsdp", axes.fsdp, mesh_of(1, 2, 1)), ("tensor", axes.tensor, mesh_of(1, 1, 2))):
            spec = param_spec(path, (*layers, *module.inputs, *module.outputs), mesh)
            assert (spec.index(name) - len(layers) if name in spec else None) == axis, path


def test_the_table_names_every_parameter_and_axis() -> None:
    everywhere = LoraConfig(rank=64, targets=tuple(LORA_TARGETS))
    tree = lora.abstract_params(model_of("full"), everywhere)
    params = flatten(tree)
    for scheme in ("int8", "nf4"):
        params |= flatten(quantised.abstract(tree, scheme))
    assert params.keys() >= flatten(shapes("full")).keys()
    assert {"/".join(path) for path in params} == set(LOGICAL_AXES)
    for path, leaf in params.items():
        assert len(LOGICAL_AXES["/".join(path)]) == leaf.ndim, path


@pytest.mark.parametrize("sizes", [(8, 64, 1), (2, 128, 1), (4, 16, 1), (1, 8, 8), (1, 16, 16)])
def test_the_full_model_fits_the_meshes_of_the_configs(sizes: tuple[int, int, int]) -> None:
    rows = parameter_lines(shapes("full"), mesh_of(*sizes))
    assert sum(row.bytes_total for row in rows) == 4 * 9_656_935_168
    # All but norms, biases and the like is split over fsdp x tensor.
    ideal = sum(row.bytes_total for row in rows) / (sizes[1] * sizes[2])
    assert sum(row.bytes_per_device for row in rows) < 1.25 * ideal
    assert max(row.bytes_total for row in rows if row.replicated) < 8 * 2**20


def test_the_width_of_the_vit_is_not_split_256_ways() -> None:
    with pytest.raises(UserError, match=r"vit/blocks/attn/qkv/kernel .*cannot be split 256 ways .*axis of 1664"):
        param_spec(("vit", "blocks", "attn", "qkv", "kernel"), (48, 1664, 3, 16, 104), mesh_of(1, 256, 1))
    with pytest.raises(UserError, match="cannot be split 256 ways"):
        parameter_lines(shapes("full"), mesh_of(1, 256, 1))


def test_specs_of_a_decoder_block() -> None:
    mesh = mesh_of(2, 4, 2)
    assert param_spec(("decoder", "blocks", "mlp", "up", "kernel"), (2, 32, 48), mesh) == P(None, "fsdp", "tensor")
    assert param_spec(("decoder", "blocks", "mlp", "down", "kernel"), (2, 48, 32), mesh) == P(None, ("tensor", "fsdp"))
    assert param_spec(("decoder", "lm_head"), (32, 64), mesh_of(8, 1, 1)) == P()


def test_a_big_replicated_parameter_fails_the_run() -> None:
    mesh = mesh_of(8, 1, 1)
    rows = parameter_lines(shapes("tiny"), mesh)
    assert all(row.replicated for row in rows)
    check_replicated(rows, mesh, 0)
    check_replicated(rows, mesh, 2**20)
    with pytest.raises(UserError, match=r"patch_embed/kernel .* held whole"):
        check_replicated(rows, mesh, 2**10)


def test_rows_must_divide_over_the_mesh() -> None:
    check_batch(8, mesh_of(2, 4, 1))
    with pytest.raises(UserError, match="6 rows"):
        check_batch(6, mesh_of(2, 2, 2))


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 16])
def test_heads_that_divide(parts: int) -> None:
    check_heads(model_of("full"), mesh_of(1, 1, parts))


@pytest.mark.parametrize(("parts", "fitting"), [(3, "1 or 2"), (32, "1 or 2 or 4 or 8 or 16")])
def test_heads_must_divide_over_the_mesh(parts: int, fitting: str) -> None:
    with pytest.raises(UserError, match=rf"mesh.tensor {parts} .*vit 16, resampler 32, decoder 32\); take {fitting}$"):
        check_heads(model_of("full"), mesh_of(1, 1, parts))


def test_a_hidden_width_that_does_not_divide_is_named() -> None:
    with pytest.raises(UserError, match=r"mlp/down/kernel .* 512 ways over tensor x fsdp along its axis of 11008"):
        parameter_lines(shapes("full"), mesh_of(1, 64, 8))


def test_a_mesh_of_sizes_is_that_of_devices() -> None:
    config = MeshConfig(data=-1, fsdp=1, tensor=1, slices=1, max_replicated_bytes=0)
    assert make_mesh(config).abstract_mesh.shape == abstract_mesh(config, jax.device_count()).shape
    slices = abstract_mesh(MeshConfig(data=-1, fsdp=64, tensor=1, slices=4, max_replicated_bytes=0), 2048)
    assert dict(slices.shape) == {"data": 32, "fsdp": 64, "tensor": 1}
    with pytest.raises(UserError, match="devices"):
        abstract_mesh(MeshConfig(data=3, fsdp=1, tensor=1, slices=1, max_replicated_bytes=0), 8)


def test_a_memory_that_the_backend_lacks_is_refused() -> None:
    mesh = make_mesh(MeshConfig(-1, 1, 1, 1, 0))
    check_memory("device", mesh)
    with pytest.raises(UserError, match=r"moments_memory is 'disk', but the backend 'cpu' has only device.*'device'$"):
        check_memory("disk", mesh)


def test_one_device_makes_a_mesh() -> None:
    mesh = make_mesh(MeshConfig(-1, 1, 1, 1, 0))
    assert mesh.axis_names == AXES and mesh.size == jax.device_count()
    sharded = jax.device_put(jnp.ones(4), jax.sharding.NamedSharding(mesh, P(("data", "fsdp"))))
    assert sharded.shape == (4,)


def test_a_config_with_two_open_axes_is_refused() -> None:

    from qwenvl_jax.config import validate
    from tests.support import tiny_run

    config = tiny_run.make_config()
    with pytest.raises(UserError, match="at most one of them -1"):
        validate(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=-1)))


@pytest.mark.parametrize(
    ("sides", "slices", "sizes", "shape"),
    [
        ((4, 4, 12), 1, (-1, 32, 1), (6, 32, 1)),
        ((4, 4, 4), 3, (-1, 64, 1), (3, 64, 1)),
        ((4, 4, 12), 2, (-1, 16, 2), (12, 16, 2)),
    ],
)
def test_odd_pods_get_a_mesh_whose_slices_lie_along_data(
    sides: tuple[int, int, int],
    slices: int,
    sizes: tuple[int, int, int],
    shape: tuple[int, int, int],
) -> None:
    config = MeshConfig(*sizes, slices=slices, max_replicated_bytes=0)
    grid = grid_mesh(config, chips(sides, slices)).devices
    assert grid.shape == shape and len({chip.id for chip in grid.flat}) == grid.size
    per_slice = shape[0] // slices
    for index, rows in enumerate(grid):
        assert {chip.slice_index for chip in rows.flat} == {index // per_slice}


@pytest.mark.parametrize(
    ("sides", "slices", "config", "words"),
    [
        ((4, 4, 4), 3, MeshConfig(-1, 64, 1, 1, 0), "config.mesh.slices is 1, but the 192 chips lie in 3 slices"),
        ((4, 4, 12), 1, MeshConfig(-1, 64, 1, 3, 0), "config.mesh.slices is 3, but the 192 chips lie in 1 slice;"),
        ((4, 4, 12), 1, MeshConfig(-1, 64, 1, 1, 0), "makes data 3 in every slice"),
        ((4, 4, 12), 2, MeshConfig(-1, 64, 1, 2, 0), "makes data 3 in every slice"),
        ((4, 4, 20), 1, MeshConfig(-1, 32, 1, 1, 0), "JAX cannot lay the mesh (data 10, fsdp 32, tensor 1)"),
    ],
)
def test_what_tpus_cannot_do_is_refused_in_a_sentence(
    sides: tuple[int, int, int], slices: int, config: MeshConfig, words: str
) -> None:
    with pytest.raises(UserError) as error:
        grid_mesh(config, chips(sides, slices))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_mesh_of_the_command_line() -> None:
    assert config_of("fsdp=4,tensor=2") == MeshConfig(1, 4, 2, slices=1, max_replicated_bytes=0)
    assert config_of("data=-1") == MeshConfig(-1, 1, 1, slices=1, max_replicated_bytes=0)


@pytest.mark.parametrize(
    "text", ["", "4", "fsdp", "fsdp=", "fsdp=x", "fsdp=0", "fsdp=-2", "data=-1,fsdp=-1", "model=2"]
)
def test_another_mesh_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="mesh"):
        config_of(text)
