"""Chips and pod slices: the figures of each kind, its names in the cloud, and the topologies of slices."""

from qwenvl_jax.chips.cloud import CLOUD, CloudNames
from qwenvl_jax.chips.kinds import CHIPS, GIB, GPU_PEAK_FLOPS, Chip, chip_of, peak_flops
from qwenvl_jax.chips.topology import CHIPS_PER_HOST, Topology, parse_topology

__all__ = [
    "CHIPS",
    "CHIPS_PER_HOST",
    "CLOUD",
    "GIB",
    "GPU_PEAK_FLOPS",
    "Chip",
    "CloudNames",
    "Topology",
    "chip_of",
    "parse_topology",
    "peak_flops",
]
