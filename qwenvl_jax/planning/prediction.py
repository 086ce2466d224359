"""The predicted step of one config on one topology: memory, operations, communication, time, utilisation, cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from qwenvl_jax.chips import Topology
from qwenvl_jax.config import Config
from qwenvl_jax.models.flops import Work, training_flops
from qwenvl_jax.planning import aot, roofline
from qwenvl_jax.planning.hlo import program
from qwenvl_jax.runtime import storage
from qwenvl_jax.sharding.mesh import batch_shards

HOURS = 3600.0
IMAGE_MARKS = 2  # <img> and </img>: never targets, like the image's own places

# The keys of `plan --json`, the interface that others build on.
JSON_KEYS = (
    "fits",
    "hbm_gib",
    "hbm_capacity_gib",
    "hardware_flops",
    "model_flops",
    "collective_bytes",
    "exposed_seconds",
    "step_seconds_roofline",
    "step_seconds_cycles",
    "mfu_roofline",
    "mfu_cycles",
)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted, never measured. Times and operations are None, and bytes empty, where the step does not fit.

    Attributes:
      topology, chips, hosts: the machine.
      settings: what `--search` varies: mesh, accumulation, remat, chunk.
      steps, tokens, images: of the stage; tokens and images of one step, at most.
      fits: whether the compiler could place it.
      hbm_gib: of one chip, at its peak.
      hbm_capacity_gib: what one chip has.
      hbm_parts_gib: `arguments`, `temporaries`, `code`; not all live at once.
      host_gib: what one chip keeps in its host's memory (`config.optimizer.moments_memory`).
      hardware_flops, model_flops: of one step on all chips.
      kernel_flops: the part of the hardware's within attention kernels.
      hbm_bytes, collective_bytes, collective_seconds, exposed_seconds: of one step on one chip.
      step_seconds_roofline, step_seconds_cycles: the two ends of the range.
      mfu_roofline, mfu_cycles: model operations by the peak of all chips.
      parts: seconds of the roofline by cause.
      waits: exposed seconds of the roofline by collective, `kind source`, the longest first.
      remedies: what to try where it does not fit.
      compile_seconds: here, on this machine.
    """

    topology: str
    chips: int
    hosts: int
    settings: Mapping[str, Any]
    steps: int
    tokens: int
    images: int
    fits: bool
    hbm_gib: float
    hbm_capacity_gib: float
    hbm_parts_gib: Mapping[str, float]
    model_flops: float
    compile_seconds: float
    host_gib: float = 0.0
    hardware_flops: float | None = None
    kernel_flops: float | None = None
    hbm_bytes: float | None = None
    collective_bytes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    collective_seconds: float | None = None
    exposed_seconds: float | None = None
    step_seconds_roofline: float | None = None
    step_seconds_cycles: float | None = None
    mfu_roofline: float | None = None
    mfu_cycles: float | None = None
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    waits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    remedies: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """The values of `JSON_KEYS`, in their order."""
        return {key: getattr(self, key) for key in JSON_KEYS}


def expected_work(config: Config) -> Work:
    """What a full step holds: rows and image budget full, every place that shows no image supervised."""
    data = config.data
    images = data.image_budget * data.accumulation if data.images_per_row else 0
    tokens = data.rows_per_step * data.sequence_length
    supervised = max(0, tokens - images * (config.model.resampler.queries + IMAGE_MARKS))
    return Work(tokens, data.sequence_length, supervised, images)


def loss_chunks(config: Config, work: Work, shards: int) -> int:
    """Turns of the loss's loop over the chunks of one device's supervised tokens in one microbatch."""
    supervised = work.supervised / config.data.accumulation / shards
    return max(1, math.ceil(supervised / config.compute.loss_chunk))


def predict(
    config: Config, topology: Topology, options: Mapping[str, Any] | None = None, dump_hlo: str | None = None
) -> Prediction:
    """Compiles the step and reads the prediction off its schedule.

    Args:
      config: the run.
      topology: the chips.
      options: further XLA options.
      dump_hlo: path for the scheduled HLO text.

    Raises:
      UserError: if the config cannot run on the topology whatever its memory.
    """
    step = aot.compile_step(config, topology, options)
    work = expected_work(config)
    model = sum(training_flops(config, work).values())
    mesh, data, compute, memory = step.mesh, config.data, config.compute, step.memory
    base = Prediction(
        topology=topology.name,
        chips=topology.chips,
        hosts=topology.hosts,
        settings={
            **{axis: mesh.shape[axis] for axis in mesh.axis_names},
            "accumulation": data.accumulation,
            "remat_decoder": compute.remat_decoder,
            "remat_vit": compute.remat_vit,
            "loss_chunk": compute.loss_chunk,
            "images_per_row": data.images_per_row,
        },
        steps=config.train.steps,
        tokens=int(work.tokens),
        images=int(work.images),
        fits=memory.fits,
        hbm_gib=memory.total,
        hbm_capacity_gib=memory.capacity,
        hbm_parts_gib={name: getattr(memory, name) for name in ("arguments", "temporaries", "code")},
        model_flops=model,
        compile_seconds=step.seconds,
        host_gib=memory.host,
        remedies=() if memory.fits else tuple(aot.remedies(config, mesh)),
    )
    if not memory.fits:
        return base
    if dump_hlo:
        storage.write_bytes(storage.path(dump_hlo), step.hlo.encode())
    module = program.parse(step.hlo)
    trips = loss_chunks(config, work, batch_shards(mesh))
    at_peak, by_cycles = (
        roofline.estimate(module, topology, step.coordinates, cycles=cycles, dynamic_trips=trips)
        for cycles in (False, True)
    )
    peak = topology.chip.peak_flops * topology.chips
    return dataclasses.replace(
        base,
        hardware_flops=at_peak.hardware_flops * topology.chips,
        kernel_flops=at_peak.kernel_flops * topology.chips,
        hbm_bytes=at_peak.hbm_bytes,
        collective_bytes=dict(at_peak.collective_bytes),
        collective_seconds=at_peak.collective_seconds,
        exposed_seconds=at_peak.exposed_seconds,
        step_seconds_roofline=at_peak.seconds,
        step_seconds_cycles=by_cycles.seconds,
        mfu_roofline=model / peak / at_peak.seconds,
        mfu_cycles=model / peak / by_cycles.seconds,
        parts=dict(at_peak.parts),
        waits=dict(at_peak.waits),
    )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a whole stage, as (roofline, cycles). `days` of wall time, `chip_hours`, `dollars`; no restarts, no stalls."""

    days: tuple[float, float]
    chip_hours: tuple[float, float]
    dollars: tuple[float, float]


def cost(prediction: Prediction, price: float) -> Cost | None:
    """The stage's cost at a price per chip and hour, or None where the step does not fit."""
    if prediction.step_seconds_roofline is None or prediction.step_seconds_cycles is None:
        return None
    seconds = prediction.step_seconds_roofline * prediction.steps, prediction.step_seconds_cycles * prediction.steps
    hours = tuple(second / HOURS * prediction.chips for second in seconds)
    days = tuple(second / HOURS / 24 for second in seconds)
    return Cost((days[0], days[1]), (hours[0], hours[1]), (hours[0] * price, hours[1] * price))


def capacity_text(prediction: Prediction) -> str:
    """`27.0 of 95 GiB`, or by how much it exceeds."""
    over = prediction.hbm_gib - prediction.hbm_capacity_gib
    text = f"{prediction.hbm_gib:.1f} of {prediction.hbm_capacity_gib:.4g} GiB"
    return text if prediction.fits else f"{text}, {over:.1f} GiB too much"


def misfit_text(prediction: Prediction) -> str:
    """One sentence on a step that does not fit: by how much, and what would make it smaller."""
    return (
        f"the step does not fit {prediction.topology}: a chip needs {capacity_text(prediction)}; what would make it "
        f"smaller: {', or '.join(prediction.remedies)}"
    )
