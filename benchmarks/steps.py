"""Shared by the step benchmarks: the batch, this code's side, measuring, and alternating between sides.

A side is one implementation of the training step over a given batch. Every measurement of a side runs in a new process,
so that the memory and threads of one side do not disturb another; sides alternate, so that a slow minute affects both.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qwenvl_jax.config import Config
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.runtime.errors import UserError

GIB = 2**30
OUT_OF_MEMORY = "out of memory"


class Side(NamedTuple):
    """One implementation, ready to step.

    Attributes:
      step: takes one optimiser step, waits until the devices are done, returns the loss.
      trained: number of trained parameters.
      device: its name; `devices` how many of them.
      peak: bytes, the most in use on one device so far.
    """

    step: Callable[[], float]
    trained: int
    device: str
    devices: int
    peak: Callable[[], float]


def process_peak() -> float:
    """Peak bytes of memory of this process; used as the peak of a CPU device."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def full_batch(config: Config, supervised: int | None = None) -> Batch:
    """Full rows of noise. Every row is cut into as many equal samples as it has images; each is an image, then text.

    Args:
      config: `data.images_per_row` must be a whole number that divides the row; 0 gives one sample of text.
      supervised: targets at the end of each sample; all of its text by default.
    """
    data = config.data
    queries = config.model.resampler.queries
    images = int(data.images_per_row)
    samples = max(images, 1)
    length = data.sequence_length // samples
    if images != data.images_per_row or data.sequence_length % samples:
        raise UserError(
            f"rows of {data.sequence_length} cannot be cut into {data.images_per_row} equal samples, one per image"
        )
    shape = (data.accumulation, data.rows_per_microbatch, samples, length)
    rng = np.random.default_rng(0)
    slots = np.full(shape, -1, np.int32)
    if images:
        number = np.arange(data.rows_per_microbatch * images) % data.group_images  # within its image group
        slots[..., 1 : 1 + queries] = number.reshape(-1, images, 1) * queries + np.arange(queries)
    # A position predicts the token after it; the first text follows the mark that ends the image.
    first = queries + 1 if images else 0
    mask = np.zeros(shape, np.float32)
    mask[..., first if supervised is None else length - 1 - supervised : length - 1] = 1
    tokens = rng.integers(0, config.model.decoder.vocab_size, shape).astype(np.int32)
    targets = np.where(mask > 0, np.roll(tokens, -1, axis=-1), 0)
    segments = np.broadcast_to(np.arange(1, samples + 1, dtype=np.int32)[:, None], shape)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    pixels = (data.accumulation, data.image_budget, data.image_size, data.image_size, 3)
    return Batch(
        tokens=tokens.reshape(*shape[:2], -1),
        targets=targets.reshape(*shape[:2], -1),
        loss_mask=mask.reshape(*shape[:2], -1),
        segment_ids=segments.reshape(*shape[:2], -1),
        positions=positions.reshape(*shape[:2], -1),
        image_slot=slots.reshape(*shape[:2], -1),
        sources=np.zeros((*shape[:2], data.sequence_length), np.int32),
        images=rng.integers(0, 256, pixels, dtype=np.uint8),
    )


def jax_side(config: Config, batch: Batch) -> Side:
    """This code: the step that `qwenvl_jax.train` takes, from fresh weights."""
    import jax
    import jax.numpy as jnp

    from qwenvl_jax.models import lora
    from qwenvl_jax.params import split
    from qwenvl_jax.sharding.batch import put_batch
    from qwenvl_jax.sharding.mesh import make_mesh
    from qwenvl_jax.training.optimizer import make_optimizer
    from qwenvl_jax.training.state import State, abstract_state, shardings_of
    from qwenvl_jax.training.step import make_train_step

    mesh = make_mesh(config.mesh)
    abstract = abstract_state(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)

    def begin(key: jax.Array) -> State:
        trainable, frozen = split(lora.init_params(config.model, config.lora, key), config.train.trainable)
        frozen = jax.tree.map(lambda leaf, stored: leaf.astype(stored.dtype), frozen, abstract.frozen)
        return State(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))

    state = jax.jit(begin, out_shardings=shardings_of(abstract))(jax.random.key(0))
    on_devices = put_batch(batch, config.data, mesh)
    train_step = make_train_step(config, mesh, abstract)
    device = mesh.devices.flat[0]

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, on_devices)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    def peak() -> float:
        stats = device.memory_stats()
        return float(stats["peak_bytes_in_use"]) if stats else process_peak()

    trained = sum(leaf.size for leaf in jax.tree.leaves(abstract.trainable))
    return Side(step, trained, device.device_kind, mesh.size, peak)


def measure(make: Callable[[], Side], warm_up: int, steps: int) -> dict[str, Any]:
    """Times each of `steps` steps after `warm_up` others, of which the first compiles.

    Returns:
      JSON values, or only `error` if the devices have too little memory.
    """
    try:
        side = make()
        started = time.perf_counter()
        side.step()
        first = time.perf_counter() - started
        for _ in range(warm_up - 1):
            side.step()
        seconds = []
        loss = 0.0
        for _ in range(steps):
            started = time.perf_counter()
            loss = side.step()
            seconds.append(time.perf_counter() - started)
    except Exception as error:  # each framework raises another exception for this
        if "out of memory" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error):
            print(error, file=sys.stderr)
            return {"error": OUT_OF_MEMORY}
        raise
    return {
        "seconds": seconds,
        "first_seconds": first,
        "loss": loss,
        "trained": side.trained,
        "device": side.device,
        "devices": side.devices,
        "peak_gib": side.peak() / GIB,
    }


def alternate(
    sides: Sequence[str],
    command: Callable[[str], Sequence[str]],
    repeat: int,
    environment: Mapping[str, str] | None = None,
    same_count: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Runs `command(side)` for all sides in turn, `repeat` times; a side that ran out of memory is not run again.

    Args:
      sides: their names.
      command: of one side.
      repeat: alternations.
      environment: of the processes; this one's by default.
      same_count: whether all sides must train the same number of parameters.

    Returns:
      By side the last lines that its processes printed, see `measure`.

    Raises:
      SystemExit: if a process fails, or two sides do not train the same number of parameters though they must.
    """
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(repeat):
        for side in sides:
            if runs[side] and "error" in runs[side][-1]:
                continue
            process = subprocess.run(command(side), stdout=subprocess.PIPE, text=True, env=environment)
            if process.returncode:
                sys.exit(f"the side {side!r} failed")
            run = json.loads(process.stdout.splitlines()[-1])
            runs[side].append(run)
            said = run.get("error") or f"best {min(run['seconds']):.4f} s"
            print(f"{number + 1}/{repeat} {side:14} {said}", file=sys.stderr)
    trained = {run["trained"] for runs_of_side in runs.values() for run in runs_of_side if "error" not in run}
    if len(trained) > 1 and same_count:
        sys.exit(f"the sides train different numbers of parameters: {trained}")
    return runs


def best_and_median(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds of the best step of all runs, and the median of the runs' medians."""
    return min(min(run["seconds"]) for run in runs), statistics.median(
        statistics.median(run["seconds"]) for run in runs
    )
