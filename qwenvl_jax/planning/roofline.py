"""Estimates the time of a compiled step from its schedule and the table of chips, without running it.

It walks the entry computation in the order of its schedule, with separate clocks for the cores, the ICI, copies between
HBM and VMEM, and copies from and to the host. An asynchronous operation advances its own clock, and the cores wait for
it at its `-done`. Matrix products are timed in two ways, at the peak and by the compiler's cycles, which give the two
ends of the predicted range.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

from qwenvl_jax.chips import Topology
from qwenvl_jax.planning.assumptions import KERNEL_EFFICIENCY
from qwenvl_jax.planning.hlo import costs
from qwenvl_jax.planning.hlo.collectives import Collective, Role, role_of
from qwenvl_jax.planning.hlo.loops import Values, body_values, trip_count
from qwenvl_jax.planning.hlo.program import Computation, HloError, Instruction, Module

Coordinates = Sequence[tuple[int, ...]]  # of every partition: coordinates on the torus, then the index of its slice


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated work and time of a step on one chip.

    Attributes:
      seconds: time of the whole step.
      matmul_flops: operations of matrix products, including recomputation.
      kernel_flops: operations in Pallas kernels.
      hbm_bytes: bytes read and written.
      collective_bytes: bytes of whole buffers by kind (see `Collective.bytes`).
      collective_seconds: the sum of the times of all collectives.
      exposed_seconds: the part of it during which the cores wait.
      waits: the exposed seconds by collective, keyed `kind source`, the longest first.
      parts: seconds by activity of the cores: `matmul`, `kernel`, `memory`, `exposed`, `copy`.
      dynamic_loops: number of loops whose trip count depends on data, for which `dynamic_trips` was used.
    """

    seconds: float
    matmul_flops: float
    kernel_flops: float
    hbm_bytes: float
    collective_bytes: Mapping[str, float]
    collective_seconds: float
    exposed_seconds: float
    waits: Mapping[str, float]
    parts: Mapping[str, float]
    dynamic_loops: int

    @property
    def hardware_flops(self) -> float:
        """Operations of matrix products and kernels."""
        return self.matmul_flops + self.kernel_flops


def estimate(
    module: Module,
    topology: Topology,
    coordinates: Coordinates,
    *,
    cycles: bool = False,
    dynamic_trips: int | None = None,
) -> Estimate:
    """Estimates one execution of a module.

    Args:
      module: parsed from scheduled HLO.
      topology: the chips.
      coordinates: of every partition, in the order of the mesh's devices.
      cycles: whether matrix products are timed by the compiler's cycles instead of at the peak.
      dynamic_trips: the trip count of loops whose trip count depends on data.

    Raises:
      HloError: if there is such a loop and `dynamic_trips` is None.
    """
    walk = _Walk(module, topology, coordinates, cycles, dynamic_trips)
    total = walk.run(module.entry, (None,) * len(module.entry.parameters))
    kinds = {key.removeprefix("bytes "): value for key, value in total.items() if key.startswith("bytes ")}
    waits = {key.removeprefix("wait "): value for key, value in total.items() if key.startswith("wait ")}
    parts = {key: total[key] for key in ("matmul", "kernel", "memory", "exposed", "copy")}
    return Estimate(
        seconds=total["seconds"],
        matmul_flops=total["matmul flops"],
        kernel_flops=total["kernel flops"],
        hbm_bytes=total["hbm bytes"],
        collective_bytes=kinds,
        collective_seconds=total["collective"],
        exposed_seconds=total["exposed"],
        waits=dict(sorted(waits.items(), key=lambda wait: -wait[1])),
        parts=parts,
        dynamic_loops=walk.dynamic_loops,
    )


class Tally(collections.defaultdict[str, float]):
    """Sums by the keys that `estimate` reads."""

    def __init__(self, values: Mapping[str, float] | None = None):
        super().__init__(float, values or {})

    def add(self, other: Mapping[str, float]) -> None:
        """Adds all sums of another tally."""
        for key, value in other.items():
            self[key] += value


class _Walk:
    """Walks through computations and adds up times and work."""

    def __init__(
        self, module: Module, topology: Topology, coordinates: Coordinates, cycles: bool, dynamic_trips: int | None
    ):
        self._module = module
        self._topology = topology
        self._chip = topology.chip.device
        self._coordinates = coordinates
        self._cycles = cycles
        self._dynamic_trips = dynamic_trips
        self.dynamic_loops = 0

    def run(self, computation: Computation, values: Values) -> Tally:
        """Walks through a computation once and waits for everything asynchronous at its end."""
        total = Tally()
        # The clocks: time at which each unit is free again, in seconds since the start of the computation.
        now = ici = dma = fetch = store = 0.0
        pending: dict[str, float] = {}  # key of a running collective -> when it ends
        copies: dict[str, float] = {}  # name of a running copy -> when it ends
        for instruction in computation.instructions.values():
            role = role_of(self._module, computation, instruction)
            if role is not None and role.phase in ("whole", "start"):
                ici = max(now, ici) + self._collective(role, total)
                if role.phase == "start":
                    pending[self._key(role, instruction)] = ici
                else:
                    self._wait(total, role, ici - now)
                    now = ici
                    continue
            elif role is not None and role.phase == "done":
                end = pending.pop(self._key(role, computation[instruction.operands[0]]), now)
                self._wait(total, role, end - now)
                now = max(now, end)
            if role is not None and instruction.opcode != "fusion":
                continue
            if instruction.opcode.endswith("-start"):
                size = costs.hbm_bytes(self._module, computation, instruction)
                total["hbm bytes"] += size
                fetched, stored = costs.host_bytes(instruction)
                if fetched:
                    fetch = max(now, fetch) + fetched / self._chip.host_bandwidth
                    copies[instruction.name] = fetch
                elif stored:
                    store = max(now, store) + stored / self._chip.host_bandwidth
                    copies[instruction.name] = store
                else:
                    dma = max(now, dma) + size / self._chip.hbm_bandwidth
                    copies[instruction.name] = dma
            elif instruction.opcode.endswith("-done"):
                end = copies.pop(instruction.operands[0], now)
                total["copy"] += max(0.0, end - now)
                now = max(now, end)
            else:
                now += self._compute(computation, instruction, values, total)
        end = max([now, *pending.values()])
        total["exposed"] += end - now
        total["seconds"] += end
        return total

    def _wait(self, total: Tally, role: Role, seconds: float) -> None:
        """Adds the time that the cores wait for a collective."""
        if seconds > 0.0:
            total["exposed"] += seconds
            total[f"wait {role.collective.kind} {role.collective.source}"] += seconds

    def _key(self, role: Role, instruction: Instruction) -> str:
        """A key by which the end of a collective finds its start.

        A chain of fusions is identified by its channel. Other collectives refer to their start by name; several may
        share a channel.

        Args:
          role: of the start or the end.
          instruction: the one that starts the collective.
        """
        return role.collective.channel or "" if instruction.opcode == "fusion" else instruction.name

    def _compute(self, computation: Computation, instruction: Instruction, values: Values, total: Tally) -> float:
        """Adds an instruction to the totals and returns its seconds on the cores."""
        inner = self._nested(computation, instruction, values)
        if inner is not None:
            seconds = inner.pop("seconds", 0.0)
            total.add(inner)
            return seconds
        flops = costs.matmul_flops(self._module, computation, instruction)
        size = costs.hbm_bytes(self._module, computation, instruction)
        kernel = costs.kernel_of(self._module, instruction)
        total["matmul flops"] += flops
        total["hbm bytes"] += size
        memory = size / self._chip.hbm_bandwidth
        if kernel is not None and kernel.flops:
            total["kernel flops"] += kernel.flops
            seconds = max(kernel.flops / (KERNEL_EFFICIENCY * self._chip.peak_flops), memory)
            total["kernel"] += seconds
        elif flops:
            busy = flops / self._chip.peak_flops
            estimated = instruction.estimated_cycles
            if self._cycles and estimated:
                busy = max(busy, estimated / self._chip.clock)
            seconds = max(busy, memory)
            total["matmul"] += seconds
        else:
            seconds = memory
            total["memory"] += seconds
        return seconds

    def _nested(self, computation: Computation, instruction: Instruction, values: Values) -> Tally | None:
        """The totals of a loop, a conditional or a call; None for all other instructions."""
        if instruction.opcode == "while":
            count = trip_count(self._module, computation, instruction, values)
            if count is None:
                if self._dynamic_trips is None:
                    raise HloError(f"the trip count of the loop {instruction.name} depends on data; give dynamic_trips")
                self.dynamic_loops += 1
                count = self._dynamic_trips
            inside = body_values(self._module, computation, instruction, values)
            once = self.run(self._module[instruction.called("body")], inside)
            return Tally({key: value * count for key, value in once.items()})
        if instruction.opcode == "conditional":
            branches = (instruction.attribute("branch_computations") or "").strip("{}").split(",")
            if branches == [""]:
                branches = [instruction.called("true_computation"), instruction.called("false_computation")]
            runs = [self.run(self._module[name.strip().lstrip("%")], (None,)) for name in branches]
            return max(runs, key=lambda run: run["seconds"])
        if instruction.opcode == "call":
            return self.run(self._module[instruction.called("to_apply")], (None,) * len(instruction.operands))
        return None

    def _collective(self, role: Role, total: Tally) -> float:
        """Adds a collective to the totals and returns its seconds."""
        collective = role.collective
        total[f"bytes {collective.kind}"] += collective.bytes
        seconds = collective_seconds(collective, self._topology, tuple(self._coordinates))
        total["collective"] += seconds
        return seconds


def collective_seconds(collective: Collective, topology: Topology, coordinates: tuple[tuple[int, ...], ...]) -> float:
    """The time of a collective if nothing else uses the network.

    On a ring of n chips an all-gather or reduce-scatter of V bytes moves V (n - 1) / n bytes past every chip, in both
    directions at once if the axis wraps; several axes share the bytes. An all-reduce takes as long as both. An
    all-to-all moves a quarter of the bytes on a ring. Between slices every chip exchanges its part after the reduction
    within the slice. Two devices of one chip that are in a group share what arrives at the chip, and if only one is, it
    has half of the links; between the two alone the bytes go from die to die.
    """
    chip = topology.chip.device
    size = collective.bytes
    members = collective.group
    if len(members) < 2 or not size:
        return 0.0
    bandwidth, chips, slices = _spread(members, topology, coordinates)
    inside = max(1, len(members) // slices)
    passes = {"all-reduce": 2.0, "all-to-all": 0.25}.get(collective.kind, 1.0)
    if collective.kind == "collective-permute":
        return size / (chip.dcn_bandwidth if slices > 1 else chip.link_bandwidth)
    if chips > 1:
        seconds = passes * size * (chips - 1) / chips / bandwidth
    else:
        seconds = passes * size * (inside - 1) / inside / chip.die_bandwidth if inside > 1 else 0.0
    if slices > 1:
        seconds += passes * size / inside * (slices - 1) / slices / chip.dcn_bandwidth
    return seconds


@functools.cache
def _spread(
    members: tuple[int, ...], topology: Topology, coordinates: tuple[tuple[int, ...], ...]
) -> tuple[float, int, int]:
    """The bandwidth of a group's torus axes in bytes per second, its chips within one slice, and its slices."""
    group = [coordinates[member] for member in members]
    slices = len({chip[-1] for chip in group})
    chips = max(1, len(set(group)) // slices)
    share = len(group) / len(set(group)) / topology.chip.devices  # of the links of a chip, which its devices share
    bandwidth = 0.0
    for axis, length in enumerate(topology.shape):
        used = sorted({chip[axis] for chip in group})
        if len(used) < 2:
            continue
        ring = len(used) == length and topology.wraps[axis]
        # A group of every second chip of an axis shares its links with the group of the chips in between.
        stride = 1 if ring else max(1, math.gcd(*(b - a for a, b in itertools.pairwise(used))))
        bandwidth += share * topology.chip.link_bandwidth * (2 if ring else 1) / stride
    return bandwidth or topology.chip.link_bandwidth, chips, slices
