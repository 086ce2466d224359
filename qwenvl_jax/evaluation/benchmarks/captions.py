"""Captions of Nocaps and Flickr30K (paper, Table 4; released evaluate_caption.py)."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.published import published

CAPTION = Form(Template("<img>Describe the image in English:"))
_LIMITS: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 8}

BENCHMARKS = (
    published(
        "nocaps_val",
        "Nocaps val",
        CAPTION,
        "cider",
        corpus="nocaps",
        split="val",
        table="4",
        paper={"Qwen-VL": 121.4, "Qwen-VL-Chat": 120.2},
        **_LIMITS,
    ),
    published(
        "flickr30k_karpathy_test",
        "Flickr30K test",
        CAPTION,
        "cider",
        corpus="flickr30k",
        split="test",
        table="4",
        paper={"Qwen-VL": 85.8, "Qwen-VL-Chat": 81.0},
        exemplar_split="train",
        note="The split is Karpathy's. The released script draws few-shot exemplars from the test split itself; here "
        "they come from the training split, unless the exemplars of the config are the test records.",
        **_LIMITS,
    ),
)
