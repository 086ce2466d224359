"""The schema of an evaluation: which checkpoints, which benchmarks, how they are computed, where the results go.

A config file returns an `ml_collections.ConfigDict`; `qwenvl_jax.config.from_config_dict(EvalConfig, ...)` checks it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any

from qwenvl_jax.config import DTYPES, MeshConfig, TokenizerConfig
from qwenvl_jax.config.constraints import FormerName, all_former_names
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.tasks import PROMPT_STYLES
from qwenvl_jax.evaluation.benchmarks.benchmark import Benchmark
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.metrics.cider import TOKENISATIONS
from qwenvl_jax.runtime.errors import UserError, nearest

# The figures of held-out training tasks in tables and tiles, in this order. CIDEr with the official tokeniser is
# another figure than with ours.
HEADLINES = (
    "referring_acc", "ocr_char_acc", "vqa_score", "vqa_acc", "caption_cider", "caption_cider_ptb", "dialogue_acc",
)  # fmt: skip

_LONGEST_NAME = 200  # bytes of a name; file systems take 255 with its ending, also while the file is written

OWN_DEVICES = MeshConfig(data=-1, fsdp=1, tensor=1, slices=1, max_replicated_bytes=0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """One checkpoint of a trained stage, or a release."""

    name: str  # in the tables
    workdir: str  # of its training; or a release in the format of PyTorch
    image_size: int  # pixels of an image's side
    step: int = -1  # of the checkpoint; -1 is the newest finished one


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """One benchmark, asked in one way."""

    name: str  # one of `benchmarks.registry.BENCHMARKS`
    records: str  # a folder
    split: str = ""  # of the records; "" is the benchmark's
    limit: int = 0  # only the first records are asked, this many; 0 asks all
    max_new_tokens: Annotated[int, FormerName("max_new")] = 0  # generated tokens; 0 is the benchmark's number
    # Generated tokens before which no stop id may be chosen; -1 is the benchmark's number.
    min_new_tokens: Annotated[int, FormerName("min_new")] = -1
    tokenisation: str = ""  # of CIDEr: "ptb" as in the official evaluation, also if empty, or "simple"
    label: str = ""  # in tables and names of files; "" becomes `name`. Needed if a benchmark is asked in several ways
    prompt: str = ""  # a template (`prompts.Template`) instead of the benchmark's; "" keeps it
    shots: int = -1  # answered questions before each; -1 is the benchmark's number
    exemplars: str = ""  # the record folder from which these are taken; "" is `records`
    exemplar_split: str = ""  # of that folder; "" is the benchmark's
    leak: bool = False  # whether exemplars may show the pictures that are asked about, as in the released script
    seed: int = 0  # of the choice of exemplars
    clean: str = ""  # a file that lists the ids of questions without a near duplicate in the training data

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)

    @property
    def benchmark(self) -> Benchmark:
        """Its entry in the table, scored with this tokenisation."""
        benchmark = BENCHMARKS[self.name]
        if not self.tokenisation or self.name != "caption":
            return benchmark
        score: Any = benchmark.score
        return dataclasses.replace(benchmark, score=functools.partial(score, tokenisation=self.tokenisation))

    @property
    def score_prefix(self) -> str:
        """What precedes its figures in scores.json, so that those of two benchmarks of a task stay apart."""
        return "" if self.label == self.name and self.benchmark.task != EVALUATION else f"{self.label}."

    @property
    def token_limits(self) -> tuple[int, int]:
        """The largest number of generated tokens, and the number before which no stop id may be chosen."""
        largest = self.max_new_tokens or self.benchmark.max_new_tokens
        smallest = self.benchmark.min_new_tokens if self.min_new_tokens < 0 else self.min_new_tokens
        return largest, smallest

    @property
    def exemplar_count(self) -> int:
        """How many answered questions are shown before each: `shots`, or the number of the benchmark."""
        return self.benchmark.shots if self.shots < 0 else self.shots


@dataclasses.dataclass(frozen=True)
class SpreadConfig:
    """The lowest and the highest value of a figure of a checkpoint in runs that differ in chance alone."""

    checkpoint: str  # its name
    figure: str  # its key in scores.json
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Every checkpoint is asked every benchmark. Results are written under `output`."""

    checkpoints: tuple[CheckpointConfig, ...]
    tokenizer: TokenizerConfig
    benchmarks: tuple[BenchmarkConfig, ...]
    batch_size: int  # prompts that one process answers together
    prompt_style: str  # of held-out records. "released": the released scripts' prompts; "training": those of training
    output: str
    mesh: MeshConfig = OWN_DEVICES  # over the devices of one process
    dtype: str = ""  # of matrix products and weights; "" is that of each run
    baseline: str = ""  # the checkpoint with which all are compared; "" compares each with the one before it
    spread: tuple[SpreadConfig, ...] = ()  # known from earlier runs; report.html shows it beside the scores

    @property
    def headlines(self) -> tuple[str, ...]:
        """`HEADLINES`, and those of held-out benchmarks with a label of their own."""
        relabelled = [item for item in self.benchmarks if item.benchmark.task != EVALUATION and item.score_prefix]
        return HEADLINES + tuple(f"{item.score_prefix}{key}" for item in relabelled for key in HEADLINES)


FORMER_KEYS = all_former_names(EvalConfig)  # today's names of keys by their former ones


def validate(config: EvalConfig) -> EvalConfig:
    """Checks names and ranges; returns the config.

    Raises:
      UserError: naming the key and the valid values.
    """
    for key, names in (
        ("checkpoints", [item.name for item in config.checkpoints]),
        ("benchmarks", [item.label for item in config.benchmarks]),
    ):
        if not names:
            raise UserError(f"config.{key} is empty; name at least one")
        if len(set(names)) != len(names):
            raise UserError(f"two entries of config.{key} share a name; give one of them another name or label")
        for name in names:
            if not _names_a_file(name):
                raise UserError(
                    f"the name {name!r} in config.{key} becomes one of a file; it must have 1 to {_LONGEST_NAME} "
                    "bytes, no / and no invisible character, and not start with a dot"
                )
    for item in config.checkpoints:
        if item.step < -1:
            raise UserError(
                f"checkpoint {item.name!r}: the step {item.step} must be a finished one, or -1 for the newest"
            )
    for benchmark in config.benchmarks:
        _check_benchmark(benchmark)
    if config.prompt_style not in PROMPT_STYLES:
        raise UserError(f"config.prompt_style {config.prompt_style!r} is not one of {', '.join(PROMPT_STYLES)}")
    if config.batch_size < 1:
        raise UserError("config.batch_size must be at least 1")
    if config.dtype not in ("", *DTYPES):
        raise UserError(f"config.dtype {config.dtype!r} is not one of {', '.join(DTYPES)}; '' is that of each run")
    if config.baseline and config.baseline not in [item.name for item in config.checkpoints]:
        raise UserError(
            f"config.baseline {config.baseline!r} is not the name of a checkpoint; name one, or leave it out"
        )
    for known in config.spread:
        if not known.low <= known.high:
            raise UserError(
                f"config.spread: {known.figure} of {known.checkpoint} lies between {known.low} and {known.high}; "
                "give the lower value first"
            )
    return config


def _names_a_file(name: str) -> bool:
    """Whether a file of this name, with an ending, can be made on disks and object stores."""
    # A single surrogate, which has no bytes, is not printable either.
    visible = name.isprintable() and not name.startswith(".") and "/" not in name
    return visible and 1 <= len(name.encode()) <= _LONGEST_NAME


def _check_benchmark(item: BenchmarkConfig) -> None:
    if item.name not in BENCHMARKS:
        raise UserError(
            f"the benchmark {item.name!r} is not one of {', '.join(BENCHMARKS)}{nearest(item.name, BENCHMARKS)}"
        )
    largest, smallest = item.token_limits
    if largest < 1 or not 0 <= smallest <= largest or item.limit < 0 or item.shots < -1 or item.seed < 0:
        raise UserError(
            f"benchmark {item.label!r}: max_new_tokens must be at least 1, min_new_tokens between 0 and "
            "max_new_tokens, limit and seed not negative, and shots at least -1"
        )
    if item.tokenisation and item.tokenisation not in TOKENISATIONS:
        known = ", ".join(TOKENISATIONS)
        raise UserError(f"benchmark {item.label!r}: the tokenisation {item.tokenisation!r} is not one of {known}")
    if item.tokenisation not in ("", "simple") and item.name != "caption":
        raise UserError(f"benchmark {item.label!r} has no tokenisation; only captions are scored by CIDEr")
    if item.benchmark.task == EVALUATION:
        Template(item.prompt)
    elif item.prompt or item.exemplar_count or item.clean:
        raise UserError(f"benchmark {item.label!r}: only published benchmarks have a prompt, shots or a clean list")
