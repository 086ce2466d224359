"""Predicts one training step of a config on a topology: memory, operations, communication, time, MFU and cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from qwenvl_jax.chips import Topology
from qwenvl_jax.config import Config
from qwenvl_jax.models.flops import Work, full_work, training_flops
from qwenvl_jax.planning import aot, roofline
from qwenvl_jax.planning.hlo import program
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import check_streams
from qwenvl_jax.sharding.mesh import batch_shards

SECONDS_PER_HOUR = 3600.0

# The keys of `plan --json`, a stable interface.
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
    """A predicted step; nothing in it is measured. If the step does not fit, times and operations are None.

    Figures "of one chip" are those of one device, which on tpu7x is half a chip.

    Attributes:
      topology, chips, hosts: the machine.
      settings: the settings that `--search` varies (mesh, accumulation, remat), and others that matter.
      steps: number of steps of the stage.
      tokens, images: the most that one step processes.
      fits: whether the step fits into the memory of a chip.
      hbm_gib: peak memory of one chip.
      hbm_capacity_gib: memory that one chip has.
      hbm_parts_gib: `arguments`, `temporaries`, `code`; they are not all allocated at the same time.
      host_gib: host memory used per chip (`config.optimizer.moments_memory`).
      hardware_flops, model_flops: operations of one step on all chips.
      kernel_flops: the share of `hardware_flops` spent in attention kernels.
      hbm_bytes, collective_bytes, collective_seconds, exposed_seconds: of one step on one chip.
      step_seconds_roofline, step_seconds_cycles: the two ends of the predicted range.
      mfu_roofline, mfu_cycles: model operations divided by the peak of all chips.
      parts: seconds of the roofline by cause.
      waits: exposed seconds of the roofline by collective, keyed `kind source`, the longest first.
      remedies: changes that would make the step smaller, if it does not fit.
      refusal: why a run would be refused at its start, because hosts would repeat one another's work; "" if it is not.
      compile_seconds: time that the compilation took on this machine.
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
    refusal: str = ""

    def json(self) -> dict[str, Any]:
        """The values of `JSON_KEYS`, in their order."""
        return {key: getattr(self, key) for key in JSON_KEYS}


def expected_work(config: Config) -> Work:
    """The work of a full step: all rows and the image budget are full, and every token outside images is supervised."""
    work = full_work(config)
    image_tokens = work.images * config.model.resampler.image_tokens  # never targets
    return dataclasses.replace(work, supervised=max(0, work.tokens - image_tokens))


def loss_chunks(config: Config, work: Work, shards: int) -> int:
    """Iterations of the loop over chunks of supervised tokens in the loss, for one device and microbatch."""
    supervised = work.supervised / config.data.accumulation / shards
    return max(1, math.ceil(supervised / config.compute.loss_chunk))


def predict(
    config: Config, topology: Topology, options: Mapping[str, Any] | None = None, dump_hlo: str | None = None
) -> Prediction:
    """Compiles the step for the topology and predicts it from the schedule.

    Args:
      config: the run.
      topology: the chips.
      options: additional XLA options.
      dump_hlo: path to which the scheduled HLO text is written if the step fits.

    Raises:
      UserError: if the config cannot run on the topology for a reason other than memory.
    """
    step = aot.compile_step(config, topology, options)
    prediction = _without_times(config, topology, step)
    if not step.memory.fits:
        return prediction
    if dump_hlo:
        storage.write_bytes(storage.path(dump_hlo), step.hlo.encode())
    return _with_times(prediction, config, topology, step)


def _without_times(config: Config, topology: Topology, step: aot.CompiledStep) -> Prediction:
    """The fields that need no schedule: settings, memory, and operations of the model."""
    work = expected_work(config)
    mesh = step.mesh
    data = config.data
    compute = config.compute
    memory = step.memory
    return Prediction(
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
        model_flops=sum(training_flops(config, work).values()),
        compile_seconds=step.seconds,
        host_gib=memory.host,
        remedies=() if memory.fits else tuple(aot.remedies(config, mesh)),
        refusal=_refusal(config, mesh),
    )


def _refusal(config: Config, mesh: Mesh) -> str:
    try:
        check_streams(config.data, mesh)
    except UserError as error:
        return str(error)
    return ""


def _with_times(prediction: Prediction, config: Config, topology: Topology, step: aot.CompiledStep) -> Prediction:
    """Adds the fields that follow from the schedule."""
    module = program.parse(step.hlo)
    trips = loss_chunks(config, expected_work(config), batch_shards(step.mesh))
    at_peak, by_cycles = (
        roofline.estimate(module, topology, step.coordinates, cycles=cycles, dynamic_trips=trips)
        for cycles in (False, True)
    )
    peak = topology.chip.peak_flops * topology.chips
    return dataclasses.replace(
        prediction,
        hardware_flops=at_peak.hardware_flops * topology.devices,
        kernel_flops=at_peak.kernel_flops * topology.devices,
        hbm_bytes=at_peak.hbm_bytes,
        collective_bytes=dict(at_peak.collective_bytes),
        collective_seconds=at_peak.collective_seconds,
        exposed_seconds=at_peak.exposed_seconds,
        step_seconds_roofline=at_peak.seconds,
        step_seconds_cycles=by_cycles.seconds,
        mfu_roofline=prediction.model_flops / peak / at_peak.seconds,
        mfu_cycles=prediction.model_flops / peak / by_cycles.seconds,
        parts=dict(at_peak.parts),
        waits=dict(at_peak.waits),
    )


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a whole stage without restarts and stalls; every field is a range (roofline, cycles)."""

    days: tuple[float, float]
    chip_hours: tuple[float, float]
    dollars: tuple[float, float]


def cost(prediction: Prediction, price: float) -> Cost | None:
    """The cost of the stage at a price in dollars per chip and hour, or None if the step does not fit."""
    if prediction.step_seconds_roofline is None or prediction.step_seconds_cycles is None:
        return None
    fast = prediction.step_seconds_roofline * prediction.steps
    slow = prediction.step_seconds_cycles * prediction.steps
    days = (fast / SECONDS_PER_HOUR / 24, slow / SECONDS_PER_HOUR / 24)
    chip_hours = (fast / SECONDS_PER_HOUR * prediction.chips, slow / SECONDS_PER_HOUR * prediction.chips)
    return Cost(days, chip_hours, dollars=(chip_hours[0] * price, chip_hours[1] * price))


def capacity_text(prediction: Prediction) -> str:
    """`27.0 of 95 GiB`, and the excess if the step does not fit."""
    over = prediction.hbm_gib - prediction.hbm_capacity_gib
    text = f"{prediction.hbm_gib:.1f} of {prediction.hbm_capacity_gib:.4g} GiB"
    return text if prediction.fits else f"{text}, {over:.1f} GiB too much"


def misfit_text(prediction: Prediction) -> str:
    """One sentence about a step that does not fit: the excess, and changes that would make it smaller."""
    return (
        f"the step does not fit {prediction.topology}: a chip needs {capacity_text(prediction)}; what would make it "
        f"smaller: {', or '.join(prediction.remedies)}"
    )
