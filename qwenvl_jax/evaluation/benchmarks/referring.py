"""Boxes of referring expressions (paper, Table 6; released evaluate_grounding.py)."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.evaluation.benchmarks import submissions
from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.published import published

# The answer continues after <box> with "(x1,y1),(x2,y2)".
REFERRING = Form(Template("<img><ref>{question}</ref><box>"), needs="box", strip=False, before_answer="")
_LIMITS: dict[str, Any] = {"max_new_tokens": 28, "min_new_tokens": 10, "table": "6"}

# (corpus, its title, split, the paper's figures of Qwen-VL and Qwen-VL-Chat)
_SPLITS = (
    ("refcoco", "RefCOCO", "val", 89.36, 88.55),
    ("refcoco", "RefCOCO", "testA", 92.26, 92.27),
    ("refcoco", "RefCOCO", "testB", 85.34, 84.51),
    ("refcoco_plus", "RefCOCO+", "val", 83.12, 82.82),
    ("refcoco_plus", "RefCOCO+", "testA", 88.25, 88.59),
    ("refcoco_plus", "RefCOCO+", "testB", 77.21, 76.79),
    ("refcocog", "RefCOCOg", "val", 85.58, 85.96),
    ("refcocog", "RefCOCOg", "test", 85.48, 86.32),
)
_SPLIT_OF_CORPUS = {"testA": "test_a", "testB": "test_b"}

BENCHMARKS = (
    *(
        published(
            f"{corpus}_{split}",
            f"{title} {split}",
            REFERRING,
            "iou_accuracy",
            corpus=corpus,
            split=_SPLIT_OF_CORPUS.get(split, split),
            paper={"Qwen-VL": base, "Qwen-VL-Chat": chat},
            note="The released script drops the last incomplete batch of every process, so its figure counts up to "
            "seven questions fewer per process; here all count.",
            **_LIMITS,
        )
        for corpus, title, split, base, chat in _SPLITS
    ),
    published(
        "grit_refexp",
        "GRIT refexp",
        REFERRING,
        "grit_accuracy",
        corpus="grit_refexp",
        split="test",
        hidden=True,
        submission=submissions.grit,
        paper={"Qwen-VL": 78.22},
        note="This is the General Robust Image Task benchmark, not the corpus GRIT of grounded captions. Prompt and "
        "script are not published; they are those of RefCOCO.",
        **_LIMITS,
    ),
)
