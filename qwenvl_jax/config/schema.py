"""The schema of a run: frozen dataclasses, built from the ConfigDict of `configs/*.py`.

Sizes are in numbers of elements, rates per step, images in pixels. `validation` says which values are allowed.

Sources: model sizes, facts of the released checkpoint; stages, paper Table 8.
"""

from __future__ import annotations

import dataclasses
import math

# What can be trained or frozen on its own. `vit_head` is `ln_post` and `proj`: stored under `vit`, run after the
# resampler, and frozen on its own in the released fine-tuning. The resampler's position table belongs to none.
COMPONENTS = ("vit", "vit_head", "resampler", "decoder")

STAGES = ("text", "pretrain", "multitask", "sft")
ATTENTION_IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
REMAT_POLICIES = ("none", "matmuls_saved", "attention_saved", "full")
DTYPES = ("float32", "bfloat16")

# XLA's option for collectives that run while a Pallas kernel does; recipes choose it by `compute.xla_options`.
COLLECTIVES_BESIDE_KERNELS = "xla_tpu_enable_async_collective_fusion_with_mosaic_custom_call"


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
    rows_per_step: int  # packed rows per optimiser step
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
    def rows_per_microbatch(self) -> int:
        """Rows of one microbatch."""
        return self.rows_per_step // self.accumulation

    @property
    def groups(self) -> int:
        """Image groups of one microbatch."""
        return self.image_groups or self.rows_per_microbatch

    @property
    def group_rows(self) -> int:
        """Rows of one image group."""
        return self.rows_per_microbatch // self.groups

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

    `stage` is the stage that those checkpoints must have been written by ("" accepts any, "import" a conversion),
    `step` the checkpoint that is taken of each; -1 is the last one, of a stage that is finished.
    """

    stage: str
    vit: str
    resampler: str
    decoder: str
    step: int = -1


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
