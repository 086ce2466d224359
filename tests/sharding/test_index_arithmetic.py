"""Which device gets which image group's features, and which host which rows: by a model of the collectives in numpy.

`take_features` is traced on a mesh of sizes alone. A small interpreter then runs what was traced for all devices at
once, every collective by its definition, so that pods of hundreds of chips need no device.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend import core as jex_core
from jax.sharding import AbstractMesh, AxisType

from qwenvl_jax.config import Config, DataConfig, load_config
from qwenvl_jax.models.parallel import take_features
from qwenvl_jax.sharding.batch import check_batch, local_slice, spare_images, streams_of
from qwenvl_jax.sharding.mesh import AXES, mesh_shape

STAGES = {"pretrain": "stage1_pretrain", "multitask": "stage2_multitask", "sft": "stage3_sft"}
CHIPS = {
    "cpu": (1, 6, 8),
    "gpu": (8, 64),
    "v4": (16, 32, 64, 256, 512),
    "v5e": (32, 128, 256),
    "v5p": (16, 32, 64, 512, 2048),
    "v6e": (16, 32, 128, 256),
    "tpu7x": (8, 64, 128, 256),
}


def elementwise(function: Any) -> Any:
    """Of values of all devices; a number of each device goes with every element of its array."""

    def apply(_: int, __: Any, *values: np.ndarray) -> np.ndarray:
        most = max(value.ndim for value in values)
        return function(*(value.reshape(*value.shape, *[1] * (most - value.ndim)) for value in values))

    return apply


def broadcast(devices: int, parameters: Any, value: np.ndarray) -> np.ndarray:
    shape = np.ones(len(parameters["shape"]), int)
    shape[list(parameters["broadcast_dimensions"])] = value.shape[1:]
    return np.broadcast_to(value.reshape(devices, *shape), (devices, *parameters["shape"]))


def slice_of(_: int, parameters: Any, value: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    sizes = parameters["slice_sizes"]
    firsts = np.stack([np.clip(at, 0, value.shape[k + 1] - sizes[k]) for k, at in enumerate(starts)], axis=1)
    return np.stack(
        [
            array[tuple(slice(start, start + size) for start, size in zip(first, sizes, strict=True))]
            for array, first in zip(value, firsts, strict=True)
        ]
    )


# Primitives without communication, by name. JAX itself would compile each of these for every shape.
LOCAL: dict[str, Any] = {
    **{
        name: elementwise(function)
        for name, function in {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "max": np.maximum,
            "lt": np.less,
            "eq": np.equal,
            "ne": np.not_equal,
            "and": np.logical_and,
            "sign": np.sign,
            "rem": np.fmod,
            "div": lambda a, b: np.trunc(a / b).astype(a.dtype),
            "select_n": lambda which, no, yes: np.where(which, yes, no),
        }.items()
    },
    "convert_element_type": lambda _, parameters, value: value.astype(parameters["new_dtype"]),
    "broadcast_in_dim": broadcast,
    "iota": lambda devices, parameters: np.broadcast_to(
        np.arange(*parameters["shape"], dtype=parameters["dtype"]), (devices, *parameters["shape"])
    ),
    "reshape": lambda devices, parameters, value: value.reshape(devices, *parameters["new_sizes"]),
    "squeeze": lambda _, parameters, value: np.squeeze(value, tuple(axis + 1 for axis in parameters["dimensions"])),
    "concatenate": lambda _, parameters, *values: np.concatenate(values, axis=parameters["dimension"] + 1),
    "dynamic_slice": slice_of,
}


class Collectives:
    """Runs a jaxpr that `shard_map` maps over `data` and `fsdp`, with the values of all devices stacked in front."""

    def __init__(self, data: int, fsdp: int):
        self.sizes = {"data": data, "fsdp": fsdp}
        self.coordinates = dict(zip(("data", "fsdp"), np.divmod(np.arange(data * fsdp), fsdp), strict=True))

    def index(self, axes: Any) -> tuple[np.ndarray, np.ndarray]:
        """For every device its index along `axes`, and the number of its line of devices along them."""
        axes = (axes,) if isinstance(axes, str) else tuple(axes)
        index, line = np.zeros(1, int), np.zeros(1, int)
        for axis, size in self.sizes.items():
            index = index * size + self.coordinates[axis] if axis in axes else index
            line = line if axis in axes else line * size + self.coordinates[axis]
        return index, np.broadcast_to(line, index.shape)

    def members(self, axes: Any, groups: Any) -> list[list[int]]:
        """For every device the devices of its line, or of its group in the line, in the order of their indices."""
        index, line = self.index(axes)
        keys = list(zip(line.tolist(), index.tolist(), strict=True))
        device_at = {key: device for device, key in enumerate(keys)}
        group_of = {member: group for group in groups or [range(max(index) + 1)] for member in group}
        return [[device_at[line, member] for member in group_of[index]] for line, index in keys]

    def all_gather(self, x: np.ndarray, axes: Any, groups: Any) -> np.ndarray:
        return np.stack([np.concatenate([x[other] for other in near]) for near in self.members(axes, groups)])

    def ppermute(self, x: np.ndarray, axes: Any, pairs: Any) -> np.ndarray:
        lines = self.members(axes, None)
        indices, _ = self.index(axes)
        source = {target: start for start, target in pairs}
        return np.stack([x[line[source[int(index)]]] for line, index in zip(lines, indices, strict=True)])

    def run(self, jaxpr: Any, consts: Any, *arguments: np.ndarray) -> list[np.ndarray]:
        values: dict[Any, Any] = {}
        devices = math.prod(self.sizes.values())
        values |= {
            var: np.broadcast_to(c, (devices, *np.shape(c))) for var, c in zip(jaxpr.constvars, consts, strict=True)
        }
        values |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            if isinstance(atom, jex_core.Literal):
                return np.broadcast_to(np.asarray(atom.val), (devices, *np.shape(atom.val)))
            return values[atom]

        for equation in jaxpr.eqns:
            inputs, parameters = [read(atom) for atom in equation.invars], equation.params
            name = equation.primitive.name
            inner = parameters.get("jaxpr") or parameters.get("call_jaxpr")
            if name == "all_gather":
                assert parameters["tiled"] and parameters["all_gather_dimension"] == 0
                out = [self.all_gather(inputs[0], parameters["axis_name"], parameters["axis_index_groups"])]
            elif name == "ppermute":
                out = [self.ppermute(inputs[0], parameters["axis_name"], parameters["perm"])]
            elif name == "axis_index":
                out = [self.index(parameters["axis_name"])[0].astype(np.int32)]
            elif inner is not None:
                out = self.run(inner.jaxpr, inner.consts, *inputs)
            elif name in LOCAL:
                out = [LOCAL[name](devices, parameters, *inputs)]
            else:
                bind = lambda *each, e=equation: e.primitive.bind(*each, **e.params)  # noqa: E731
                out = [jax.vmap(bind)(*inputs)]
            values |= dict(zip(equation.outvars, map(np.asarray, out), strict=True))
        return [read(atom) for atom in jaxpr.outvars]


def groups_received(data: DataConfig, mesh: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """For every row its image group, and the group of every picture that it takes; one feature per picture.

    A row asks for the first and the last picture of its group, the first of the empty ones and one that is outside.
    """
    shards = math.prod(mesh)
    pictures = data.group_images + spare_images(data, shards)
    labels_F1 = np.repeat(np.arange(data.groups, dtype=np.float32), pictures)[:, None]
    asked = np.array([0, data.group_images - 1, pictures - 1, pictures])
    slots_BL = np.broadcast_to(asked, (data.rows_per_microbatch, 4)).astype(np.int32)
    assert len(labels_F1) % shards == 0 == data.rows_per_microbatch % shards

    sizes = AbstractMesh((*mesh, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(sizes):
        traced = jax.make_jaxpr(lambda f, s: take_features(f, s, data.groups))(labels_F1, slots_BL)
    mapped = [equation for equation in traced.eqns if equation.primitive.name == "shard_map"]
    if not mapped:
        assert shards == 1
        taken = np.asarray(take_features(jnp.asarray(labels_F1), jnp.asarray(slots_BL), data.groups))[..., 0]
        return np.arange(data.rows_per_microbatch) // data.group_rows, taken
    (equation,) = mapped
    parts = (labels_F1.reshape(shards, -1, 1), slots_BL.reshape(shards, -1, 4))
    (taken,) = Collectives(*mesh).run(equation.params["jaxpr"], (), *parts)
    return np.arange(data.rows_per_microbatch) // data.group_rows, taken.reshape(data.rows_per_microbatch, 4)


def assert_own_groups(data: DataConfig, mesh: tuple[int, int]) -> None:
    group, taken = groups_received(data, mesh)
    np.testing.assert_array_equal(taken[:, :3], np.repeat(group[:, None], 3, axis=1))
    assert np.isnan(taken[:, 3]).all()  # outside of its group, though another group's pictures are there


def load(stage: str, kind: str) -> Config:
    values = importlib.import_module(f"configs.{STAGES[stage]}").get_config(mesh=kind)
    return load_config(values)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", CHIPS)
def test_every_shipped_recipe_gives_every_row_its_own_pictures(stage: str, kind: str) -> None:
    config = load(stage, kind)
    tried = 0
    fixed = math.prod(size for size in (config.mesh.fsdp, config.mesh.tensor) if size > 0)
    for chips in (chips for chips in CHIPS[kind] if chips % fixed == 0):
        data, fsdp, tensor = mesh_shape(config.mesh, chips)
        if config.data.rows_per_microbatch % (data * fsdp) == 0:
            check_batch(config.data.rows_per_microbatch, AbstractMesh((data, fsdp, tensor), AXES))
            assert_own_groups(config.data, (data, fsdp))
            tried += 1
    assert tried


@pytest.mark.parametrize("chips", [192, 384, 768])
@pytest.mark.parametrize(("stage", "groups"), [("multitask", 64), ("multitask", 256), ("sft", 16)])
@pytest.mark.parametrize("fsdp", [16, 32, 64, 128])
def test_pods_of_three_times_a_power_of_two_chips(chips: int, stage: str, groups: int, fsdp: int) -> None:
    """Slices of 4x4x12, 4x8x12 and 8x8x12, or three slices of 64, 128 and 256."""
    data = load(stage, "v5p").data
    rows = math.lcm(chips, groups) * (3 if stage == "multitask" else 1)
    cut = dataclasses.replace(
        data, rows_per_step=rows * data.accumulation, image_groups=groups, streams=min(groups, data.streams)
    )
    for mesh in {(chips // fsdp, fsdp), (chips // (2 * fsdp), fsdp)} if chips % fsdp == 0 else ():
        if math.prod(mesh) and cut.rows_per_microbatch % math.prod(mesh) == 0:
            assert_own_groups(cut, mesh)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.data())
def test_any_mesh_gives_every_row_its_own_pictures(data: int, fsdp: int, times: int, draw: st.DataObject) -> None:
    rows = data * fsdp * times
    groups = draw.draw(st.sampled_from([size for size in range(1, rows + 1) if rows % size == 0]))
    per_row = draw.draw(st.sampled_from([0.3, 1.0, 1.7, 3.0]))
    template = load("sft", "v5p").data
    cut = dataclasses.replace(
        template, rows_per_step=rows, accumulation=1, image_groups=groups, streams=1, images_per_row=per_row
    )
    assert_own_groups(cut, (data, fsdp))


def test_the_model_of_collectives_finds_a_wrong_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours along one mesh axis after the other, which are a block only where one size divides the other."""
    from qwenvl_jax.models import parallel

    def along_the_axes(x: jax.Array, split: parallel.Split, neighbours: int) -> jax.Array:
        along = math.gcd(neighbours, split.fsdp)
        x = parallel._gather_along(x, "fsdp", split.fsdp, along)
        return parallel._gather_along(x, "data", split.data, neighbours // along)

    template = load("sft", "v5p").data
    cut = dataclasses.replace(template, rows_per_step=24, accumulation=1, image_groups=4, streams=1)
    assert_own_groups(cut, (3, 4))
    monkeypatch.setattr(parallel, "_gather_neighbours", along_the_axes)
    group, taken = groups_received(cut, (3, 4))
    assert (taken[:, 0] != group).any()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 24), st.integers(1, 8), st.integers(1, 4), st.integers(1, 3), st.data())
def test_every_device_finds_its_rows_among_the_streams_of_its_host(
    shards: int, hosts: int, times: int, images: int, draw: st.DataObject
) -> None:
    """However the parts of a batch are spread over hosts, and whether streams are more or fewer than parts or hosts."""
    rows = shards * times
    streams = draw.draw(st.sampled_from([size for size in range(1, rows + 1) if rows % size == 0]))
    home = draw.draw(st.lists(st.integers(0, hosts - 1), min_size=shards, max_size=shards))
    for size in (rows, math.lcm(rows, shards) * images):  # rows, then images
        whole = np.arange(size).reshape(streams, -1)
        part = whole.shape[1]
        for host in set(home):
            parts = [index for index in range(shards) if home[index] == host]
            needed = streams_of(parts, shards, streams)
            assert needed == sorted(
                {row * streams // size for p in parts for row in range(p * size // shards, (p + 1) * size // shards)}
            )
            field = whole[needed].reshape(-1)
            for index in parts:
                start, stop = index * size // shards, (index + 1) * size // shards
                np.testing.assert_array_equal(field[local_slice(start, stop, part, needed)], np.arange(start, stop))
