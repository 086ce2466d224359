"""Questions about text in pictures, documents and charts (paper, Table 5; released evaluate_vqa.py)."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.evaluation.benchmarks import submissions
from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.published import published
from qwenvl_jax.evaluation.benchmarks.vqa import VQA

# As the training records of this project write the options of AI2D.
DIAGRAM = Form(Template("<img>{question}\nOptions: {options} Answer:"))
_SHORT: dict[str, Any] = {"max_new_tokens": 10, "min_new_tokens": 1, "table": "5", "exemplar_split": "train"}
_LONG: dict[str, Any] = {"max_new_tokens": 100, "min_new_tokens": 1, "table": "5", "exemplar_split": "train"}
_ONE_OF_TWO = "The paper reports one figure for both halves of the test split; see ChartQA test."

BENCHMARKS = (
    published(
        "textvqa_val",
        "TextVQA val",
        VQA,
        "vqa_accuracy",
        corpus="textvqa",
        split="val",
        paper={"Qwen-VL": 63.8, "Qwen-VL-Chat": 61.5},
        **_SHORT,
    ),
    published("docvqa_val", "DocVQA val", VQA, "anls", corpus="docvqa", split="val", **_LONG),
    published(
        "docvqa_test",
        "DocVQA test",
        VQA,
        "anls",
        corpus="docvqa",
        split="test",
        hidden=True,
        submission=submissions.docvqa,
        paper={"Qwen-VL": 65.1, "Qwen-VL-Chat": 62.6},
        **_LONG,
    ),
    published(
        "infovqa_val",
        "InfographicVQA val",
        VQA,
        "anls",
        corpus="infovqa",
        split="val",
        note="The paper has no figure; prompt and limits are those of DocVQA.",
        **_LONG,
    ),
    published(
        "infovqa_test",
        "InfographicVQA test",
        VQA,
        "anls",
        corpus="infovqa",
        split="test",
        hidden=True,
        submission=submissions.infovqa,
        note="The paper has no figure; prompt and limits are those of DocVQA.",
        **_LONG,
    ),
    *(
        published(
            f"chartqa_test_{half}",
            f"ChartQA test, {half}",
            VQA,
            "relaxed_accuracy",
            corpus="chartqa",
            split=f"test_{half}",
            note=_ONE_OF_TWO,
            **_LONG,
        )
        for half in ("human", "augmented")
    ),
    published(
        "ocrvqa_val",
        "OCR-VQA val",
        VQA,
        "exact_match",
        corpus="ocr_vqa",
        split="val",
        **_LONG,
    ),
    published(
        "ocrvqa_test",
        "OCR-VQA test",
        VQA,
        "exact_match",
        corpus="ocr_vqa",
        split="test",
        paper={"Qwen-VL": 75.7, "Qwen-VL-Chat": 70.5},
        **_LONG,
    ),
    published(
        "ai2d_test",
        "AI2D test",
        DIAGRAM,
        "exact_match",
        corpus="ai2d",
        split="test",
        paper={"Qwen-VL": 62.3, "Qwen-VL-Chat": 57.7},
        note="How the questions of the paper show their options is not published; here they are listed as in the "
        "training records, and the answer is compared with the text of the right option.",
        **_SHORT,
    ),
)
