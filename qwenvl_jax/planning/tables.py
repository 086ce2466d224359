"""Prints predictions as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qwenvl_jax.planning.assumptions import ASSUMPTIONS, CHIP_COLUMNS, chip_rows
from qwenvl_jax.planning.candidates import Failure, Outcome
from qwenvl_jax.planning.decoding import Decoding
from qwenvl_jax.planning.prediction import Prediction, capacity_text, cost
from qwenvl_jax.runtime import log

Cells = tuple[object, ...]  # of one line of a table

LONGEST_WAITS = 10

# Parts of an operation's name that are not modules: control flow, the step itself, methods of the whole model.
_TRANSFORMED = re.compile(r"(?:(?:jit|jvp|transpose|vmap)\()*([^()]*)\)*")
_NO_MODULE = re.compile(r"(|while|body|cond|closed_call|checkpoint|rematted_computation|shard_map|step_fn|QwenVL\.\w+)")


def _range(first: float | None, second: float | None, form: str = ".2f") -> str:
    return "" if first is None or second is None else f"{first:{form}} - {second:{form}}"


def show(prediction: Prediction, price: float) -> None:
    """Prints one prediction with all details; `price` is in dollars per chip and hour."""
    p = prediction
    settings = ", ".join(f"{name} {value}" for name, value in p.settings.items())
    rows: list[Cells] = [("chips, hosts", f"{log.count(p.chips)}, {log.count(p.hosts)}")]
    rows.append(("fits", f"{'yes' if p.fits else 'no'}, {capacity_text(p)}"))
    if p.fits:
        parts = ", ".join(f"{name} {size:.2f}" for name, size in p.hbm_parts_gib.items())
        rows.append(("HBM of one chip, GiB", parts))
    if p.host_gib:
        rows.append(("host memory of one chip, GiB", f"{p.host_gib:.2f}"))
    for remedy in p.remedies:
        rows.append(("what would make it smaller", remedy))
    rows.append(("model operations of a step, PFLOP", f"{p.model_flops / 1e15:,.1f}"))
    stage = cost(p, price)
    if stage is not None:
        rows += _timing(p)
        rows += [
            ("stage, steps", log.count(p.steps)),
            ("stage, days", _range(*stage.days)),
            ("stage, chip-hours", _range(*stage.chip_hours, ",.0f")),
            (f"stage, dollars at {price:.2f} per chip-hour", _range(*stage.dollars, ",.0f")),
        ]
    rows.append(("compiled here in, s", f"{p.compile_seconds:.0f}"))
    log.line(f"{p.topology}: {settings}")
    log.table(f"predicted, not measured: {p.topology}", ("", "value"), rows)
    if p.refusal:
        log.line(f"warning: a run would be refused: {p.refusal}")
    if p.waits and p.step_seconds_roofline:
        waits: list[Cells] = []
        for wait, seconds in list(p.waits.items())[:LONGEST_WAITS]:
            kind, _, source = wait.partition(" ")
            waits.append((kind, module_name(source), f"{seconds:.3f}", f"{seconds / p.step_seconds_roofline:.1%}"))
        log.table(f"what the cores wait for, the longest {len(waits)}", ("collective", "of", "s", "of step"), waits)


def show_decoding(decoding: Decoding) -> None:
    """Prints the prediction of a step of decoding."""
    values = decoding.json()
    least = decoding.minimum
    rows: list[Cells] = [
        ("mesh (data, fsdp, tensor)", ", ".join(map(str, decoding.mesh))),
        ("rows, tokens of each in the cache", f"{decoding.batch}, {decoding.context}"),
        ("HBM of one chip, GiB", f"{decoding.hbm_gib:.1f} of {decoding.hbm_capacity_gib:.4g}"),
        (
            "least bytes of a step and chip, GB",
            f"{least.bytes / 1e9:.2f}, of these weights {least.weight_bytes / 1e9:.2f}",
        ),
        ("bytes of the compiled step / least", f"{values['bytes_over_minimum']:.3f}"),
        ("operations of the compiled step / least", f"{values['flops_over_minimum']:.3f}"),
        ("bytes once per call, GB", f"{decoding.call_bytes / 1e9:.2f}"),
        ("step, ms (roofline - cycles)", _range(1e3 * decoding.seconds_roofline, 1e3 * decoding.seconds_cycles)),
        ("share of the HBM bound", _range(values["share_of_bound_roofline"], values["share_of_bound_cycles"])),
        (
            "tokens per second",
            _range(values["tokens_per_second_roofline"], values["tokens_per_second_cycles"], ",.0f"),
        ),
    ]
    log.table(f"decoding, predicted, not measured: {decoding.topology}", ("", "value"), rows)


def module_name(source: str) -> str:
    """A readable name for an operation, e.g. `decoder/blocks/mlp/up, forward`: its module path without JAX's wrappers.

    Args:
      source: the `op_name` of the operation in HLO, e.g. `jit(step)/..`; empty for operations of the compiler.
    """
    if not source:
        return "made up by the compiler"
    *modules, operation = source.split("/")
    modules = [_TRANSFORMED.sub(r"\1", part) for part in modules]
    modules = [part for part in modules if not _NO_MODULE.fullmatch(part)]
    name = "/".join(modules) or operation
    if "jvp(" not in source:
        return name
    if "rematted" in source:
        return f"{name}, recomputed"
    return f"{name}, {'backward' if 'transpose(' in source else 'forward'}"


def _timing(p: Prediction) -> list[Cells]:
    assert p.step_seconds_roofline and p.step_seconds_cycles and p.hardware_flops
    assert p.exposed_seconds is not None and p.collective_seconds is not None and p.kernel_flops is not None
    fast = p.step_seconds_roofline
    slow = p.step_seconds_cycles
    rows: list[Cells] = [
        ("hardware operations of a step, PFLOP", f"{p.hardware_flops / 1e15:,.1f}"),
        ("  of these in attention kernels", f"{p.kernel_flops / 1e15:,.1f}"),
        ("hardware / model operations", f"{p.hardware_flops / p.model_flops:.3f}"),
    ]
    rows += [(f"{kind}, GB per chip and step", f"{size / 1e9:,.1f}") for kind, size in p.collective_bytes.items()]
    rows += [
        ("communication, s", f"{p.collective_seconds:.3f}"),
        ("  of it exposed, s", f"{p.exposed_seconds:.3f} ({p.exposed_seconds / fast:.1%} of the step)"),
    ]
    rows += [(f"step by cause, s: {name}", f"{value:.3f}") for name, value in p.parts.items() if value]
    rows += [
        ("step, s (roofline - cycles)", _range(fast, slow)),
        ("MFU (roofline - cycles)", _range(p.mfu_roofline, p.mfu_cycles, ".3f")),
        ("tokens per second", _range(p.tokens / fast, p.tokens / slow, ",.0f")),
        ("images per second", _range(p.images / fast, p.images / slow, ",.0f")),
        ("images per second that a host decodes", _range(p.images / fast / p.hosts, p.images / slow / p.hosts, ",.0f")),
    ]
    return rows


COLUMNS = ("", "HBM, GiB", "hw / model", "AG / RS / AR, GB", "exposed", "step, s", "MFU", "days", "dollars")


def comparison_row(name: str, outcome: Outcome, prices: Mapping[str, float]) -> Cells:
    """One line of a table with the columns `COLUMNS`."""
    if isinstance(outcome, Failure):
        return (name, outcome.reason, *[""] * (len(COLUMNS) - 2))
    stage = cost(outcome, prices[outcome.topology.partition(":")[0]])
    if stage is None or not outcome.hardware_flops or not outcome.step_seconds_roofline:
        return (name, capacity_text(outcome), *[""] * (len(COLUMNS) - 2))
    sizes = [outcome.collective_bytes.get(kind, 0.0) for kind in ("all-gather", "reduce-scatter", "all-reduce")]
    return (
        name,
        capacity_text(outcome),
        f"{outcome.hardware_flops / outcome.model_flops:.3f}",
        " / ".join(f"{size / 1e9:.0f}" for size in sizes),
        f"{(outcome.exposed_seconds or 0.0) / outcome.step_seconds_roofline:.1%}",
        _range(outcome.step_seconds_roofline, outcome.step_seconds_cycles),
        _range(outcome.mfu_roofline, outcome.mfu_cycles),
        _range(*stage.days, ".1f"),
        _range(*stage.dollars, ",.0f"),
    )


def show_comparison(title: str, outcomes: Sequence[tuple[str, Outcome]], prices: Mapping[str, float]) -> None:
    """Prints several predictions, one per line."""
    log.table(title, COLUMNS, [comparison_row(name, outcome, prices) for name, outcome in outcomes])


def show_assumptions(versions: str) -> None:
    """Prints the constants behind the figures."""
    log.table("chips", CHIP_COLUMNS, chip_rows())
    log.table("assumptions", ("of", "assumed"), ASSUMPTIONS)
    log.line(f"compiled by {versions}; every figure is predicted, none is measured")
