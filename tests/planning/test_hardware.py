"""Topology names, the table of chips, prices."""

from __future__ import annotations

from typing import Any

import pytest

from qwenvl_jax.chips import CHIPS, parse_topology, peak_flops
from qwenvl_jax.planning.assumptions import CHIP_COLUMNS, chip_rows, read_prices
from qwenvl_jax.runtime.errors import UserError


def test_a_pod_slice() -> None:
    topology = parse_topology("v5p:8x8x8")
    assert (topology.chips, topology.hosts, topology.wraps, topology.name) == (
        512,
        128,
        (True, True, True),
        "v5p:8x8x8",
    )
    assert topology.compiler_arguments() == {
        "platform": "tpu",
        "topology_name": "v5:8x8x8",
        "chip_config_name": "megacore",
        "chips_per_host_bounds": (2, 2, 1),
        "wrap": (True, True, True),
        "num_slices": 1,
    }


def test_several_slices_and_open_axes() -> None:
    topology = parse_topology("v5e:8x16@4")
    assert (topology.chips, topology.wraps, topology.name) == (512, (False, True), "v5e:8x16@4")
    assert topology.compiler_arguments()["wrap"] == (False, True, False)
    assert parse_topology("v6e:1x1").compiler_arguments()["chips_per_host_bounds"] == (1, 1, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p", "has not the form KIND:AxB"),
        ("v5p:8x8x", "has not the form"),
        ("v5p:8,8,8", "v5p:8x8x8@4 for four slices"),
        ("v5:8x8x8", "a chip that is not one of v4, v5e, v5p, v6e"),
        ("v5pp:8x8x8", "did you mean 'v5p'"),
        ("v5e:8x8x8", "write v5e:AxB"),
        ("v4:8x8", "write v4:AxBxC"),
        ("v4:8x0x8", "must be positive"),
        ("v5p:8x8x8@0", "must be positive"),
        ("v5p:8x6x8", "1, 2 or a multiple of 4 chips long, not 6"),
        ("v5e:16x32", "1, 2, 4, 8 or 16 chips long, not 32"),
        ("v6e:3x4", "1, 2, 4, 8 or 16 chips long, not 3"),
    ],
)
def test_unknown_topologies(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_topology(name)


def test_figures_of_a_device() -> None:
    whole, half = CHIPS["tpu7x"], CHIPS["tpu7x"].device
    assert (2 * half.peak_flops, 2 * half.hbm_bytes, half.clock) == (whole.peak_flops, whole.hbm_bytes, whole.clock)
    assert CHIPS["v5p"].device == CHIPS["v5p"]
    matrix_units = 4 * 2 * 256**2  # multiply-adds of four units
    assert whole.devices * matrix_units * whole.clock == pytest.approx(whole.peak_flops, rel=1e-3)


def test_the_table_is_the_one_of_the_trainer() -> None:
    names = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}
    for kind, name in names.items():
        assert CHIPS[kind].device.peak_flops == peak_flops(name)
    assert all(len(row) == len(CHIP_COLUMNS) for row in chip_rows())


def test_prices() -> None:
    assert read_prices({})["v5p"] == CHIPS["v5p"].price
    assert read_prices({"v5p": 2})["v5p"] == 2.0


@pytest.mark.parametrize("values", [[1], {"v9": 1}, {"v5p": -1}, {"v5p": "cheap"}, {"v5p": True}])
def test_bad_prices(values: Any) -> None:
    with pytest.raises(UserError, match="price"):
        read_prices(values)
