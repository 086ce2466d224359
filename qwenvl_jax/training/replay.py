"""The step of an anomaly once more: losses by sample, gradients by tower, and the first number that is not finite.

Shape suffixes: A microbatches, B rows, L tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.lineage import read_config
from qwenvl_jax.checkpoint.manager import read_progress
from qwenvl_jax.checkpoint.restore import load_params
from qwenvl_jax.checkpoint.steps import finished_steps, folder_of
from qwenvl_jax.config import TOWERS, Config
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.models.attention import resolve_attention
from qwenvl_jax.params import Params, flatten, merge, split
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import check_batch, put_batch
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training import anomaly_dump
from qwenvl_jax.training.anomalies import updates_of
from qwenvl_jax.training.nonfinite import first_nonfinite, nonfinite_leaves
from qwenvl_jax.training.step import microbatch_loss

_SHOWN = 12  # samples and leaves of a list


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What came of a step.

    Attributes:
      losses: nats per supervised token of every sample, in the order of the dump; NaN without supervised tokens.
      loss: of the whole batch.
      tower_norms: of the gradients, by tower.
      operation: the first with a NaN or +inf in the forward pass, "" if there is none.
      parameters, gradients: leaves with numbers that are not finite.
    """

    losses: list[float]
    loss: float
    tower_norms: dict[str, float]
    operation: str
    parameters: list[str]
    gradients: list[str]


def replay(workdir: epath.PathLike, step: int) -> Iterator[str]:
    """Takes the step of an anomaly again, on the devices of this process; yields the lines of a report.

    The parameters are those of the checkpoint with the nearest number of updates: exactly those of the step, if no
    update lies between.

    Args:
      workdir: of the run.
      step: of the anomaly.

    Raises:
      UserError: if the batch was not written, or there is no checkpoint.
    """
    config, mesh = _fitted(read_config(workdir))
    facts, batch, samples = anomaly_dump.read(workdir, step, config)
    recorded = anomaly_dump.numbers(facts)
    yield f"step {step} was left out: {facts['reason']}"
    checkpoint, between = _nearest(workdir, facts["updates"])
    exact = (
        "exactly its parameters"
        if between == 0
        else f"{abs(between)} updates {'before' if between > 0 else 'after'} it"
    )
    yield f"parameters: the checkpoint of step {checkpoint}, {exact}"
    params = load_params(workdir, step=checkpoint, mesh=mesh, adapters_apart=True)[0]
    done = run(config, mesh, params, batch, samples, step - 1)
    yield f"loss {done.loss:.6g} (recorded {recorded['loss']:.6g})"
    norm = math.sqrt(sum(each**2 for each in done.tower_norms.values()))
    yield f"gradient norm {norm:.6g} (recorded {recorded['grad_norm']:.6g})"
    for tower, each in done.tower_norms.items():
        yield f"  {tower:10} {each:.6g}"
    yield from _listed("parameters that are not finite", done.parameters)
    yield f"first operation that is not finite: {done.operation or 'none'}"
    yield from _listed("gradients that are not finite", done.gradients)
    yield "samples, the highest loss first: nats per token, microbatch and row, source, record"
    order = sorted(range(len(samples)), key=lambda k: _rank(done.losses[k]))
    for k in order[:_SHOWN]:
        sample = samples[k]
        position = f"{sample['microbatch']}/{sample['row']}"
        yield f"  {done.losses[k]:10.4f}  {position:>7}  {sample['source']}  {sample['id']}"
    if len(samples) > _SHOWN:
        yield f"  and {len(samples) - _SHOWN} more"


def run(config: Config, mesh: Mesh, params: Params, batch: Batch, samples: list[dict[str, Any]], step: int) -> Replayed:
    """The forward and backward pass of a batch; changes nothing.

    Args:
      config: the run's.
      mesh: of the devices.
      params: trained and frozen, on the mesh.
      batch: of the step.
      samples: from `anomaly_dump.read`.
      step: the number of the step, counted from 0.
    """
    trainable, frozen = split(params, config.train.trainable)
    numbers_ABL = np.zeros_like(batch.sources)
    for number, sample in enumerate(samples):
        numbers_ABL[sample["microbatch"], sample["row"], slice(*sample["tokens"])] = number
    total = jnp.maximum(jnp.sum(jnp.asarray(batch.loss_mask)), 1.0)
    loss_of = functools.partial(microbatch_loss, config=config, mesh=mesh, source_count=len(samples), step=step)
    gradients_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    loss = 0.0
    sums = np.zeros(len(samples))
    gradients: Any = None
    operation = ""
    with jax.set_mesh(mesh):
        placed = put_batch(batch._replace(sources=numbers_ABL), config.data, mesh)
        for index in range(config.data.accumulation):
            micro = jax.tree.map(lambda field, index=index: field[index], placed)
            (share, by_sample), part = gradients_of(trainable, frozen, micro, total)
            loss += float(share)
            sums += np.asarray(by_sample, np.float64)
            gradients = part if gradients is None else jax.tree.map(jnp.add, gradients, part)
            operation = operation or first_nonfinite(loss_of, trainable, frozen, micro, total)
    tokens = np.zeros(len(samples))
    np.add.at(tokens, numbers_ABL.ravel(), batch.loss_mask.ravel())
    losses = [float(total / count) if count else math.nan for total, count in zip(sums, tokens, strict=True)]
    return Replayed(
        losses=losses,
        loss=loss,
        tower_norms=_tower_norms(gradients),
        operation=operation,
        parameters=nonfinite_leaves(merge(trainable, frozen)),
        gradients=nonfinite_leaves(gradients),
    )


def _fitted(config: Config) -> tuple[Config, Mesh]:
    """The config of a run for the devices of this process, and their mesh.

    They may be fewer or of another kind: then the rows are split over as many of them as divide a microbatch.
    """
    rows = config.data.rows_per_microbatch
    try:
        mesh = make_mesh(config.mesh)
        check_batch(rows, mesh)
    except UserError:
        count = max(count for count in range(1, jax.device_count() + 1) if rows % count == 0)
        split = dataclasses.replace(config.mesh, data=1, fsdp=-1, tensor=1, slices=1)
        config = dataclasses.replace(config, mesh=split)
        mesh = make_mesh(split, jax.devices()[:count])
    compute = config.compute
    try:
        resolve_attention(compute.attention, jax.default_backend(), compute.compute_dtype)
    except UserError:
        compute = dataclasses.replace(compute, attention="auto")
    # Every layer is written out, so that an operation can be named by its layer.
    compute = dataclasses.replace(compute, unroll_layers=True, remat_vit="none", remat_decoder="none")
    return dataclasses.replace(config, compute=compute), mesh


def _nearest(workdir: epath.PathLike, updates: int) -> tuple[int, int]:
    """The checkpoint whose number of updates is nearest, and how many updates it lacks (negative: has too many)."""
    lacks = {}
    for step in finished_steps(workdir):
        with contextlib.suppress(DamagedError):
            lacks[step] = updates - updates_of(step, read_progress(folder_of(workdir, step)))
    if not lacks:
        raise UserError(f"{workdir} has no whole checkpoint, whose parameters a replay needs; train it further")
    best = min(lacks, key=lambda step: (abs(lacks[step]), -step))
    return best, lacks[best]


def _tower_norms(gradients: Params) -> dict[str, float]:
    squares = dict.fromkeys(TOWERS, 0.0)
    for path, leaf in flatten(gradients).items():
        squares[path[0]] += float(jnp.sum(jnp.square(leaf.astype(jnp.float32))))
    return {tower: math.sqrt(each) if each >= 0 else math.nan for tower, each in squares.items()}


def _listed(title: str, lines: list[str]) -> Iterator[str]:
    yield f"{title}: {len(lines) or 'none'}"
    for line in lines[:_SHOWN]:
        yield f"  {line}"


def _rank(loss: float) -> tuple[int, float]:
    """Sorts losses: what is not finite first, then from high to low."""
    return (0, 0.0) if not math.isfinite(loss) else (1, -loss)
