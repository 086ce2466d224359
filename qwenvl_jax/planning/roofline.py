"""The seconds of a compiled step, from its schedule and the table of chips: nothing is run.

Walks the entry computation in the order of its schedule with clocks of their own for the cores, the ICI, copies between
HBM and VMEM, and copies from and to the host. What is asynchronous advances its own clock and is waited for where it
ends. The two ways to time matrix products, at the peak and by the compiler's cycles, give the two ends of the predicted
range.
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
from qwenvl_jax.planning.hlo.collectives import Collective, Role, role
from qwenvl_jax.planning.hlo.loops import Values, body_values, trip_count
from qwenvl_jax.planning.hlo.program import Computation, HloError, Instruction, Module

Coordinates = Sequence[tuple[int, ...]]  # per partition: its place on the torus, then the number of its slice


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step does on one chip, and how long it takes.

    Attributes:
      seconds: of the whole step.
      matmul_flops: operations of matrix products, recomputation included.
      kernel_flops: operations within Pallas kernels.
      hbm_bytes: read and written.
      collective_bytes: by kind, whole buffers (see `Collective.bytes`).
      collective_seconds: what the collectives would take one after another.
      exposed_seconds: of these, what nothing else hides.
      waits: the exposed seconds by collective, `kind module`, the longest first.
      parts: seconds by what the cores do: `matmul`, `kernel`, `memory`, `exposed`, `copy`.
      dynamic_loops: loops whose number of turns is data; they were counted as the caller said.
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
        return self.matmul_flops + self.kernel_flops


def estimate(
    module: Module,
    topology: Topology,
    coordinates: Coordinates,
    *,
    cycles: bool = False,
    dynamic_trips: int | None = None,
) -> Estimate:
    """Predicts one run of a module.

    Args:
      module: parsed from scheduled HLO.
      topology: the chips.
      coordinates: per partition, in the order of the mesh's devices.
      cycles: whether matrix products take the compiler's cycles instead of operations at the peak.
      dynamic_trips: turns of loops whose number is data.

    Raises:
      HloError: if there is such a loop and no `dynamic_trips`.
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
        for key, value in other.items():
            self[key] += value


class _Walk:
    """Runs computations on the three clocks."""

    def __init__(
        self, module: Module, topology: Topology, coordinates: Coordinates, cycles: bool, dynamic_trips: int | None
    ):
        self._module, self._topology, self._chip = module, topology, topology.chip
        self._coordinates, self._cycles, self._dynamic_trips = coordinates, cycles, dynamic_trips
        self.dynamic_loops = 0

    def run(self, computation: Computation, values: Values) -> Tally:
        """One pass through a computation; nothing asynchronous is left at its end."""
        total = Tally()
        now = ici = dma = fetch = store = 0.0
        pending: dict[str, float] = {}  # channel or name -> when it ends
        copies: dict[str, float] = {}
        for instruction in computation.instructions.values():
            part = role(self._module, computation, instruction)
            if part is not None and part.phase in ("whole", "start"):
                length = self._collective(part, total)
                begin = max(now, ici)
                ici = begin + length
                if part.phase == "start":
                    pending[self._key(part, instruction)] = ici
                else:
                    self._wait(total, part, ici - now)
                    now = ici
                    continue
            elif part is not None and part.phase == "done":
                end = pending.pop(self._key(part, computation[instruction.operands[0]]), now)
                self._wait(total, part, end - now)
                now = max(now, end)
            if part is not None and instruction.opcode != "fusion":
                continue
            if instruction.opcode.endswith("-start"):
                moved = costs.hbm_bytes(self._module, computation, instruction)
                total["hbm bytes"] += moved
                fetched, stored = costs.host_bytes(instruction)
                if fetched:
                    copies[instruction.name] = fetch = max(now, fetch) + fetched / self._chip.host_bandwidth
                elif stored:
                    copies[instruction.name] = store = max(now, store) + stored / self._chip.host_bandwidth
                else:
                    copies[instruction.name] = dma = max(now, dma) + moved / self._chip.hbm_bandwidth
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

    def _wait(self, total: Tally, part: Role, seconds: float) -> None:
        """Adds what the cores wait for a collective."""
        if seconds > 0.0:
            total["exposed"] += seconds
            total[f"wait {part.collective.kind} {part.collective.source}"] += seconds

    def _key(self, part: Role, instruction: Instruction) -> str:
        """What the start and the end of a collective have in common; `instruction` is the one that starts it.

        Fusions form a chain in which only the channel tells; others name their start, and may share a channel.
        """
        return part.collective.channel or "" if instruction.opcode == "fusion" else instruction.name

    def _compute(self, computation: Computation, instruction: Instruction, values: Values, total: Tally) -> float:
        """Adds an instruction to the totals and returns its seconds on the cores."""
        inner = self._nested(computation, instruction, values)
        if inner is not None:
            seconds = inner.pop("seconds", 0.0)
            total.add(inner)
            return seconds
        flops = costs.matmul_flops(self._module, computation, instruction)
        moved = costs.hbm_bytes(self._module, computation, instruction)
        kernel = costs.kernel_of(self._module, instruction)
        total["matmul flops"] += flops
        total["hbm bytes"] += moved
        memory = moved / self._chip.hbm_bandwidth
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
        """Totals of a loop, a branch or a call; None for everything else."""
        if instruction.opcode == "while":
            count = trip_count(self._module, computation, instruction, values)
            if count is None:
                if self._dynamic_trips is None:
                    raise HloError(f"the loop {instruction.name} runs as often as its data say; give dynamic_trips")
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

    def _collective(self, part: Role, total: Tally) -> float:
        collective = part.collective
        total[f"bytes {collective.kind}"] += collective.bytes
        seconds = collective_seconds(collective, self._topology, tuple(self._coordinates))
        total["collective"] += seconds
        return seconds


def collective_seconds(collective: Collective, topology: Topology, coordinates: tuple[tuple[int, ...], ...]) -> float:
    """How long a collective takes when nothing else uses the network.

    On a ring of n chips an all-gather or reduce-scatter of V bytes moves V (n - 1) / n past every chip, both ways at
    once where the axis wraps; on several axes each carries its part. An all-reduce is one of each. An all-to-all
    moves a quarter of that on a ring. Between slices every chip exchanges its own part, after the slice has reduced.
    """
    chip, size = topology.chip, collective.bytes
    members = collective.group
    if len(members) < 2 or not size:
        return 0.0
    bandwidth, inside, slices = _spread(members, topology, coordinates)
    passes = {"all-reduce": 2.0, "all-to-all": 0.25}.get(collective.kind, 1.0)
    if collective.kind == "collective-permute":
        return size / (chip.dcn_bandwidth if slices > 1 else chip.link_bandwidth)
    seconds = passes * size * (inside - 1) / inside / bandwidth if inside > 1 else 0.0
    if slices > 1:
        seconds += passes * size / inside * (slices - 1) / slices / chip.dcn_bandwidth
    return seconds


@functools.cache
def _spread(
    members: tuple[int, ...], topology: Topology, coordinates: tuple[tuple[int, ...], ...]
) -> tuple[float, int, int]:
    """Bandwidth of a group's torus axes in bytes per second, its chips within one slice, and its slices."""
    places = [coordinates[member] for member in members]
    slices = len({place[-1] for place in places})
    inside = max(1, len(members) // slices)
    bandwidth = 0.0
    for axis, length in enumerate(topology.shape):
        used = sorted({place[axis] for place in places})
        if len(used) < 2:
            continue
        ring = len(used) == length and topology.wraps[axis]
        # Groups that take every second chip of an axis share its links with those in between.
        stride = 1 if ring else max(1, math.gcd(*(b - a for a, b in itertools.pairwise(used))))
        bandwidth += topology.chip.link_bandwidth * (2 if ring else 1) / stride
    return bandwidth or topology.chip.link_bandwidth, inside, slices
