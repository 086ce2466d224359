"""The training loop: compile, restore, fetch, step, log, save, stop. Read it from the top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint import handoff, lineage, rewind
from qwenvl_jax.checkpoint.local import LocalCheckpoints
from qwenvl_jax.checkpoint.manager import WINDOW, Checkpoints, save_frozen
from qwenvl_jax.checkpoint.restore import StartingPoint, frozen_of, initial_params, newest_state
from qwenvl_jax.checkpoint.schedule import Schedule
from qwenvl_jax.checkpoint.steps import latest_step
from qwenvl_jax.config import Config
from qwenvl_jax.data import fingerprint
from qwenvl_jax.data.loader import counts_of, join_states
from qwenvl_jax.data.tokenizer import load_tokenizer, vocabulary_digest
from qwenvl_jax.models.attention import resolve_attention
from qwenvl_jax.params import merge, split
from qwenvl_jax.runtime import compilation_cache, distributed, host_sync, log, storage
from qwenvl_jax.runtime.claim import claimed
from qwenvl_jax.runtime.preemption import PreemptionGuard
from qwenvl_jax.sharding.batch import abstract_batch, check_streams, local_streams, put_batch
from qwenvl_jax.sharding.mesh import check_memory, make_mesh
from qwenvl_jax.training import summary
from qwenvl_jax.training.anomalies import PROGRESS, Anomalies
from qwenvl_jax.training.compiled_ahead import compiled_ahead
from qwenvl_jax.training.evaluations import evaluate, is_evaluated, is_unevaluated
from qwenvl_jax.training.ledger import Ledger, check_exports
from qwenvl_jax.training.metrics import MetricsWindow
from qwenvl_jax.training.metrics_log import MetricsLog
from qwenvl_jax.training.observers import MakeObserver, make_observers
from qwenvl_jax.training.optimizer import make_optimizer
from qwenvl_jax.training.report.live import reported
from qwenvl_jax.training.start import check_hosts, find_start, make_agreed_loader, note_moves
from qwenvl_jax.training.state import State, abstract_state, shardings_of
from qwenvl_jax.training.step import make_train_step
from qwenvl_jax.training.watchdog import Watchdog
from qwenvl_jax.training.watched_step import WatchedStep


def train(
    config: Config,
    workdir: epath.PathLike,
    observers: Sequence[MakeObserver] = (),
    began: float | None = None,
    *,
    from_step: int | None = None,
) -> int:
    """Trains a stage to its last step, or continues one.

    Args:
      config: the run's, validated.
      workdir: its folder. If it holds a run of the same config, that run is continued from its newest checkpoint.
      observers: what measures the state every `config.evaluation.every` steps, besides the held-out loss.
      began: when this start began, in seconds since 1970, for the ledger; by default now.
      from_step: of an older checkpoint to go back to; later ones are moved aside.

    Returns:
      The number of steps taken in all; less than `config.train.steps` if the process was asked to stop.

    Raises:
      UserError: if config, data or checkpoints are wrong; before the first step if possible.
      SystemExit: if the process was asked to stop in an evaluation, whose state is saved.
    """
    ledger = Ledger(began)
    check_exports(config.watching)
    workdir = storage.path(workdir)
    local = LocalCheckpoints(config.checkpoint.local, workdir)
    going_back = rewind.wanted(workdir, from_step, local)
    steps_taken, starting_points = find_start(config, workdir, going_back)
    evaluates = config.evaluation.every > 0 and bool(observers or config.evaluation.split)
    if steps_taken == config.train.steps and not (evaluates and is_unevaluated(workdir, config, steps_taken)):
        log.line(f"{workdir} is finished: {steps_taken} steps")
        local.remove()
        return steps_taken
    distributed.check_devices()
    compilation_cache.require_common_keys()
    mesh = checked_mesh(config)
    abstract = abstract_state(config, mesh)
    streams = local_streams(config.data, mesh)
    check_streams(config.data, mesh, continued=steps_taken is not None)
    tokenizer = load_tokenizer(config.tokenizer)
    check_hosts(workdir, mesh, abstract, begins=steps_taken is None, local=config.checkpoint.local)
    watchdog = Watchdog(config.watchdog, workdir)
    train_step = make_train_step(config, mesh, abstract)
    wanted = steps_taken != config.train.steps
    with (
        make_agreed_loader(config, tokenizer, streams) as loader,
        watchdog,
        claimed(workdir),
        compiled_ahead(train_step, abstract, abstract_batch(config, mesh), wanted=wanted) as compilation,
    ):
        resumed = resume(workdir, abstract, going_back, local)
        if resumed is None:
            summary.show(config, starting_points, abstract, mesh)
            noted = {"vocabulary": vocabulary_digest(config.tokenizer), "data": fingerprint.combined(loader.facts())}
            steps_taken, state, progress = begin(config, workdir, starting_points, abstract, noted)
        else:
            steps_taken, state, progress = resumed
            log.line(f"continuing {workdir} after step {steps_taken} of {config.train.steps}")
            loader.restore(progress["loader"])
            note_moves(workdir, config, steps_taken)

        watching = make_observers(config, tokenizer, mesh, observers)
        window = MetricsWindow(progress.get(WINDOW))
        anomalies = Anomalies(config, workdir, streams, progress)
        state = state._replace(means=anomalies.means(abstract.means))
        with (
            PreemptionGuard() as guard,  # outermost: active until the last checkpoint is written
            reported(workdir, config.watching.report_minutes),
            ledger.kept(workdir, steps_taken, config.train.steps, config.watching.goodput_job),
            Checkpoints(workdir, keep=config.train.keep_checkpoints, rules=config.checkpoint) as checkpoints,
            local.after(steps_taken),
            MetricsLog(workdir, config, steps_taken, mesh, ledger) as metrics_log,
            WatchedStep(train_step, config.watching, workdir, ledger, compilation) as take_step,
            ledger.span("step"),  # but for the spans within it
            host_sync.refused(unless=config.watching.host_sync == "allowed"),
        ):
            watchdog.watch(checkpoints, local)
            schedule = Schedule(config, checkpoints)
            local_schedule = Schedule(config, local)
            with metrics_log.waiting_for_data():
                batch = put_batch(next(loader), config.data, mesh)
            if steps_taken == 0:
                summary.show_passes(config, loader.samples_per_row, loader.samples)
            if evaluates and is_unevaluated(workdir, config, steps_taken):
                evaluate(guard, metrics_log, steps_taken, state, watching)
            for step in range(steps_taken + 1, config.train.steps + 1):
                state, metrics = take_step(step, state, batch)
                window.add(metrics)
                anomalies.add(step, metrics, loader.last())
                position = loader.state()
                last = step == config.train.steps
                if not last:  # fetch and copy the next batch while the devices work on this one
                    with metrics_log.waiting_for_data():
                        batch = put_batch(next(loader), config.data, mesh)
                window.wait_for_previous()
                metrics_log.advance(step)
                watchdog.step(step)
                if step % config.train.log_every == 0 or last:
                    counts = join_states(distributed.gather(counts_of(position)))
                    metrics_log.write(step, window.values(), loader.counters(counts))
                    window.clear()
                evaluated = bool(watching) and is_evaluated(step, config)
                stop = guard.stop(step) or anomalies.too_many()
                due = schedule.due(step) or last or stop
                local_due = local_schedule.due(step) and not (last or stop)
                if due or local_due:
                    progress = {"loader": join_states(distributed.gather(position)), WINDOW: window.values()}
                    progress[PROGRESS] = anomalies.progress(state.means)
                    metrics_log.flush()  # before the checkpoint: a continued run does not log earlier steps again
                    with ledger.span("checkpoint"):
                        if local_due:
                            local.save(step, state.trainable, state.opt_state, progress)
                        if due:
                            checkpoints.save(step, state.trainable, state.opt_state, progress)
                        if (last or stop) and not evaluated:
                            checkpoints.wait()
                if stop:
                    anomalies.raise_if_too_many()
                if stop and not last:
                    log.line(f"stopped by {guard.signal} after step {step}; run the same command again to continue")
                    return step
                if evaluated:
                    evaluate(guard, metrics_log, step, state, watching)
    local.remove()
    return config.train.steps


def checked_mesh(config: Config) -> Mesh:
    """The mesh of a run, if its devices have the memory and the attention kernel that the config names.

    Raises:
      UserError: if the devices lack either of them, or if the mesh does not fit the devices.
    """
    mesh = make_mesh(config.mesh)
    check_memory(config.optimizer.moments_memory, mesh)
    resolve_attention(config.compute.attention, jax.default_backend(), config.compute.compute_dtype)
    return mesh


def begin(
    config: Config,
    workdir: epath.Path,
    starting_points: dict[str, StartingPoint | None],
    abstract: State,
    noted: dict[str, str] | None = None,
) -> tuple[int, State, dict[str, Any]]:
    """Begins a new run: step 0, its state, and no progress. Writes its config, frozen tree and lineage, in this order.

    Args:
      config: the run's.
      workdir: its folder.
      starting_points: where each tower starts, from `find_start`.
      abstract: from `abstract_state`.
      noted: the digests of vocabulary and data for `lineage.write`.
    """
    distributed.from_primary(lambda: lineage.begin(workdir, config))
    params = initial_params(config, starting_points, merge(abstract.trainable, abstract.frozen))
    trainable, frozen = split(params, config.train.trainable)
    optimizer = make_optimizer(config.optimizer, config.train.steps, config.model.vit.layers)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings_of(abstract.opt_state))(trainable)
    save_frozen(workdir, frozen)
    if distributed.is_primary():
        origins: dict[str, Any] = {
            tower: point and lineage.origin_of(point.workdir, point.step, tower)
            for tower, point in starting_points.items()
        }
        tensors = handoff.to_json(handoff.fits_of(starting_points, params))
        lineage.write(workdir, config, origins, tensors=tensors, **(noted or {}))
    step = jax.device_put(jnp.zeros((), jnp.int32), abstract.step.sharding)
    return 0, State(step, trainable, frozen, opt_state), {}


def resume(
    workdir: epath.Path, abstract: State, going_back: int | None, local: LocalCheckpoints
) -> tuple[int, State, dict[str, Any]] | None:
    """The newest whole checkpoint, or an older one: its step, the state on the mesh of `abstract`, the progress.

    Args:
      workdir: the run's folder.
      abstract: from `abstract_state`.
      going_back: the step of the older one, from `rewind.wanted`; None for the newest.
      local: the local checkpoints of the run, of which the newest may be newer than all others.

    Returns:
      None if there is no checkpoint.
    """
    shapes = (abstract.trainable, abstract.opt_state)
    durable = distributed.from_primary(lambda: latest_step(workdir))
    if going_back is not None:
        found = (going_back, *rewind.state_of(workdir, going_back, *shapes, local))
    elif (newer := local.newest_state(durable, *shapes)) is not None:
        found = newer
    elif durable is not None:
        found = newest_state(workdir, *shapes)
    else:
        return None
    number, trainable, opt_state, progress = found
    frozen = frozen_of(workdir, abstract.frozen)
    step = jax.device_put(jnp.asarray(number, jnp.int32), abstract.step.sharding)
    return number, State(step, trainable, frozen, opt_state), progress
