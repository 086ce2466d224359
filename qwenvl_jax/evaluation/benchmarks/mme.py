"""MME: yes-or-no questions in a chat (paper, Table 7; released eval_mm/mme/eval.py)."""

from __future__ import annotations

from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.published import published

# The query of `model.chat`: no "Picture 1:" before the image.
YES_OR_NO = Form(Template("<img>\n{question}"), chat=True)

_SUMS = {"perception": 1487.58, "cognition": 360.71}
# Of the table in the release; the paper has only the sums.
_SUBTASKS = {
    "existence": 158.33,
    "count": 150.0,
    "position": 128.33,
    "color": 170.0,
    "posters": 178.57,
    "celebrity": 120.59,
    "scene": 152.25,
    "landmark": 164.0,
    "artwork": 125.5,
    "OCR": 140.0,
    "commonsense_reasoning": 130.71,
    "numerical_calculation": 40.0,
    "text_translation": 147.5,
    "code_reasoning": 42.5,
}

BENCHMARKS = (
    published(
        "mme",
        "MME",
        YES_OR_NO,
        "mme",
        corpus="mme",
        split="test",
        table="7",
        max_new_tokens=512,
        paper_figures={name: {"Qwen-VL-Chat": value} for name, value in (_SUMS | _SUBTASKS).items()},
        note="The figures are of the first Chat weights, which were replaced in September 2023. Those of subtasks are "
        "of the release's table, in which perception is 1487.57. The release samples with top_p 0.01; here the most "
        "likely token is taken. Only a chat model can be compared.",
    ),
)
