"""Tables of what a run will do, printed at its start and by `--dry_run`. Allocates nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from qwenvl_jax.checkpoint import handoff
from qwenvl_jax.checkpoint.restore import StartingPoint
from qwenvl_jax.config import COMPONENTS, TRAINABLE, Config, config_hash
from qwenvl_jax.data.passes import expected_passes, many_passes
from qwenvl_jax.models import quantised
from qwenvl_jax.models.flops import full_work, training_flops
from qwenvl_jax.params import LORA, VOCABULARY, Params, PyTree, component_of, flatten, merge
from qwenvl_jax.runtime import log
from qwenvl_jax.sharding.mesh import AnyMesh
from qwenvl_jax.sharding.report import ComponentLine, component_lines, memory_use, parameter_lines
from qwenvl_jax.training.chatml import warn_of_unknown_tokens
from qwenvl_jax.training.optimizer import layer_scales, make_schedule
from qwenvl_jax.training.state import State

BIG = 2**20  # bytes from which a parameter gets a line in the sharding table


def show(
    config: Config,
    starting_points: dict[str, StartingPoint | None],
    state: State,
    mesh: Mesh | None = None,
) -> None:
    """Prints all tables but that of the passes.

    Args:
      config: the run's.
      starting_points: where each tower starts (`check_init`).
      state: from `abstract_state`, with shardings if there is a mesh.
      mesh: the devices, for the sharding table; None leaves it out.
    """
    log.line(f"config {config_hash(config)}  model {config.model.name}  stage {config.train.stage}")
    show_parameters(config, state)
    show_rates(config)
    show_data(config)
    show_flops(config)
    show_start(config, starting_points, merge(state.trainable, state.frozen))
    warn_of_unknown_tokens(config, starting_points["decoder"])
    if mesh is not None:
        show_sharding(config, state, mesh)


def show_start(config: Config, starting_points: dict[str, StartingPoint | None], shapes: Params) -> None:
    """The checkpoint that each tower starts from, and what becomes of its tensors."""
    fits = handoff.fits_of(starting_points, shapes)
    kinds = (handoff.LOADED, handoff.RESIZED, handoff.FRESH, handoff.SKIPPED)
    rows: list[tuple[object, ...]] = []
    for name, starting_point in starting_points.items():
        counts = [sum(path[0] == name and fit.how == kind for path, fit in fits.items()) for kind in kinds]
        planned = getattr(config.init, name)
        if starting_point:
            rows.append((name, starting_point.workdir, starting_point.stage, starting_point.step, *counts))
        elif planned:
            rows.append((name, planned, "not there yet", "", *("",) * len(kinds)))
        else:
            rows.append((name, "fresh", "", "", *counts))
    log.table("start", ("tower", "from", "stage", "step", *kinds), rows)
    changed = [("/".join(path), fit.how, fit.why) for path, fit in fits.items() if fit.why]
    if changed:
        log.table("tensors that are not loaded as they are", ("tensor", "", "why"), changed)


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def show_parameters(config: Config, state: State) -> None:
    """Parameters per component, and the memory of the trainable and frozen trees."""
    counts = {name: [0, 0] for name in (*COMPONENTS, *((LORA,) if config.lora.rank else ()), "fixed")}
    for half, tree in enumerate((state.trainable, quantised.plain(state.frozen))):
        for path, leaf in flatten(tree).items():
            counts[component_of(path)][half] += math.prod(leaf.shape)
    rows: list[tuple[object, ...]] = [
        (name, log.count(trained + frozen), _state(trained, frozen)) for name, (trained, frozen) in counts.items()
    ]
    trained, frozen = (sum(halves) for halves in zip(*counts.values(), strict=True))
    rows.append(("total", log.count(trained + frozen), ""))
    rows.append(("trainable", log.count(trained), log.size(_bytes(state.trainable))))
    stored = config.compute.frozen_dtype
    if config.compute.frozen_kernels != "plain":
        stored += f", kernels of the decoder {config.compute.frozen_kernels}"
    rows.append(("frozen", log.count(frozen), f"{log.size(_bytes(state.frozen))} {stored}"))
    rows.append(("optimiser", "", log.size(_bytes(state.opt_state))))
    log.table("parameters", ("component", "parameters", "state"), rows)


def _state(trained: int, frozen: int) -> str:
    """What is done with a component of which so many parameters are trained and so many frozen."""
    if trained and frozen:
        return f"{log.count(trained)} trained"
    return "trained" if trained else "frozen"


def show_rates(config: Config) -> None:
    """Peak rate per group and per ViT layer, and the schedule's milestones."""
    optimizer = config.optimizer
    steps = config.train.steps
    layers = config.model.vit.layers
    peak = optimizer.peak_learning_rate
    warmup = optimizer.warmup_steps
    rows: list[tuple[object, ...]] = []
    if "vit" in config.train.trainable:
        decay = optimizer.vit_layer_decay
        rows.append(("vit embeddings, ln_pre", f"{decay**layers:.6f}", f"{peak * decay**layers:.3e}"))
        for layer, scale in enumerate(layer_scales(decay, layers)):
            rows.append((f"vit block {layer}", f"{scale:.6f}", f"{peak * scale:.3e}"))
    factors = {name: 1.0 for name in TRAINABLE if name in config.train.trainable and name != "vit"}
    if VOCABULARY in factors or ("decoder" in factors and optimizer.vocabulary_rate != 1):
        factors[VOCABULARY] = optimizer.vocabulary_rate
    rows += [(name, f"{factor:g}", f"{peak * factor:.3e}") for name, factor in factors.items()]
    names = {"adamw": "AdamW", "muon": "Muon for matrices, AdamW for the rest"}
    log.table(f"peak learning rate ({names[optimizer.kind]})", ("group", "factor", "rate"), rows)
    schedule = make_schedule(optimizer, steps)
    milestones = sorted({1, max(warmup, 1), warmup + (steps - warmup) // 2, steps})
    log.table(
        "schedule", ("step", "learning rate"), [(step, f"{float(schedule(step - 1)):.3e}") for step in milestones]
    )


def show_data(config: Config) -> None:
    """Shares of the mixture, and the shape of a batch."""
    data = config.data
    total = sum(source.weight for source in data.mixture) or 1.0  # 0 if all sources begin later
    log.table(
        "mixture",
        ("source", "task", "weight", "share", "records"),
        [(s.name, s.task, f"{s.weight:g}", f"{s.weight / total:.2%}", s.records) for s in data.mixture],
    )
    tokens = data.rows_per_step * data.sequence_length
    images = data.accumulation * data.image_budget if data.images_per_row else 0
    log.table(
        "batch",
        ("", "value"),
        [
            ("rows per step", log.count(data.rows_per_step)),
            ("microbatches", data.accumulation),
            ("rows per microbatch", log.count(data.rows_per_microbatch)),
            ("tokens per row", log.count(data.sequence_length)),
            ("tokens per step", log.count(tokens)),
            ("image side, px", data.image_size),
            ("images per step, at most", log.count(images)),
            ("image tokens per image", config.model.resampler.queries),
            ("steps", log.count(config.train.steps)),
            ("warm-up steps", log.count(config.optimizer.warmup_steps)),
        ],
    )


def show_passes(config: Config, samples_per_row: float = 0.0, samples: Mapping[str, int] | None = None) -> None:
    """Expected samples and passes by source and in all, and a warning if a source is read many times.

    Args:
      config: the run's.
      samples_per_row: mean of the rows packed so far; 0 before there are any. The table is then an estimate, which
        assumes that a row holds `data.images_per_row` samples of one image each, and at least one.
      samples: by source, if they have been opened.
    """
    estimate = "" if samples_per_row else ", an estimate"
    unopened = "" if samples else "; records are not opened: a weight counts as millions of samples"
    samples_per_row = samples_per_row or max(1.0, config.data.images_per_row)
    expected = expected_passes(config, samples_per_row, samples)
    log.table(
        f"expected over {log.count(config.train.steps)} steps, at {samples_per_row:.3g} samples per row"
        f"{estimate}{unopened}",
        ("source", "samples", "passes"),
        [(name, log.count(round(one.drawn)), f"{one.passes:.2f}") for name, one in expected.items()],
    )
    if sentence := many_passes(expected):
        log.line(f"warning: {sentence}")


def show_flops(config: Config) -> None:
    """Operations of a step with every row and the image budget full."""
    flops = training_flops(config, full_work(config))
    total = sum(flops.values())
    rows = [(name, f"{value / 1e12:,.3f}", f"{value / total:.1%}") for name, value in flops.items() if value]
    log.table(
        "operations per step, forward and backward, full batch",
        ("part", "TFLOP", "share"),
        [*rows, ("total", f"{total / 1e12:,.3f}", "")],
    )


def show_sharding(config: Config, state: State, mesh: Mesh) -> None:
    """The mesh, how every component is split over it, and every big parameter."""
    device = mesh.devices.flat[0]
    log.line(f"mesh: {_sizes(mesh)} on {mesh.size} x {device.device_kind}; attention {config.compute.attention}")
    if mesh.size == 1:
        return
    show_components(config, state, mesh)
    log.table(
        f"sharding of parameters from {log.size(BIG)}",
        ("parameter", "shape", "split", "per device"),
        [
            (line.name, "x".join(map(str, line.shape)), str(line.spec), log.size(line.bytes_per_device))
            for line in parameter_lines(merge(state.trainable, state.frozen), mesh)
            if line.bytes_total >= BIG
        ],
    )


def show_components(config: Config, state: State, mesh: AnyMesh) -> None:
    """Bytes per component and of the optimiser, how they are split, and the share that every device holds whole.

    Args:
      config: the run's.
      state: with shardings (`abstract_state`).
      mesh: that it is split over; its sizes are enough.
    """
    components = component_lines(parameter_lines(merge(state.trainable, state.frozen), mesh), mesh)
    rows: list[tuple[object, ...]] = [
        (
            line.name,
            "trained" if line.name in config.train.trainable else "frozen",
            log.size(line.bytes_total),
            log.size(line.bytes_per_device),
            _shares(line, mesh),
            f"{line.bytes_replicated / line.bytes_total:.2%}",
        )
        for line in components
    ]
    total = sum(line.bytes_total for line in components)
    per_device = sum(line.bytes_per_device for line in components)
    replicated = sum(line.bytes_replicated for line in components)
    rows.append(("all parameters", "", log.size(total), log.size(per_device), "", f"{replicated / total:.2%}"))
    for kind, (total, per_device) in memory_use(state.opt_state).items():
        if total >= 1024:  # more than the step counter, which is always in device memory
            rows.append(("optimiser", f"in {kind} memory", log.size(total), log.size(per_device), "", ""))
    log.table(
        f"sharding over {_sizes(mesh)}",
        ("component", "state", "bytes", "per device", "split over", "whole on every device"),
        rows,
    )


def _shares(line: ComponentLine, mesh: AnyMesh) -> str:
    """The shares of a component by the axes they are split over, largest first, e.g. "99.8% fsdp 4 x tensor 2"."""
    listed = [(size, axes) for axes, size in line.split.items() if axes and size >= line.bytes_total / 1000]
    parts = []
    for size, axes in sorted(listed, reverse=True):
        ways = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes)
        parts.append(f"{size / line.bytes_total:.1%} {ways}")
    return ", ".join(parts)


def _sizes(mesh: AnyMesh) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
