"""Described TPU chips: enough of a device for JAX to lay a mesh on the torus, and to know which host has which chip."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any
from unittest import mock

from qwenvl_jax.chips import chip_of
from qwenvl_jax.config import MeshConfig
from qwenvl_jax.sharding import mesh


class Chip:
    """The part of a `jax.Device` that meshes are made from."""

    platform = "tpu"

    def __init__(
        self, number: int, coords: tuple[int, int, int], slice_index: int, host: int, kind: str, core: int = 0
    ) -> None:
        self.id, self.process_index, self.coords, self.slice_index = number, host, coords, slice_index
        self.device_kind, self.core_on_chip = kind, core

    def __repr__(self) -> str:
        return f"device {self.core_on_chip} of chip {self.coords} of slice {self.slice_index}"


def chips(sides: tuple[int, int, int], slices: int = 1, kind: str = "TPU v4") -> list[Chip]:
    """The devices of some slices in JAX's order; a host has 2 x 2 chips along the first two axes, as in clouds."""
    chip = chip_of(kind)
    cores = chip.devices if chip else 1
    grid = [(x, y, z) for z in range(sides[2]) for y in range(sides[1]) for x in range(sides[0])]
    across = sides[0] // 2
    hosts_per_slice = len(grid) // 4

    def host(x: int, y: int, z: int) -> int:
        return x // 2 + across * (y // 2 + sides[1] // 2 * z)

    return [
        Chip((s * len(grid) + k) * cores + core, coordinates, s, s * hosts_per_slice + host(*coordinates), kind, core)
        for s in range(slices)
        for k, coordinates in enumerate(grid)
        for core in range(cores)
    ]


def grid_mesh(config: MeshConfig, devices: Sequence[Chip]) -> Any:
    """The mesh of a run on described chips, with `devices` and `shape` as a `jax.sharding.Mesh` has them."""

    def described(grid: Any, axes: tuple[str, ...]) -> Any:
        return types.SimpleNamespace(devices=grid, shape=dict(zip(axes, grid.shape, strict=True)))

    with mock.patch.object(mesh, "Mesh", described):  # these chips are no jax.Device, which a Mesh requires
        return mesh.make_mesh(config, devices)
