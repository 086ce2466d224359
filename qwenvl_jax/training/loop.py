"""The training loop: restore, fetch, step, log, save, stop. Read it from the top."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.checkpoint.manager import Manager, save_frozen
from qwenvl_jax.checkpoint.restore import Source, frozen_of, initial_params, newest_state
from qwenvl_jax.config import Config
from qwenvl_jax.data.loader import join_states, make_loader, tallies
from qwenvl_jax.data.tokenizer import load_tokenizer, vocabulary_digest
from qwenvl_jax.models.attention import resolve_attention
from qwenvl_jax.params import merge, split
from qwenvl_jax.runtime import distributed, log, storage
from qwenvl_jax.runtime.claim import claimed
from qwenvl_jax.runtime.preemption import PreemptionGuard
from qwenvl_jax.sharding.batch import local_streams, put_batch
from qwenvl_jax.sharding.mesh import check_memory, make_mesh
from qwenvl_jax.sharding.rules import replicated
from qwenvl_jax.training import summary
from qwenvl_jax.training.metrics import Log, Window
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.start import find_start
from qwenvl_jax.training.state import State, placed_state
from qwenvl_jax.training.step import make_train_step


def train(config: Config, workdir: epath.PathLike) -> int:
    """Trains a stage to its last step, or continues one.

    Args:
      config: the run's, validated.
      workdir: its folder. If it holds a run of the same config, that run is continued from its newest checkpoint.

    Returns:
      The number of steps taken in all; less than `config.train.steps` if the process was asked to stop.

    Raises:
      UserError: for anything wrong with config, data or checkpoints, before the first step where possible.
    """
    workdir = storage.path(workdir)
    start, sources = find_start(config, workdir)
    if start == config.train.steps:
        log.line(f"{workdir} is finished: {start} steps")
        return start
    distributed.check_shared(workdir)
    distributed.check_devices()
    mesh = make_mesh(config.mesh)
    check_memory(config.optimizer.moments_memory, mesh)
    resolve_attention(config.compute.attention, jax.default_backend(), config.compute.compute_dtype)
    abstract = placed_state(config, mesh)

    with (
        make_loader(config, load_tokenizer(config.tokenizer), streams=local_streams(config.data, mesh)) as loader,
        claimed(workdir),
    ):
        distributed.agree(loader.facts())
        if start is None:
            summary.show(config, sources, mesh, loader.lengths)
            start, progress = 0, dict[str, Any]()
            state = begin(config, workdir, sources, abstract, vocabulary_digest(config.tokenizer))
        else:
            start, state, progress = resume(workdir, abstract, mesh)
            log.line(f"continuing {workdir} after step {start} of {config.train.steps}")
            loader.restore(progress["loader"])
            for key in distributed.from_primary(lambda: lineage.note_moves(workdir, config, start)):
                log.line(f"{key} has moved; noted in {lineage.LINEAGE}")

        train_step = make_train_step(config, mesh)
        window = Window(progress.get("window"))
        with (
            PreemptionGuard() as guard,  # outermost: it guards the last checkpoint until that is written
            Manager(workdir, keep=config.train.keep_checkpoints) as manager,
            Log(workdir, config, start, mesh) as writer,
        ):
            batch = put_batch(next(loader), config.data, mesh)
            for step in range(start + 1, config.train.steps + 1):
                state, metrics = train_step(state, batch)
                window.add(metrics)
                place, last = loader.state(), step == config.train.steps
                if not last:  # the next batch is fetched and copied while the devices work on this one
                    batch = put_batch(next(loader), config.data, mesh)
                window.wait_for_previous()
                writer.advance(step)
                if step % config.train.log_every == 0 or last:
                    counts = join_states(distributed.gather(tallies(place)))
                    writer.write(step, window.values(), loader.counters(counts))
                    window.clear()
                stop = guard.stop(step)
                if step % config.train.checkpoint_every == 0 or last or stop:
                    places = join_states(distributed.gather(place))
                    writer.flush()  # before the checkpoint: what it is behind of is never logged again
                    manager.save(step, state.trainable, state.opt_state, {"loader": places, "window": window.values()})
                if stop and not last:
                    manager.wait()
                    log.line(f"stopped by {guard.signal} after step {step}; run the same command again to continue")
                    return step
    return config.train.steps


def begin(
    config: Config,
    workdir: epath.Path,
    sources: dict[str, Source | None],
    abstract: State,
    vocabulary: str | None = None,
) -> State:
    """The state of a new run; its config, frozen tree and lineage written, in this order."""
    distributed.from_primary(lambda: lineage.begin(workdir, config))
    params = initial_params(config, sources, merge(abstract.trainable, abstract.frozen))
    trainable, frozen = split(params, config.train.trainable)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(trainable)
    save_frozen(workdir, frozen)
    if distributed.is_primary():
        notes: dict[str, Any] = {
            name: source and lineage.source_of(source.workdir, source.step, name) for name, source in sources.items()
        }
        lineage.write(workdir, config, notes, vocabulary=vocabulary)
    return State(jax.device_put(jnp.zeros((), jnp.int32), abstract.step.sharding), trainable, frozen, opt_state)


def resume(workdir: epath.Path, abstract: State, mesh: Mesh) -> tuple[int, State, dict[str, Any]]:
    """The newest whole checkpoint: its step, the state after it on whatever mesh this run has, the progress saved."""
    frozen = frozen_of(workdir, abstract.frozen)
    step, trainable, opt_state, progress = newest_state(workdir, abstract.trainable, abstract.opt_state)
    state = State(jax.device_put(jnp.asarray(step, jnp.int32), replicated(mesh)), trainable, frozen, opt_state)
    return step, state, progress
