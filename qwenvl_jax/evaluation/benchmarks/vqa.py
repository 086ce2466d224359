"""Questions about photographs (paper, Table 4; released evaluate_vqa.py)."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.evaluation.benchmarks import submissions
from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.published import published

VQA = Form(Template("<img>{question} Answer:"))
_ASKED: dict[str, Any] = {"max_new_tokens": 10, "min_new_tokens": 1, "table": "4", "exemplar_split": "train"}

BENCHMARKS = (
    published(
        "vqav2_val",
        "VQAv2 val",
        VQA,
        "vqa_accuracy",
        corpus="vqav2",
        split="val",
        note="The paper reports test-dev alone.",
        **_ASKED,
    ),
    published(
        "vqav2_testdev",
        "VQAv2 test-dev",
        VQA,
        "vqa_accuracy",
        corpus="vqav2",
        split="test_dev",
        hidden=True,
        submission=submissions.vqav2,
        paper={"Qwen-VL": 79.5, "Qwen-VL-Chat": 78.2},
        note="The release's README has 78.8 for Qwen-VL.",
        **_ASKED,
    ),
    published(
        "okvqa_val",
        "OKVQA val",
        VQA,
        "vqa_accuracy",
        corpus="okvqa",
        split="val",
        paper={"Qwen-VL": 58.6, "Qwen-VL-Chat": 56.6},
        note="A comment in the release's README has 63.6 for Qwen-VL and 60.6 for Qwen-VL-Chat with 4 exemplars.",
        **_ASKED,
    ),
    published(
        "gqa_testdev",
        "GQA test-dev balanced",
        VQA,
        "gqa_accuracy",
        corpus="gqa",
        split="testdev",
        paper={"Qwen-VL": 59.3, "Qwen-VL-Chat": 57.5},
        note="The paper says test-balanced; the released script takes test-dev balanced.",
        **_ASKED,
    ),
    published(
        "vizwiz_val",
        "VizWiz val",
        VQA,
        "vqa_accuracy",
        corpus="vizwiz",
        split="val",
        paper={"Qwen-VL": 35.2, "Qwen-VL-Chat": 38.9},
        note="The paper says test-dev; the released script scores val. A comment in the release's README has 39.1 for "
        "Qwen-VL and 44.45 for Qwen-VL-Chat with 4 exemplars.",
        **_ASKED,
    ),
    published(
        "vizwiz_test",
        "VizWiz test",
        VQA,
        "vqa_accuracy",
        corpus="vizwiz",
        split="test",
        hidden=True,
        submission=submissions.vizwiz,
        paper={"Qwen-VL": 35.2, "Qwen-VL-Chat": 38.9},
        note="The paper says test-dev, and it is not known which of val and test its figure belongs to.",
        **_ASKED,
    ),
)
