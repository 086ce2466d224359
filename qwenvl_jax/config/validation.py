"""Which values of a config are allowed, beyond their types."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from qwenvl_jax.config.parse import from_config_dict
from qwenvl_jax.config.schema import (
    ATTENTION_IMPLEMENTATIONS,
    COMPONENTS,
    DTYPES,
    REMAT_POLICIES,
    STAGES,
    Config,
    DataConfig,
    ModelConfig,
)
from qwenvl_jax.data.schema import TASKS
from qwenvl_jax.runtime.errors import UserError, nearest

SIZE = 2**24  # what no number of elements exceeds; a larger one is a slip of the keyboard
COUNT = 2**31 - 1  # steps are counted in int32 on the devices
LARGE, SMALL = 1e30, 1e-30  # of numbers that float32 holds, also when they are squared or divided by


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; with `above` more than `low`, with `below` less than `high`."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:  # never for a NaN
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.above else f"at least {self.low:g}"
        return f"{low} and {'less than' if self.below else 'at most'} {self.high:g}"


_SIZE, _COUNT, _NORM_EPS = Range(1, SIZE), Range(1, COUNT), Range(0, 1, above=True)
_MODEL_RANGES: dict[str, Range] = {
    **{f"vit.{key}": _SIZE for key in ("width", "layers", "heads", "mlp_dim", "patch_size", "position_grid")},
    "vit.layer_norm_eps": _NORM_EPS,
    "vit.window": Range(0, SIZE),
    "vit.global_every": _SIZE,
    **{f"resampler.{key}": _SIZE for key in ("query_grid", "heads")},
    "resampler.layer_norm_eps": _NORM_EPS,
    **{f"decoder.{key}": _SIZE for key in ("vocab_size", "width", "layers", "heads", "mlp_dim")},
    "decoder.rope_base": Range(1, LARGE, above=True),
    "decoder.rms_norm_eps": _NORM_EPS,
    "decoder.train_length": Range(2, SIZE),  # its logarithm divides
}
_RANGES: dict[str, Range] = {
    **{
        f"data.{key}": _SIZE
        for key in ("image_size", "sequence_length", "rows_per_step", "accumulation", "packing_window", "streams")
    },
    "data.images_per_row": Range(0, SIZE),
    "data.image_groups": Range(0, SIZE),
    "data.seed": Range(0, 2**32 - 1),
    "data.max_corrupt_share": Range(0, 1),
    "data.decode_workers": Range(0, SIZE),
    "optimizer.peak_learning_rate": Range(0, LARGE, above=True),
    "optimizer.min_learning_rate": Range(0, LARGE),
    "optimizer.warmup_steps": Range(0, COUNT),
    "optimizer.b1": Range(0, 1, below=True),
    "optimizer.b2": Range(0, 1, below=True),
    "optimizer.eps": Range(SMALL, LARGE),
    "optimizer.weight_decay": Range(0, LARGE),
    "optimizer.clip_norm": Range(0, LARGE, above=True),
    "optimizer.vit_layer_decay": Range(0, 1, above=True),
    "init.step": Range(-1, COUNT),
    **{f"train.{key}": _COUNT for key in ("steps", "log_every", "checkpoint_every", "keep_checkpoints")},
    "train.seed": Range(0, 2**32 - 1),
    "mesh.slices": _SIZE,
    "mesh.max_replicated_bytes": Range(0, 2**63 - 1),
    "compute.loss_chunk": _SIZE,
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _choice(path: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, f"{path} is {value!r}, which is none of {', '.join(known)}{nearest(value, known)}")


def _in_range(root: Any, path: str, ranges: dict[str, Range]) -> None:
    """Raises UserError for the first number of `ranges` that lies outside of its own."""
    for key, allowed in ranges.items():
        value = functools.reduce(getattr, key.split("."), root)
        if allowed.low == 1 and not allowed.above and value < 1:
            raise UserError(f"{path}.{key} must be positive, not {value}")
        if allowed.low == 0 and not allowed.above and value < 0:
            raise UserError(f"{path}.{key} must not be negative, but is {value}")
        _require(value in allowed, f"{path}.{key} is {value}; it must be {allowed}")


def _floats(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """(path, number) of all floats below a value of the config."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _floats(item, f"{path}[{index}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _floats(getattr(value, field.name), f"{path}.{field.name}")


def _finite(value: Any, path: str) -> None:
    for where, number in _floats(value, path):
        _require(math.isfinite(number), f"{where} is {number}, which is no number to compute with; set it anew")


def load_config(values: Mapping[str, Any]) -> Config:
    """The checked config of a run.

    Args:
      values: a nested mapping, such as the ConfigDict that a config file returns.

    Raises:
      UserError: on an unknown or missing key, a value of the wrong type or a value out of range.
    """
    return validate(from_config_dict(Config, values))


def validate(config: Config) -> Config:
    """Checks what types cannot: ranges, divisibility, names. Returns the config.

    Raises:
      UserError: naming the key and what would be valid.
    """
    _finite(config, "config")
    validate_model(config.model)
    _in_range(config, "config", _RANGES)
    data, train = config.data, config.train
    _choice("config.train.stage", train.stage, STAGES)
    for name in train.trainable:
        _choice("config.train.trainable", name, COMPONENTS)
    _require(bool(train.trainable), "config.train.trainable is empty; name at least one component to train")
    _require(len(set(train.trainable)) == len(train.trainable), "config.train.trainable names a component twice")
    _validate_mixture(data)
    _validate_batch(data)
    seeing = [name for name in train.trainable if name != "decoder"]
    _require(
        data.images_per_row > 0 or not seeing,
        f"config.data.images_per_row is 0, so nothing would train {seeing[0] if seeing else ''}; give rows images or "
        "train the decoder alone",
    )
    window, (side, rest) = config.model.vit.window, divmod(data.image_size, config.model.vit.patch_size)
    _require(
        side > 0 and not rest,
        f"config.data.image_size {data.image_size} must be a multiple of the patch size {config.model.vit.patch_size}",
    )
    _require(
        not window or side % window == 0 or side < window,
        f"config.model.vit.window {window} does not divide the {side} patches of a side",
    )
    _require(
        data.sequence_length > config.model.resampler.queries + 2,
        f"config.data.sequence_length {data.sequence_length} cannot hold one image of "
        f"{config.model.resampler.queries + 2} tokens",
    )
    opt = config.optimizer
    _require(
        opt.min_learning_rate <= opt.peak_learning_rate,
        f"config.optimizer.min_learning_rate {opt.min_learning_rate} must lie between 0 and the peak "
        f"{opt.peak_learning_rate}",
    )
    _require(
        opt.warmup_steps < train.steps,
        f"config.optimizer.warmup_steps {opt.warmup_steps} must be less than config.train.steps {train.steps}",
    )
    _choice("config.optimizer.first_moment_dtype", opt.first_moment_dtype, DTYPES)
    _choice("config.optimizer.moments_memory", opt.moments_memory, ("device", "pinned_host"))
    _choice("config.tokenizer.kind", config.tokenizer.kind, ("qwen", "sentencepiece"))
    compute = config.compute
    _choice("config.compute.compute_dtype", compute.compute_dtype, DTYPES)
    _choice("config.compute.frozen_dtype", compute.frozen_dtype, DTYPES)
    _choice("config.compute.attention", compute.attention, ATTENTION_IMPLEMENTATIONS)
    _choice("config.compute.remat_vit", compute.remat_vit, REMAT_POLICIES)
    _choice("config.compute.remat_decoder", compute.remat_decoder, REMAT_POLICIES)
    for option in compute.xla_options:
        _require("=" in option[1:], f"config.compute.xla_options holds {option!r}; write name=value")
    mesh = config.mesh
    axes = (mesh.data, mesh.fsdp, mesh.tensor)
    _require(
        all(a == -1 or 0 < a <= SIZE for a in axes) and axes.count(-1) <= 1,
        f"config.mesh {axes} must be positive numbers of devices, at most one of them -1",
    )
    return config


def _validate_mixture(data: DataConfig) -> None:
    """Names, tasks and weights of the sources; `data.mixture` checks their schedules."""
    _require(bool(data.mixture), "config.data.mixture is empty; name at least one source")
    for source in data.mixture:
        _choice(f"the task of source {source.name!r}", source.task, TASKS)
        _require(bool(source.name and source.records), f"source {source.name!r} lacks its name or its records")
        allowed = 0 < source.weight <= LARGE or (source.weight == 0 and source.schedule)
        _require(bool(allowed), f"the weight of source {source.name!r} must be positive")
        _require(
            all(len(point) == 2 for point in source.schedule),
            f"the schedule of source {source.name!r} must be pairs (step, weight)",
        )
        points = [number for point in source.schedule for number in point]
        _require(all(0 <= n <= LARGE for n in points), f"the schedule of source {source.name!r} has negative numbers")
    names = [source.name for source in data.mixture]
    _require(len(set(names)) == len(names), "two sources of config.data.mixture share one name; rename one")
    seen = [source for source in data.mixture if source.task != "text"]
    _require(
        data.images_per_row > 0 or not seen,
        f"config.data.images_per_row is 0, but source {seen[0].name if seen else ''!r} is of an image task; rows "
        "would be taught without their pictures",
    )


def _validate_batch(data: DataConfig) -> None:
    """Rows into microbatches, image groups and streams."""
    _require(
        data.rows_per_step % data.accumulation == 0,
        f"config.data.rows_per_step {data.rows_per_step} must be a positive multiple of "
        f"config.data.accumulation {data.accumulation}",
    )
    _require(
        data.rows_per_microbatch % data.groups == 0,
        f"config.data.image_groups {data.image_groups} must divide the {data.rows_per_microbatch} rows of a microbatch "
        "(config.data.rows_per_step / accumulation), or be 0 for a group of every row",
    )
    _require(
        data.groups % data.streams == 0,
        f"config.data.streams {data.streams} must divide the {data.groups} image groups of a microbatch",
    )


def validate_model(model: ModelConfig) -> ModelConfig:
    """Checks sizes, and that widths divide into heads. Raises UserError."""
    _finite(model, "config.model")
    _in_range(model, "config.model", _MODEL_RANGES)
    vit, decoder, resampler = model.vit, model.decoder, model.resampler
    for name, width, heads in (
        ("vit", vit.width, vit.heads),
        ("decoder", decoder.width, decoder.heads),
        ("resampler", decoder.width, resampler.heads),
    ):
        _require(width % heads == 0, f"config.model.{name}: width {width} is no multiple of {heads} heads")
    _require(decoder.head_dim % 2 == 0, f"config.model.decoder: head size {decoder.head_dim} must be even for rotary")
    _require(decoder.width % 4 == 0, f"config.model.decoder.width {decoder.width} must divide by 4 (sin-cos grid)")
    return model
