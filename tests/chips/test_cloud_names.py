"""Accelerator types, machine types and hosts against the tables of the cloud's documentation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.chips import CHIPS, CLOUD, Topology, parse_topology, peak_flops
from qwenvl_jax.chips.topology import standard_grid
from qwenvl_jax.runtime.errors import UserError

# Rows of "TPU configurations" on the pages of the chips, and of XPK's table of systems.
CONFIGURATIONS = [
    ("v4-8", "v4:2x2x1", 4, 1, "ct4p-hightpu-4t"),
    ("v4-1024", "v4:8x8x8", 512, 128, "ct4p-hightpu-4t"),
    ("v5litepod-1", "v5e:1x1", 1, 1, "ct5lp-hightpu-1t"),
    ("v5litepod-4", "v5e:2x2", 4, 1, "ct5lp-hightpu-4t"),
    ("v5litepod-8", "v5e:2x4", 8, 1, "ct5lp-hightpu-8t"),
    ("v5litepod-16", "v5e:4x4", 16, 4, "ct5lp-hightpu-4t"),
    ("v5litepod-128", "v5e:8x16", 128, 32, "ct5lp-hightpu-4t"),
    ("v5litepod-256", "v5e:16x16", 256, 64, "ct5lp-hightpu-4t"),
    ("v5p-8", "v5p:2x2x1", 4, 1, "ct5p-hightpu-4t"),
    ("v5p-16", "v5p:2x2x2", 8, 2, "ct5p-hightpu-4t"),
    ("v5p-32", "v5p:2x2x4", 16, 4, "ct5p-hightpu-4t"),
    ("v5p-64", "v5p:2x4x4", 32, 8, "ct5p-hightpu-4t"),
    ("v5p-128", "v5p:4x4x4", 64, 16, "ct5p-hightpu-4t"),
    ("v5p-640", "v5p:4x4x20", 320, 80, "ct5p-hightpu-4t"),
    ("v5p-768", "v5p:4x8x12", 384, 96, "ct5p-hightpu-4t"),
    ("v5p-1024", "v5p:8x8x8", 512, 128, "ct5p-hightpu-4t"),
    ("v5p-1152", "v5p:4x12x12", 576, 144, "ct5p-hightpu-4t"),
    ("v5p-2048", "v5p:8x8x16", 1024, 256, "ct5p-hightpu-4t"),
    ("v5p-12288", "v5p:16x16x24", 6144, 1536, "ct5p-hightpu-4t"),
    ("v6e-1", "v6e:1x1", 1, 1, "ct6e-standard-1t"),
    ("v6e-8", "v6e:2x4", 8, 1, "ct6e-standard-8t"),
    ("v6e-256", "v6e:16x16", 256, 64, "ct6e-standard-4t"),
    ("tpu7x-2", "tpu7x:1x1x1", 1, 1, "tpu7x-standard-1t"),
    ("tpu7x-8", "tpu7x:2x2x1", 4, 1, "tpu7x-standard-4t"),
    ("tpu7x-128", "tpu7x:4x4x4", 64, 16, "tpu7x-standard-4t"),
]


@pytest.mark.parametrize(("cloud_name", "name", "chips", "hosts", "machine"), CONFIGURATIONS)
def test_configurations_of_the_documentation(cloud_name: str, name: str, chips: int, hosts: int, machine: str) -> None:
    topology = parse_topology(cloud_name)
    assert topology == parse_topology(name)
    assert (topology.name, topology.chips, topology.hosts, topology.machine_type) == (name, chips, hosts, machine)
    assert topology.accelerator_type == cloud_name
    topology.check_rentable()


def test_several_slices_and_our_name_of_the_chip() -> None:
    assert parse_topology("v6e-256@2") == parse_topology("v6e:16x16@2")
    assert parse_topology("v5e-256") == parse_topology("v5litepod-256")
    two = "v6e:16x16@2: 2 slices, 512 chips on 128 hosts (v6e-256, ct6e-standard-4t)"
    assert parse_topology("v6e-256@2").description == two
    assert parse_topology("v5p:4x4x16").description == (
        "v5p:4x4x16: 256 chips on 64 hosts (a grid that no accelerator type names, ct5p-hightpu-4t)"
    )


def test_devices_of_chips_with_two_devices() -> None:
    assert (parse_topology("tpu7x-128").devices, parse_topology("v5p-128").devices) == (128, 64)
    assert peak_flops("TPU7x") == CHIPS["tpu7x"].peak_flops / 2


def test_every_chip_has_names() -> None:
    assert list(CHIPS) == list(CLOUD)
    for kind, names in CLOUD.items():
        assert len(names.smallest) == CHIPS[kind].torus_axes
        assert 4 in names.machines
        Topology(CHIPS[kind], names.smallest).check_rentable()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p-1000", "counts TensorCores, two per chip, so write e.g. v5p-32 or v5p-512"),
        ("v5p-7", "there is no slice 'v5p-7'"),
        ("v6e-512", "there is no slice 'v6e-512'; the number after v6e counts chips"),
        ("v5p-24576", "there is no slice"),
        ("v5p-1024@0", "there is no slice"),
        ("v5lite-8", "did you mean 'v5litepod'"),
        (f"v5p-{2**80}", "there is no slice"),
    ],
)
def test_cloud_names_that_mean_nothing(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_topology(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p:1x1x1", "the smallest slice of v5p is 2x2x1, not 1x1x1"),
        ("v5e:1x2", "the smallest slice of v5e is 2x2 or one chip, not 1x2"),
        ("v5p:8x8x4", "ascending order, so write v5p:4x8x8"),
        ("v5p:32x32x32", "at most 6144 chips"),
    ],
)
def test_grids_that_nobody_rents_out(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_topology(name).check_rentable()


@given(kind=st.sampled_from(sorted(CHIPS)), chips=st.integers(-10, 20_000))
def test_a_standard_grid_has_so_many_chips_and_comes_back(kind: str, chips: int) -> None:
    grid = standard_grid(kind, chips)
    if grid is None:
        return
    assert math.prod(grid) == chips
    topology = Topology(CHIPS[kind], grid)
    if chips <= CLOUD[kind].largest:
        assert parse_topology(topology.accelerator_type) == topology


@given(st.text(max_size=30))
def test_any_other_text_is_one_sentence(name: str) -> None:
    try:
        parse_topology(name)
    except UserError as error:
        assert "\n" not in str(error).replace(name, "")
