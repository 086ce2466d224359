"""The schema of an evaluation: which checkpoints, which tasks, where the results go.

A config file returns an `ml_collections.ConfigDict`; `qwenvl_jax.config.from_config_dict(EvalConfig, ...)` checks it.
"""

from __future__ import annotations

import dataclasses

from qwenvl_jax.config import TokenizerConfig
from qwenvl_jax.data.tasks import PROMPT_STYLES
from qwenvl_jax.evaluation.metrics.cider import TOKENISATIONS
from qwenvl_jax.runtime.errors import UserError, nearest

# The tasks that can be scored, and the main figure of each in scores.json.
SCORE_KEYS = {
    "ref_grounding": "referring_acc",
    "ocr": "ocr_char_acc",
    "vqa": "vqa_acc",
    "caption": "caption_cider_ptb",
    "dialogue": "dialogue_acc",
}
# The figures of tables and tiles, in this order. CIDEr with the official tokeniser is another figure than with ours.
HEADLINES = (
    "referring_acc", "ocr_char_acc", "vqa_score", "vqa_acc", "caption_cider", "caption_cider_ptb", "dialogue_acc",
)  # fmt: skip
UNANSWERED = "unanswered"  # key in scores.json of the questions that could not be asked, by task


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """One checkpoint of a trained stage."""

    name: str  # in the tables
    workdir: str  # of its training
    image_size: int  # pixels of an image's side
    step: int = -1  # of the checkpoint; -1 is the newest finished one

    @property
    def wanted_step(self) -> int | None:
        """The step as `find_starting_point` takes it; None is the newest."""
        return None if self.step < 0 else self.step


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One benchmark."""

    name: str  # one of SCORE_KEYS
    records: str  # a folder
    split: str  # of the records
    limit: int  # only the first records are asked, this many; 0 asks all
    max_new: int  # the largest number of generated tokens
    min_new: int  # generated tokens before which no stop id may be chosen
    tokenisation: str = ""  # of CIDEr: "ptb" as in the official evaluation, also if empty, or "simple"


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
      UserError: naming the key and the valid values.
    """
    for key, items in (("checkpoints", config.checkpoints), ("tasks", config.tasks)):
        names = [item.name for item in items]
        if not names:
            raise UserError(f"config.{key} is empty; name at least one")
        if len(set(names)) != len(names):
            raise UserError(f"two entries of config.{key} share a name; rename one")
    for item in config.checkpoints:
        if not item.name or item.name.startswith(".") or "/" in item.name:
            raise UserError(
                f"the checkpoint's name {item.name!r} becomes a folder; it must not contain / or start with a dot"
            )
        if item.step < -1:
            raise UserError(
                f"checkpoint {item.name!r}: the step {item.step} must be a finished one, or -1 for the newest"
            )
    for task in config.tasks:
        if task.name not in SCORE_KEYS:
            known = ", ".join(SCORE_KEYS)
            raise UserError(f"the task {task.name!r} is not one of {known}{nearest(task.name, SCORE_KEYS)}")
        if task.max_new < 1 or not 0 <= task.min_new <= task.max_new or task.limit < 0:
            raise UserError(
                f"task {task.name!r}: max_new must be at least 1, min_new between 0 and max_new, and limit not negative"
            )
        if task.tokenisation and task.tokenisation not in TOKENISATIONS:
            known = ", ".join(TOKENISATIONS)
            raise UserError(f"task {task.name!r}: the tokenisation {task.tokenisation!r} is not one of {known}")
        if task.tokenisation not in ("", "simple") and task.name != "caption":
            raise UserError(f"task {task.name!r} has no tokenisation; only captions are scored by CIDEr")
    if config.prompt_style not in PROMPT_STYLES:
        raise UserError(f"config.prompt_style {config.prompt_style!r} is not one of {', '.join(PROMPT_STYLES)}")
    if config.batch_size < 1:
        raise UserError("config.batch_size must be at least 1")
    return config
