"""The schema of an evaluation: which checkpoints, which tasks, where the results go.

A config file returns an `ml_collections.ConfigDict`; `qwenvl_jax.config.from_config_dict(EvalConfig, ...)` checks it.
"""

from __future__ import annotations

import dataclasses

from qwenvl_jax.config import TokenizerConfig
from qwenvl_jax.data.tasks import PROMPT_STYLES
from qwenvl_jax.evaluation.metrics.cider import TOKENISATIONS
from qwenvl_jax.runtime.errors import UserError, nearest

# Tasks that can be scored, and the figure of each in scores.json.
SCORE_KEYS = {
    "ref_grounding": "referring_acc",
    "ocr": "ocr_char_acc",
    "vqa": "vqa_acc",
    "caption": "caption_cider",
    "dialogue": "dialogue_acc",
}
# The figures of tables and tiles, in their order. CIDEr by the official tokeniser is another figure than ours.
HEADLINES = (
    "referring_acc", "ocr_char_acc", "vqa_score", "vqa_acc", "caption_cider", "caption_cider_ptb", "dialogue_acc",
)  # fmt: skip
UNANSWERED = "unanswered"  # beside the figures in scores.json: the questions that could not be asked, by task


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """One trained stage: `name` in the tables, the `workdir` of its training, pixels of an image's side.

    `step` is that of the checkpoint, -1 the newest finished one.
    """

    name: str
    workdir: str
    image_size: int
    step: int = -1

    @property
    def wanted_step(self) -> int | None:
        """The step as `checkpoint.restore` takes it: None is the newest."""
        return None if self.step < 0 else self.step


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One benchmark: records of `split` in the folder `records`, the first `limit` of them (0: all).

    `tokenisation` is that of CIDEr: "simple", or "ptb" as the official evaluation has it (needs java).
    """

    name: str
    records: str
    split: str
    limit: int
    max_new: int  # tokens generated at most
    min_new: int  # tokens before which no stop id may be chosen
    tokenisation: str = "simple"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Every checkpoint is asked every task. Results are written under `output`."""

    checkpoints: tuple[CheckpointConfig, ...]
    tokenizer: TokenizerConfig
    tasks: tuple[TaskConfig, ...]
    batch_size: int  # prompts decoded together
    prompt_style: str  # "released": the released scripts' prompts; "training": those of the training tasks
    output: str


def validate(config: EvalConfig) -> EvalConfig:
    """Checks names and ranges; returns the config.

    Raises:
      UserError: naming the key and what would be valid.
    """
    for what, items in (("checkpoints", config.checkpoints), ("tasks", config.tasks)):
        names = [item.name for item in items]
        if not names:
            raise UserError(f"config.{what} is empty; name at least one")
        if len(set(names)) != len(names):
            raise UserError(f"two entries of config.{what} share a name; rename one")
    for item in config.checkpoints:
        if not item.name or item.name.startswith(".") or "/" in item.name:
            raise UserError(
                f"the checkpoint's name {item.name!r} becomes a folder; give it one without / and first dot"
            )
        if item.step < -1:
            raise UserError(
                f"checkpoint {item.name!r}: the step {item.step} must be a finished one, or -1 for the newest"
            )
    for task in config.tasks:
        if task.name not in SCORE_KEYS:
            known = ", ".join(SCORE_KEYS)
            raise UserError(f"the task {task.name!r} is none of {known}{nearest(task.name, SCORE_KEYS)}")
        if task.max_new < 1 or not 0 <= task.min_new <= task.max_new or task.limit < 0:
            raise UserError(
                f"task {task.name!r}: max_new must be at least 1, min_new between 0 and max_new, limit not negative"
            )
        if task.tokenisation not in TOKENISATIONS:
            known = ", ".join(TOKENISATIONS)
            raise UserError(f"task {task.name!r}: the tokenisation {task.tokenisation!r} is none of {known}")
        if task.tokenisation != "simple" and task.name != "caption":
            raise UserError(f"task {task.name!r} has no tokenisation; only captions are scored by CIDEr")
    if config.prompt_style not in PROMPT_STYLES:
        raise UserError(f"config.prompt_style {config.prompt_style!r} is none of {', '.join(PROMPT_STYLES)}")
    if config.batch_size < 1:
        raise UserError("config.batch_size must be at least 1")
    return config
