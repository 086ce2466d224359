"""The schema of a run: frozen dataclasses, built from the ConfigDict of `configs/*.py`.

Sizes are in numbers of elements, rates per step, images in pixels. Each field is annotated with the values it takes,
and the `check` of a class compares its fields, so that an accepted config gives finite shapes and rates.

Source of the stages: paper Table 8.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

from qwenvl_jax.config import anomalies, watchdog, watching
from qwenvl_jax.config.checkpoint_schema import ONLY_THE_NEWEST, CheckpointConfig
from qwenvl_jax.config.constraints import FormerName, Mark, OneOf, Range, require
from qwenvl_jax.config.lora import NO_LORA, LoraConfig
from qwenvl_jax.config.model_schema import ModelConfig
from qwenvl_jax.config.values import LARGE, LARGEST_SIZE, SMALL, Beta, Count, Dtype, RematPolicy, Seed, Size, SizeOrZero
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.schema import TRAINING_TASKS

# What can be trained or frozen on its own. `vit_head` is `ln_post` and `proj`: stored under `vit`, run after the
# resampler, and frozen on its own in the released fine-tuning. The resampler's position table belongs to none.
COMPONENTS = ("vit", "vit_head", "resampler", "decoder")

# What `train.trainable` may name. `vocabulary` is the embedding and the head of the decoder alone, `lora` the low-rank
# adapters of `config.lora`.
TRAINABLE = (*COMPONENTS, "vocabulary", "lora")

# The parts of the model, as the top level of its parameters has them.
TOWERS = ("vit", "resampler", "decoder")

STAGES = ("text", "pretrain", "multitask", "sft")
FROZEN_KERNELS = ("plain", "int8", "nf4")
ATTENTION_IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

# XLA's option for collectives that run while a Pallas kernel does; recipes choose it by `compute.xla_options`.
COLLECTIVES_BESIDE_KERNELS = "xla_tpu_enable_async_collective_fusion_with_mosaic_custom_call"


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """`kind` is `qwen` (tiktoken ranks) or `sentencepiece`; an empty `path` of `qwen` means the installed package."""

    kind: Annotated[str, OneOf(("qwen", "sentencepiece"))]
    path: Annotated[str, Mark.MOVABLE]


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One entry of a mixture. `weight` is relative, in samples (Tables 2 and 3: millions of samples).

    `schedule` holds (samples, weight) pairs: the weight after so many samples of the run. Between two points the shares
    of all sources change linearly; after the last they stay. `data.mixture` checks their order.
    """

    name: str
    task: str
    records: Annotated[str, Mark.MOVABLE]
    weight: float
    schedule: tuple[tuple[float, ...], ...] = ()

    def check(self, path: str) -> None:
        """Raises UserError for a missing name, an unknown task or weights out of range."""
        taught = self.task != EVALUATION
        require(
            taught, f"source {self.name!r} is a benchmark, on which no model may be trained; remove it from the mixture"
        )
        OneOf(TRAINING_TASKS).check(self.task, f"the task of source {self.name!r}")
        require(bool(self.name and self.records), f"source {self.name!r} lacks its name or its records")
        allowed = 0 < self.weight <= LARGE or (self.weight == 0 and len(self.schedule) > 0)
        require(allowed, f"the weight of source {self.name!r} must be positive")
        pairs = all(len(point) == 2 for point in self.schedule)
        require(pairs, f"the schedule of source {self.name!r} must be pairs (samples, weight)")
        in_range = all(0 <= number <= LARGE for point in self.schedule for number in point)
        require(in_range, f"the schedule of source {self.name!r} has negative numbers")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The input of a stage.

    Its batches depend on these values, the records, the vocabulary and the number of queries per image. They do not
    depend on the keys that are marked as free on resume, which say how a host reads the records, and how the image
    groups of a step are shared out among its microbatches.
    """

    mixture: tuple[SourceConfig, ...]
    image_size: Size
    sequence_length: Size
    rows_per_step: Annotated[Size, FormerName("global_batch_size")]  # packed rows per optimiser step
    accumulation: Annotated[Size, Mark.FREE_ON_RESUME]  # microbatches per step; free if image groups stay the same
    images_per_row: Annotated[float, Range(0, LARGEST_SIZE)]  # image budget of a microbatch, per row
    packing_window: Size  # records of a task that wait, among which the samples of a row are chosen
    seed: Seed
    # Image groups of a microbatch; 0: one row per group. Free if the rows and images of a group stay the same.
    image_groups: Annotated[SizeOrZero, Mark.FREE_ON_RESUME] = 1
    streams: Size = 1  # logical streams with an equal part of every microbatch; a process builds those it needs
    # The share of samples that may be corrupt before the run ends.
    max_corrupt_share: Annotated[float, Range(0, 1), Mark.FREE_ON_RESUME] = 0.01
    # Processes per host that decode images, at most one per core; 0: threads.
    decode_workers: Annotated[SizeOrZero, Mark.FREE_ON_RESUME] = 0
    jpeg_draft: bool = False  # large JPEGs are scaled down while they are decoded: faster, not exact
    # Samples that are longer than a row. cut: texts continue in further rows, pages end at a line, dialogues after an
    # answer; drop: they are left out.
    long_samples: Annotated[str, OneOf(("cut", "drop"))] = "cut"
    # The share of every JSON file that is not trained on, chosen by a digest of the samples' content; it is the split
    # that `evaluation.split` names.
    heldout_share: Annotated[float, Range(0, 1, below=True)] = 0.0
    # Dotted names of transformations of records, in order: classes or objects of grain.transforms (docs/input.md).
    transformations: tuple[str, ...] = ()

    @property
    def image_decoder(self) -> str:
        """The key of `data.images.decode.DECODERS`."""
        return "draft" if self.jpeg_draft else "stretch"

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

    def check(self, path: str) -> None:
        """Raises UserError if sources exclude one another, or rows do not divide into microbatches and groups."""
        require(len(self.mixture) > 0, f"{path}.mixture is empty; name at least one source")
        names = [source.name for source in self.mixture]
        twice = [name for name in names if names.count(name) > 1]
        require(not twice, f"two sources of {path}.mixture share one name ({', '.join(twice[:1])}); rename one")
        for source in self.mixture:
            require(
                self.images_per_row > 0 or source.task == "text",
                f"{path}.images_per_row is 0, but source {source.name!r} is of an image task; rows would be taught "
                "without their pictures",
            )
        require(
            self.rows_per_step % self.accumulation == 0,
            f"{path}.rows_per_step {self.rows_per_step} must be a positive multiple of {path}.accumulation "
            f"{self.accumulation}",
        )
        require(
            self.rows_per_microbatch % self.groups == 0,
            f"{path}.image_groups {self.image_groups} must divide the {self.rows_per_microbatch} rows of a microbatch "
            f"({path}.rows_per_step / accumulation), or be 0 for a group of every row",
        )
        require(
            self.groups % self.streams == 0,
            f"{path}.streams {self.streams} must divide the {self.groups} image groups of a microbatch",
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon, with warm-up, cosine decay and layer-wise ViT decay (paper, Table 8)."""

    peak_learning_rate: Annotated[float, Range(0, LARGE, above=True)]
    min_learning_rate: Annotated[float, Range(0, LARGE)]
    warmup_steps: Annotated[int, Range(0, 2**31 - 1)]
    b1: Beta
    b2: Beta
    eps: Annotated[float, Range(SMALL, LARGE)]
    weight_decay: Annotated[float, Range(0, LARGE)]
    clip_norm: Annotated[float, Range(0, LARGE, above=True)]
    vit_layer_decay: Annotated[float, Range(0, 1, above=True)]
    vocabulary_rate: Annotated[float, Range(0, LARGE, above=True)] = 1.0  # factor of the rates of embedding and head
    kind: Annotated[str, OneOf(("adamw", "muon"))] = "adamw"  # "muon": for matrices; all else has AdamW
    muon_momentum: Beta = 0.95
    muon_iterations: Annotated[int, Range(1, 100)] = 5  # of Newton and Schulz; fewer are faster and less exact
    first_moment_dtype: Dtype = "float32"  # bfloat16 saves two bytes per trained parameter
    # Where the moments are kept between steps; "pinned_host" saves device memory at the cost of two transfers per step.
    moments_memory: Annotated[str, OneOf(("device", "pinned_host")), Mark.FREE_ON_RESUME] = "device"

    def check(self, path: str) -> None:
        """Raises UserError if the rate would rise instead of decay."""
        require(
            self.min_learning_rate <= self.peak_learning_rate,
            f"{path}.min_learning_rate {self.min_learning_rate} must be between 0 and the peak "
            f"{self.peak_learning_rate}",
        )


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where each tower starts: a checkpoint folder, or empty for fresh initialisation.

    `stage` is the stage that must have written those checkpoints ("" accepts any, "import" a conversion). `step` is the
    step of each checkpoint that was trained; -1 is the last one, of a stage that is finished. `partial` accepts a
    checkpoint of another model, of which the tensors that fit are loaded.
    """

    stage: str
    vit: str
    resampler: str
    decoder: str
    step: Annotated[int, Range(-1, 2**31 - 1)] = -1
    partial: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The stage itself."""

    stage: Annotated[str, OneOf(STAGES)]
    trainable: Annotated[tuple[str, ...], OneOf(TRAINABLE)]
    steps: Count
    seed: Seed
    log_every: Annotated[Count, Mark.FREE_ON_RESUME]
    checkpoint_every: Annotated[Count, Mark.FREE_ON_RESUME]
    keep_checkpoints: Annotated[Count, Mark.FREE_ON_RESUME]

    def check(self, path: str) -> None:
        """Raises UserError if nothing is trained or something is named twice."""
        require(len(self.trainable) > 0, f"{path}.trainable is empty; name at least one component to train")
        require(len(set(self.trainable)) == len(self.trainable), f"{path}.trainable names a component twice")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured while a stage trains. It changes nothing in the training."""

    every: Annotated[int, Range(0, LARGEST_SIZE)] = 0  # steps between two evaluations; 0 evaluates never
    split: str = ""  # of the records of the mixture that are held out for the loss; "" measures no loss
    batches: Count = 4  # of `data.rows_per_step` rows, over which this loss is taken
    # Other sources whose loss is measured instead of that of `data.mixture`; their weights mean nothing.
    mixture: tuple[SourceConfig, ...] = ()

    def check(self, path: str) -> None:
        """Raises UserError if the held-out records are those that are trained, or are named but not measured."""
        trained = self.split == "train" and not self.mixture
        require(not trained, f"{path}.split 'train' is trained on; name a split that is held out")
        measured = bool(self.split) or not self.mixture
        require(measured, f"{path}.mixture is measured only if {path}.split names a split of it; for JSON files any")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh. One of `data`, `fsdp`, `tensor` may be -1: whatever is left. `slices` joins `data` over DCN."""

    data: int
    fsdp: int
    tensor: int
    slices: Size
    max_replicated_bytes: Annotated[int, Range(0, 2**63 - 1)]  # a larger replicated parameter fails the run; 0: off

    def check(self, path: str) -> None:
        """Raises UserError if an axis has no size, or more than one axis takes what is left."""
        axes = (self.data, self.fsdp, self.tensor)
        require(
            all(axis == -1 or 0 < axis <= LARGEST_SIZE for axis in axes) and axes.count(-1) <= 1,
            f"{path} {axes} must be positive numbers of devices, at most one of them -1",
        )


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Precision, memory and kernels; changes speed and rounding, never the mathematics."""

    compute_dtype: Annotated[Dtype, Mark.FREE_ON_RESUME]  # of activations and matrix products
    frozen_dtype: Dtype  # storage of components that are not trained
    attention: Annotated[str, OneOf(ATTENTION_IMPLEMENTATIONS), Mark.FREE_ON_RESUME]
    remat_vit: Annotated[RematPolicy, Mark.FREE_ON_RESUME]
    remat_decoder: Annotated[RematPolicy, Mark.FREE_ON_RESUME]
    # Layers as straight code instead of a loop: faster on CPUs, slower to compile if there are many.
    unroll_layers: Annotated[bool, Mark.FREE_ON_RESUME]
    loss_chunk: Annotated[Size, Mark.FREE_ON_RESUME]  # tokens of a device whose logits exist at once
    # Storage of the frozen kernels of the decoder's blocks: `plain` is frozen_dtype, the others have 4 or 8 bits
    # (`models.quantised`).
    frozen_kernels: Annotated[str, OneOf(FROZEN_KERNELS)] = "plain"
    # See `models.decoder.rotate`: for TPUs whose memory is slow compared with their matrix units.
    rotary_by_product: Annotated[bool, Mark.FREE_ON_RESUME] = False
    # "name=value" each, in addition to those of `sharding.compiler`.
    xla_options: Annotated[tuple[str, ...], Mark.FREE_ON_RESUME] = ()
    # Folder of compiled programs, for the next start; "workdir": a folder in that of the run; "": none.
    compilation_cache: Annotated[str, Mark.FREE_ON_RESUME] = "workdir"

    def check(self, path: str) -> None:
        """Raises UserError if an option of XLA has no name."""
        for option in self.xla_options:
            require("=" in option[1:], f"{path}.xla_options holds {option!r}; write name=value")


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    optimizer: OptimizerConfig
    init: Annotated[InitConfig, Mark.MOVABLE]
    train: TrainConfig
    mesh: Annotated[MeshConfig, Mark.FREE_ON_RESUME]
    compute: ComputeConfig
    evaluation: Annotated[EvaluationConfig, Mark.FREE_ON_RESUME] = EvaluationConfig()
    watching: Annotated[watching.WatchingConfig, Mark.FREE_ON_RESUME] = watching.DEFAULTS
    watchdog: Annotated[watchdog.WatchdogConfig, Mark.FREE_ON_RESUME] = watchdog.DEFAULTS
    anomalies: Annotated[anomalies.AnomaliesConfig, Mark.FREE_ON_RESUME] = anomalies.DEFAULTS
    checkpoint: Annotated[CheckpointConfig, Mark.FREE_ON_RESUME] = ONLY_THE_NEWEST
    lora: LoraConfig = NO_LORA

    def check(self, path: str) -> None:
        """Raises UserError if data, model and optimiser do not suit one another."""
        self._check_lora(path)
        towers = {target.split("/")[0] for target in self.lora.adapted}
        for name in self.train.trainable:
            of_text = name in ("decoder", "vocabulary") or (name == "lora" and "decoder" in towers)
            require(
                self.data.images_per_row > 0 or of_text,
                f"{path}.data.images_per_row is 0, so nothing would train {name}; give rows images or train the "
                "decoder alone",
            )
        vit = self.model.vit
        size = self.data.image_size
        side = size // vit.patch_size
        require(
            side > 0 and size % vit.patch_size == 0,
            f"{path}.data.image_size {size} must be a multiple of the patch size {vit.patch_size}",
        )
        require(
            vit.window == 0 or side % vit.window == 0 or side < vit.window,
            f"{path}.model.vit.window {vit.window} does not divide the {side} patches of a side",
        )
        image_tokens = self.model.resampler.image_tokens
        require(
            self.data.sequence_length > image_tokens,
            f"{path}.data.sequence_length {self.data.sequence_length} cannot hold one image of {image_tokens} tokens",
        )
        require(
            not self.checkpoint.best_needs_evaluation or self.evaluation.every > 0,
            f"{path}.checkpoint.best_by {self.checkpoint.best_by!r} is measured every {path}.evaluation.every steps, "
            "which is 0; set that, or choose train/loss",
        )
        warmup = self.optimizer.warmup_steps
        steps = self.train.steps
        require(warmup < steps, f"{path}.optimizer.warmup_steps {warmup} must be less than {path}.train.steps {steps}")

    def _check_lora(self, path: str) -> None:
        """Raises UserError if there are adapters that are not trained, or none to train, or a kernel is trained too."""
        named = "lora" in self.train.trainable
        require(
            named == (self.lora.rank > 0),
            f"{path}.lora.rank is {self.lora.rank}, but {path}.train.trainable {'names' if named else 'lacks'} 'lora'; "
            "set both for low-rank adapters, or neither",
        )
        quantised = self.compute.frozen_kernels
        require(
            quantised == "plain" or "decoder" not in self.train.trainable,
            f"{path}.compute.frozen_kernels is {quantised!r}, but {path}.train.trainable has the decoder, of which no "
            "kernel is frozen then; name 'lora' instead, or choose 'plain'",
        )
        whole = [target for target in self.lora.adapted if target.split("/")[0] in self.train.trainable]
        require(
            not whole,
            f"{path}.lora.targets has {''.join(whole[:1])}, which {path}.train.trainable trains whole; remove it from "
            "one of the two",
        )
        for target in self.lora.adapted:
            width = self.model.decoder.width if target.startswith("decoder/") else self.model.vit.width
            require(
                self.lora.rank <= width,
                f"{path}.lora.rank {self.lora.rank} is more than the width {width} of {target}, whose kernel has no "
                "higher rank; lower it",
            )
