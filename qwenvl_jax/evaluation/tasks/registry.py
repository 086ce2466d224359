"""The tasks that an evaluation config can name."""

from __future__ import annotations

from qwenvl_jax.evaluation.tasks import caption, dialogue, ocr, ref_grounding, vqa
from qwenvl_jax.evaluation.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (t.TASK for t in (ref_grounding, ocr, vqa, caption, dialogue))}
