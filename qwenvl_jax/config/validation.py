"""Which values of a config are allowed, beyond their types."""

from __future__ import annotations

from qwenvl_jax.config.schema import (
    ATTENTION_IMPLEMENTATIONS,
    COMPONENTS,
    DTYPES,
    REMAT_POLICIES,
    STAGES,
    Config,
    ModelConfig,
)
from qwenvl_jax.data.schema import TASKS
from qwenvl_jax.runtime.errors import UserError, nearest


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _choice(path: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, f"{path} is {value!r}, which is none of {', '.join(known)}{nearest(value, known)}")


def validate(config: Config) -> Config:
    """Checks what types cannot: divisibility, names, ranges. Returns the config.

    Raises:
      UserError: naming the key and what would be valid.
    """
    validate_model(config.model)
    data, train = config.data, config.train
    _choice("config.train.stage", train.stage, STAGES)
    for name in train.trainable:
        _choice("config.train.trainable", name, COMPONENTS)
    _require(bool(train.trainable), "config.train.trainable is empty; name at least one component to train")
    for key in ("steps", "log_every", "checkpoint_every", "keep_checkpoints"):
        _require(getattr(train, key) > 0, f"config.train.{key} must be positive")
    _require(bool(data.mixture), "config.data.mixture is empty; name at least one source")
    for source in data.mixture:
        _choice(f"the task of source {source.name!r}", source.task, TASKS)
        allowed = source.weight > 0 or (source.weight == 0 and source.schedule)
        _require(bool(allowed), f"the weight of source {source.name!r} must be positive")
    names = [source.name for source in data.mixture]
    _require(len(set(names)) == len(names), "two sources of config.data.mixture share one name; rename one")
    _require(
        data.accumulation > 0 and data.global_batch_size > 0 and data.global_batch_size % data.accumulation == 0,
        f"config.data.global_batch_size {data.global_batch_size} must be a positive multiple of "
        f"config.data.accumulation {data.accumulation}",
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
    _require(data.packing_window > 0, "config.data.packing_window must be positive")
    _require(
        data.image_groups >= 0 and data.rows % data.groups == 0,
        f"config.data.image_groups {data.image_groups} must divide the {data.rows} rows of a microbatch "
        "(config.data.global_batch_size / accumulation), or be 0 for a group of every row",
    )
    _require(
        data.streams > 0 and data.groups % data.streams == 0,
        f"config.data.streams {data.streams} must divide the {data.groups} image groups of a microbatch",
    )
    for key in ("images_per_row", "max_corrupt_share", "decode_workers"):
        _require(getattr(data, key) >= 0, f"config.data.{key} must not be negative")
    opt = config.optimizer
    _require(
        0 <= opt.min_learning_rate <= opt.peak_learning_rate,
        f"config.optimizer.min_learning_rate {opt.min_learning_rate} must lie between 0 and the peak "
        f"{opt.peak_learning_rate}",
    )
    _require(
        0 <= opt.warmup_steps < train.steps,
        f"config.optimizer.warmup_steps {opt.warmup_steps} must be less than config.train.steps {train.steps}",
    )
    _choice("config.optimizer.first_moment_dtype", opt.first_moment_dtype, DTYPES)
    _choice("config.optimizer.moments_memory", opt.moments_memory, ("device", "pinned_host"))
    _require(0 < opt.vit_layer_decay <= 1, "config.optimizer.vit_layer_decay must lie in (0, 1]")
    _choice("config.tokenizer.kind", config.tokenizer.kind, ("qwen", "sentencepiece"))
    _require(config.init.step >= -1, "config.init.step must be the step of a checkpoint, or -1 for the last one")
    compute = config.compute
    _choice("config.compute.compute_dtype", compute.compute_dtype, DTYPES)
    _choice("config.compute.frozen_dtype", compute.frozen_dtype, DTYPES)
    _choice("config.compute.attention", compute.attention, ATTENTION_IMPLEMENTATIONS)
    _choice("config.compute.remat_vit", compute.remat_vit, REMAT_POLICIES)
    _choice("config.compute.remat_decoder", compute.remat_decoder, REMAT_POLICIES)
    _require(compute.loss_chunk > 0, "config.compute.loss_chunk must be positive")
    for option in compute.xla_options:
        _require("=" in option, f"config.compute.xla_options holds {option!r}; write name=value")
    mesh = config.mesh
    axes = (mesh.data, mesh.fsdp, mesh.tensor)
    _require(
        all(a == -1 or a > 0 for a in axes) and axes.count(-1) <= 1 and mesh.slices > 0,
        f"config.mesh {axes} must be positive numbers of devices, at most one of them -1",
    )
    return config


def validate_model(model: ModelConfig) -> ModelConfig:
    """Checks that widths divide into heads and grids are square. Raises UserError."""
    vit, decoder, resampler = model.vit, model.decoder, model.resampler
    for name, width, heads in (
        ("vit", vit.width, vit.heads),
        ("decoder", decoder.width, decoder.heads),
        ("resampler", decoder.width, resampler.heads),
    ):
        _require(
            heads > 0 and width % heads == 0, f"config.model.{name}: width {width} is no multiple of {heads} heads"
        )
    _require(vit.window >= 0 and vit.global_every > 0, "config.model.vit: window >= 0 and global_every > 0 are needed")
    _require(decoder.head_dim % 2 == 0, f"config.model.decoder: head size {decoder.head_dim} must be even for rotary")
    _require(decoder.width % 4 == 0, f"config.model.decoder.width {decoder.width} must divide by 4 (sin-cos grid)")
    return model
