"""Examinations without pictures, by likelihood: MMLU, CMMLU, C-Eval (paper, Table 11; QwenLM/Qwen eval/*.py)."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.multiple_choice import FOUR_LETTERS
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.published import published

ENGLISH_EXAM = Form(
    Template("Question: {question}\n{options}\nAnswer:"),
    needs="right",
    letters=lambda question: FOUR_LETTERS,
    preamble=Template("The following are multiple choice questions (with answers) about {category}.\n\n"),
    after_exemplar="\n\n",
)
# A Chinese letter follows the colon without a space.
CHINESE_EXAM = Form(
    Template("问题：{question}\n{options}\n答案："),
    needs="right",
    letters=lambda question: FOUR_LETTERS,
    before_answer="",
    after_exemplar="\n\n",
)

# The subjects of C-Eval Hard.
HARD_SUBJECTS = (
    "advanced_mathematics",
    "discrete_mathematics",
    "probability_and_statistics",
    "college_chemistry",
    "college_physics",
    "high_school_mathematics",
    "high_school_chemistry",
    "high_school_physics",
)


_FIVE_SHOTS: dict[str, Any] = {
    "shots": 5,
    "exemplar_split": "dev",
    "exemplar_choice": "category",
    "table": "11",
}
_NOTE = (
    "The paper does not say which script, exemplars and split its figure belongs to; these are those of the evaluation "
    "of Qwen-7B."
)
_INITIAL = "Qwen-7B, initial"  # the checkpoint from which Qwen-VL started
_RELEASED = "Qwen-7B"

BENCHMARKS = (
    published(
        "mmlu_test",
        "MMLU test",
        ENGLISH_EXAM,
        "choice_accuracy",
        corpus="mmlu",
        split="test",
        last_tokens=2047,
        paper={"Qwen-VL": 50.7, _INITIAL: 49.9, _RELEASED: 58.2},
        note=f"{_NOTE} The released script reads the texts None and NA as missing and prints them as nan; here they "
        "stay.",
        **_FIVE_SHOTS,
    ),
    published(
        "cmmlu_test",
        "CMMLU test",
        CHINESE_EXAM,
        "subject_accuracy",
        corpus="cmmlu",
        split="test",
        paper={"Qwen-VL": 49.5, _RELEASED: 62.2},
        note=_NOTE,
        **_FIVE_SHOTS,
    ),
    published(
        "ceval_val",
        "C-Eval val",
        CHINESE_EXAM,
        "subject_accuracy",
        corpus="ceval",
        split="val",
        figures={"hard": lambda truth: truth.category in HARD_SUBJECTS},
        paper={"Qwen-VL": 51.1, _INITIAL: 48.5, _RELEASED: 63.5},
        note=_NOTE,
        **_FIVE_SHOTS,
    ),
)
