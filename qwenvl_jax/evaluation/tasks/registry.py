"""The tasks that an evaluation config can name."""

from __future__ import annotations

from qwenvl_jax.evaluation.tasks import caption, dialogue, ocr, ref_grounding, vqa
from qwenvl_jax.evaluation.tasks.task import Task

BENCHMARKS: dict[str, Task] = {
    "ref_grounding": ref_grounding.TASK,
    "ocr": ocr.TASK,
    "vqa": vqa.TASK,
    "caption": caption.TASK,
    "dialogue": dialogue.TASK,
}
