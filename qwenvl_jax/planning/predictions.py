"""Predictions that were compiled before, in `predictions.json`, which `benchmarks/plan_figures.py` writes.

A row holds what its program was compiled from, `config`. It counts only as long as the config of today is the same in
all that changes a compiled program. The code of the model is not compared; `tests/planning/test_paper.py` compiles one
row again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwenvl_jax.chips import Topology, parse_topology
from qwenvl_jax.config import Config, from_config_dict, to_dict
from qwenvl_jax.planning import aot, candidates
from qwenvl_jax.planning.candidates import Candidate, Failure
from qwenvl_jax.planning.prediction import Prediction, misfit_text
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

PREDICTIONS = Path(__file__).with_name("predictions.json")
RENEWAL = (
    "delete its line from qwenvl_jax/planning/predictions.json and run python benchmarks/plan_figures.py "
    "qwenvl_jax/planning/predictions.json"
)

# Keys and groups of a config that leave the compiled step as it is, but for constants in it. Every other key counts.
WITHOUT_EFFECT = (
    *("tokenizer", "init", "evaluation", "watching", "watchdog", "checkpoint", "anomalies"),
    *("model.name", "model.decoder.initializer_range", "model.vit.fresh_positions"),
    *("data.mixture", "data.packing_window", "data.seed", "data.streams", "data.max_corrupt_share"),
    *("data.decode_workers", "data.jpeg_draft", "data.long_samples", "data.heldout_share", "data.transformations"),
    *("optimizer.peak_learning_rate", "optimizer.min_learning_rate", "optimizer.warmup_steps", "optimizer.b1"),
    *("optimizer.b2", "optimizer.eps", "optimizer.weight_decay", "optimizer.clip_norm", "optimizer.vit_layer_decay"),
    "optimizer.muon_momentum",
    *("train.steps", "train.seed", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints"),
    *("mesh.max_replicated_bytes", "compute.compilation_cache"),
)
_OF_DECODING = ("model.", "mesh.", "compute.compute_dtype", "compute.attention")


@dataclasses.dataclass(frozen=True)
class Step:
    """A predicted step of a stage: seconds and MFU, roofline first."""

    seconds: tuple[float, float]
    mfu: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A predicted step of decoding on a slice: its rows, and its seconds, roofline first."""

    topology: str
    batch: int
    seconds: tuple[float, float]


def compiled_settings(config: Config) -> dict[str, Any]:
    """The values of a config that its compiled training step depends on, by dotted key."""
    return {key: value for key, value in _flat(to_dict(config)) if not _within(key, WITHOUT_EFFECT)}


def decoding_settings(config: Config) -> dict[str, Any]:
    """The values of a config that its compiled step of decoding depends on, by dotted key."""
    return {key: value for key, value in compiled_settings(config).items() if key.startswith(_OF_DECODING)}


def decoding_config(config: Config, topology: Topology) -> Config:
    """The config with the mesh of decoding: heads over all devices."""
    return dataclasses.replace(
        config, mesh=dataclasses.replace(config.mesh, data=1, fsdp=1, tensor=topology.devices, slices=1)
    )


def read() -> dict[str, dict[str, Any]]:
    """All rows by their names."""
    return dict(artifacts.read_json(PREDICTIONS))


def slice_of(kind: str, stage: str) -> Topology | None:
    """The slice of a stage's recipe, for which its prediction is stored; None if there is no recipe."""
    names = (row["topology"] for row in read().values() if row.get("stage") == stage)
    return next((parse_topology(name) for name in names if name.startswith(f"{kind}:")), None)


def step_of(config: Config, topology: Topology) -> Step:
    """The stored prediction of a stage on a slice, or a new one.

    Raises:
      UserError: if it must be compiled, and there is no compiler or the step does not fit.
    """
    stage = config.train.stage
    rows = [row for row in read().values() if (row.get("stage"), row["topology"]) == (stage, topology.name)]
    reason = "missing"
    for row in rows:
        difference = changes(row["config"], config, compiled_settings)
        if not difference:
            return Step(
                (row["step_seconds_roofline"], row["step_seconds_cycles"]), (row["mfu_roofline"], row["mfu_cycles"])
            )
        reason = f"of another config ({difference})"
    try:
        aot.check_compiler()
    except UserError as error:
        raise UserError(f"the stored prediction of {stage} on {topology.name} is {reason}, and {error}") from None
    return compiled(Candidate(stage, config, topology))


def compiled(candidate: Candidate) -> Step:
    """A new prediction.

    Raises:
      UserError: if there is none, or the step does not fit.
    """
    outcome = candidates.run(candidate)
    if isinstance(outcome, Failure):
        recipe = slice_of(candidate.topology.chip.kind, candidate.config.train.stage)
        raise UserError(
            f"the recipe of {candidate.name} does not run on {candidate.topology.name} ({outcome.reason}); plan a "
            f"slice that suits it{f', such as {recipe.name}' if recipe else ''}"
        )
    if not outcome.fits:
        raise UserError(misfit_text(outcome))
    return _step(outcome)


def _step(prediction: Prediction) -> Step:
    fast, slow = prediction.step_seconds_roofline, prediction.step_seconds_cycles
    high, low = prediction.mfu_roofline, prediction.mfu_cycles
    assert fast and slow and high and low  # a step that fits has them
    return Step((fast, slow), (high, low))


def decoding_of(kind: str, config: Config) -> Decoding:
    """The stored prediction of decoding on a kind of chip.

    Raises:
      UserError: if there is none, or it is of another config.
    """
    for row in read().values():
        topology = parse_topology(row["topology"])
        if "batch" in row and topology.chip.kind == kind:
            difference = changes(row["config"], decoding_config(config, topology), decoding_settings)
            if difference:
                raise UserError(
                    f"the stored prediction of decoding on {topology.name} is of another config ({difference}); "
                    f"{RENEWAL}"
                )
            return Decoding(topology.name, row["batch"], (row["step_seconds_roofline"], row["step_seconds_cycles"]))
    raise UserError(f"there is no prediction of decoding on {kind}; add it to benchmarks/plan_figures.py and run that")


def changes(stored: Mapping[str, Any], config: Config, settings: Callable[[Config], dict[str, Any]]) -> str:
    """The settings in which a config differs from the one that was compiled, in words; empty if there are none.

    Args:
      stored: the settings that were compiled. A key that the schema has got since then had its default.
      config: that of today.
      settings: the settings of a config that count.
    """
    today = settings(config)
    others = {key: value for key, value in _flat(to_dict(config)) if key not in today}
    try:
        before = settings(from_config_dict(Config, _nested({**others, **stored})))
    except UserError as error:
        return str(error)
    keys = [key for key in today if before[key] != today[key]]
    named = [f"config.{key} is {today[key]} instead of {before[key]}" for key in keys[:3]]
    more = [f"{len(keys) - 3} more"] if len(keys) > 3 else []
    return ", ".join([*named, *more])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in values.items():
        leaves += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return leaves


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in leaves.items():
        *groups, name = key.split(".")
        group = values
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = value
    return values


def _within(key: str, groups: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{group}.") for group in groups)
