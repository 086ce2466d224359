"""Multiple choice about pictures, by likelihood: ScienceQA, MMBench (released evaluate_multiple_choice.py), SEED-Bench.

Paper: Table 4 for ScienceQA and Table 7 for SEED-Bench. It has no figure of MMBench.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenvl_jax.evaluation.benchmarks import submissions
from qwenvl_jax.evaluation.benchmarks.form import Form
from qwenvl_jax.evaluation.benchmarks.prompts import LETTERS, Template
from qwenvl_jax.evaluation.benchmarks.published import published
from qwenvl_jax.evaluation.metrics.metric import Truth

FOUR_LETTERS = "ABCD"
_MOST_LETTERS = 5  # of the released scripts


def one_per_option(question: Mapping[str, Any]) -> str:
    """The letters of the options that the question has, at most A to E."""
    return LETTERS[: min(len(question.get("options") or ()), _MOST_LETTERS)]


CHOICE = Form(
    Template("<img>Context: {hint}\nQuestion: {question}\nOptions: {options}\nAnswer:"),
    needs="right",
    letters=one_per_option,
)
# A picture, or the frames of a video.
SEED = Form(
    Template("{images|<img>\n}Question: {question}\nOptions: {options}\nAnswer:"),
    needs="right",
    letters=lambda question: FOUR_LETTERS,
)

# The types of questions of SEED-Bench, by their number from 1; the last three are about videos.
SEED_TYPES = (
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instances Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Understanding",
    "Action Recognition",
    "Action Prediction",
    "Procedure Understanding",
)
_VIDEO_TYPES = 3


def is_about_video(truth: Truth) -> bool:
    """Whether a question of SEED-Bench is about a video; its category is the name or the number of its type."""
    videos = SEED_TYPES[-_VIDEO_TYPES:]
    return truth.category in (*videos, *(str(SEED_TYPES.index(name) + 1) for name in videos))


_MMBENCH_NOTE = (
    "The paper has no figure. The files are those of 12 July 2023; the paper's authors publish no score of their "
    "script, and figures by likelihood are higher than those of the leaderboard, which are generated."
)
BENCHMARKS = (
    published(
        "scienceqa_img_test",
        "ScienceQA-Img test",
        CHOICE,
        "choice_accuracy",
        corpus="scienceqa",
        split="test",
        table="4",
        paper={"Qwen-VL": 67.1, "Qwen-VL-Chat": 68.2},
        exemplar_split="train",
        note="Only questions with a picture are asked. Options beyond E are shown but not compared, as in the released "
        "script; a question whose right option is one of these counts as wrong.",
    ),
    published(
        "mmbench_dev",
        "MMBench dev",
        CHOICE,
        "mmbench",
        corpus="mmbench",
        split="dev",
        submission=submissions.mmbench,
        note=_MMBENCH_NOTE,
    ),
    published(
        "mmbench_test",
        "MMBench test",
        CHOICE,
        "mmbench",
        corpus="mmbench",
        split="test",
        hidden=True,
        submission=submissions.mmbench,
        note=_MMBENCH_NOTE,
    ),
    published(
        "seed_bench",
        "SEED-Bench",
        SEED,
        "choice_accuracy",
        corpus="seed_bench",
        split="test",
        figures={"image": lambda truth: not is_about_video(truth), "video": is_about_video},
        table="7",
        paper={"Qwen-VL": 56.3, "Qwen-VL-Chat": 58.2},
        paper_figures={
            "image": {"Qwen-VL": 62.3, "Qwen-VL-Chat": 65.4},
            "video": {"Qwen-VL": 39.1, "Qwen-VL-Chat": 37.8},
        },
        note="Four frames of a video are shown, as the paper says; the released script sets eight (split `video_8`).",
    ),
)
