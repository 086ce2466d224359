"""Benchmarks on real pictures that Debian packages hold: no figure of the paper, but anybody can build and ask them.

`python -m data_pipelines.debian --evaluation` writes their records (docs/real_corpus.md). They have the forms of the
published benchmarks, in English and in part in Chinese.
"""

from __future__ import annotations

from typing import Any

from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.mme import YES_OR_NO
from qwenvl_jax.evaluation.benchmarks.multiple_choice import CHOICE
from qwenvl_jax.evaluation.benchmarks.prompts import Template
from qwenvl_jax.evaluation.benchmarks.published import published
from qwenvl_jax.evaluation.benchmarks.pure_text import ENGLISH_EXAM
from qwenvl_jax.evaluation.benchmarks.referring import REFERRING
from qwenvl_jax.evaluation.benchmarks.vqa import VQA

CAPTION = Form(Template("<img>Describe the image in {language}:"))
_SHORT: dict[str, Any] = {"max_new_tokens": 10, "min_new_tokens": 1}
_LONG: dict[str, Any] = {"max_new_tokens": 100, "min_new_tokens": 1}
_CAPTION: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 8}
_BOX: dict[str, Any] = {"max_new_tokens": 28, "min_new_tokens": 10}
_EXAM: dict[str, Any] = {"shots": 5, "exemplar_split": "dev", "exemplar_choice": "category"}

# (corpus, title, form, metric, limits and other facts)
_ALL: tuple[tuple[str, str, Form, str, dict[str, Any]], ...] = (
    ("debian_captions", "Stamps, captions", CAPTION, "cider", _CAPTION),
    ("debian_captions_zh", "Stamps, captions in Chinese", CAPTION, "cider_simple", _CAPTION),
    ("debian_choices", "Stamps, choices in all rotations", CHOICE, "mmbench", {}),
    ("debian_yes_no", "Stamps, yes or no", YES_OR_NO, "mme", {"max_new_tokens": 16}),
    ("debian_maps", "Maps, questions", VQA, "exact_match", _SHORT),
    ("debian_phrases", "Maps, regions", REFERRING, "iou_accuracy", _BOX),
    ("debian_phrases_zh", "Maps, regions in Chinese", REFERRING, "iou_accuracy", _BOX),
    ("debian_words", "Maps, written names", VQA, "vqa_accuracy", _SHORT),
    ("debian_charts", "Charts", VQA, "relaxed_accuracy", _LONG),
    ("debian_documents", "Documents", VQA, "anls", _LONG),
    ("debian_capitals", "Capitals, five shots", ENGLISH_EXAM, "subject_accuracy", _EXAM),
)
BENCHMARKS = tuple(
    published(f"{corpus}_test", title, form, metric, corpus=corpus, split="test", **facts)
    for corpus, title, form, metric, facts in _ALL
)
