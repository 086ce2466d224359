"""The schema of a run: frozen dataclasses, built from the ConfigDict of `configs/*.py`.

A config file returns an `ml_collections.ConfigDict`; `from_config_dict` turns it into a `Config` and checks every
key, type and constraint on the way, so that a mistake is one sentence before anything is allocated. Sizes are in
numbers of elements, rates per step, images in pixels.

Sources: model sizes, facts of the released checkpoint; stages, paper Table 8.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from qwenvl_jax.data.schema import TASKS
from qwenvl_jax.runtime.errors import UserError, nearest

# What can be trained or frozen on its own. `vit_head` is `ln_post` and `proj`: stored under `vit`, run after the
# resampler, and frozen on its own in the released fine-tuning. The resampler's position table belongs to none.
COMPONENTS = ("vit", "vit_head", "resampler", "decoder")

STAGES = ("text", "pretrain", "multitask", "sft")


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """OpenCLIP-style vision transformer. `position_grid` is the side of the stored position table.

    With a `window` of so many patches per side, attention stays within windows (paper E.3: 224 px, 16 patches), but
    for one layer in `global_every`, the last of each group. 0 is the released model: every layer sees all patches.
    """

    width: int
    layers: int
    heads: int
    mlp_dim: int
    patch_size: int
    position_grid: int
    layer_norm_eps: float
    window: int = 0
    global_every: int = 4


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Position-aware adapter: `query_grid`^2 queries. Its width is the decoder's."""

    query_grid: int
    heads: int
    layer_norm_eps: float

    @property
    def queries(self) -> int:
        return self.query_grid**2


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Qwen decoder. `train_length` is the base of log-n attention and dynamic NTK (released `seq_length`)."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    rope_base: float
    rms_norm_eps: float
    train_length: int
    logn_attention: bool
    dynamic_ntk: bool

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture alone; two checkpoints can follow one another only if these are equal."""

    name: str
    vit: VitConfig
    resampler: ResamplerConfig
    decoder: DecoderConfig


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """`kind` is `qwen` (tiktoken ranks) or `sentencepiece`; an empty `path` of `qwen` means the installed package."""

    kind: str
    path: str


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One entry of a mixture. `weight` is relative, in samples (Tables 2 and 3: millions of samples).
    `schedule` holds later (step, weight) pairs, between which the weight changes linearly; after the last it stays."""

    name: str
    task: str
    records: str
    weight: float
    schedule: tuple[tuple[float, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The input stream, a function of these values alone."""

    mixture: tuple[SourceConfig, ...]
    image_size: int
    sequence_length: int
    global_batch_size: int  # packed rows per optimiser step
    accumulation: int  # microbatches per optimiser step
    images_per_row: float  # image budget of a microbatch, per row
    packing_window: int  # samples of a task among which a row is chosen
    seed: int
    image_groups: int = 1  # parts of a microbatch whose rows use only images of their own part; 0: each row is one
    streams: int = 1  # logical streams with an equal part of every microbatch; a process builds those it needs
    max_corrupt_share: float = 0.01  # samples that cannot be read, before the run is refused
    decode_workers: int = 0  # processes per host that decode images, at most one per core; 0: threads
    jpeg_draft: bool = False  # large JPEGs are scaled down while they are decoded: faster, not exact

    @property
    def rows(self) -> int:
        """Rows of one microbatch."""
        return self.global_batch_size // self.accumulation

    @property
    def groups(self) -> int:
        """Image groups of one microbatch."""
        return self.image_groups or self.rows

    @property
    def group_rows(self) -> int:
        """Rows of one image group."""
        return self.rows // self.groups

    @property
    def group_images(self) -> int:
        """Images of one image group; a stage without images still carries one so that shapes stay static."""
        return max(1, math.ceil(self.group_rows * self.images_per_row))

    @property
    def image_budget(self) -> int:
        """Images of one microbatch."""
        return self.groups * self.group_images


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, cosine decay and layer-wise ViT decay (paper, Table 8)."""

    peak_learning_rate: float
    min_learning_rate: float
    warmup_steps: int
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    vit_layer_decay: float
    first_moment_dtype: str = "float32"  # bfloat16 saves two bytes per trained parameter
    moments_memory: str = "device"  # between steps; "pinned_host" frees the devices of them and costs transfers


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where each component starts: a checkpoint folder, or empty for fresh initialisation.

    `stage` is the stage that those checkpoints must have been written by ("" accepts any, "import" a conversion).
    """

    stage: str
    vit: str
    resampler: str
    decoder: str


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The stage itself."""

    stage: str
    trainable: tuple[str, ...]
    steps: int
    seed: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh. One of `data`, `fsdp`, `tensor` may be -1: whatever is left. `slices` joins `data` over DCN."""

    data: int
    fsdp: int
    tensor: int
    slices: int
    max_replicated_bytes: int  # a parameter above this that ends up replicated fails the run (0: off)


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Precision, memory and kernels; changes speed and rounding, never the mathematics."""

    compute_dtype: str  # of activations and matrix products
    frozen_dtype: str  # storage of components that are not trained
    attention: str  # "auto", "xla", "cudnn", "splash"
    remat_vit: str
    remat_decoder: str
    unroll_layers: bool  # layers as straight code instead of a loop: faster on CPUs, slower to compile when deep
    loss_chunk: int  # tokens of a device whose logits exist at once
    rotary_by_product: bool = False  # see `models.decoder.rotate`: for TPUs whose memory is slow against their products
    xla_options: tuple[str, ...] = ()  # "name=value" each, beside those of `sharding.compiler`


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    optimizer: OptimizerConfig
    init: InitConfig
    train: TrainConfig
    mesh: MeshConfig
    compute: ComputeConfig


ATTENTION_IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
REMAT_POLICIES = ("none", "matmuls_saved", "attention_saved", "full")
DTYPES = ("float32", "bfloat16")

T = TypeVar("T")


def from_config_dict(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """Builds the dataclass `cls` from a nested mapping.

    A key may be missing where its field has a default. Keys that are added to the schema get one that means what runs
    did before, so that older checkpoints and releases can still be read.

    Raises:
      UserError: on an unknown or missing key (naming the nearest valid one) or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise UserError(f"{path} has no key {key!r}{nearest(key, hints)}")
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = [field.name for field in fields if field.name not in values and field.default is dataclasses.MISSING]
    if missing:
        raise UserError(f"{path} lacks the key {missing[0]!r}; add it to the config file")
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping) and not hasattr(value, "items"):
            raise UserError(f"{path} must be a group of keys, not {value!r}")
        return from_config_dict(typing.cast(type, hint), dict(value.items()), path)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise UserError(f"{path} must be a sequence, not {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path} must be {hint.__name__}, not {value!r}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any) -> str:
    """Twelve hex digits that change with any value of the config."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]


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
