"""The table of record tasks: keys, texts, words and regions of every task."""

from __future__ import annotations

import pytest

from qwenvl_jax.data.schema import TASKS, check_record
from qwenvl_jax.data.tasks import RECORD_TASKS, Regions
from tests.data.record_samples import make_record

SIZE = ("width", "height")
KEYS = {  # required, optional
    "caption": (("caption",), ()),
    "vqa": (("question", "answer"), ("answers",)),
    "grounding": (("segments", *SIZE), ()),
    "ref_grounding": (("phrase", "box", *SIZE), ()),
    "grounded_caption": (("box", "description", *SIZE), ("ref",)),
    "ocr": (("lines", *SIZE), ()),
    "text": (("text",), ()),
    "dialogue": (("turns",), ("system", "sizes")),
    "evaluation": (("questions",), SIZE),
}
QUAD = [[1, 1], [9, 1], [9, 5], [1, 5]]
SHOWN = {  # words and regions of `make_record(task, 1)`
    "caption": ("cat hill", Regions()),
    "vqa": ("How many cat hill? 1", Regions()),
    "grounding": ("cat hill runs.", Regions(boxes=[[1, 2, 20, 21]])),
    "ref_grounding": ("cat hill", Regions(boxes=[[1, 3, 20, 27.5]])),
    "grounded_caption": ("cat hill", Regions(boxes=[[0, 0, 28, 28]])),
    "ocr": ("cat hill / cat hill", Regions(quads=[QUAD, QUAD])),
    "text": ("cat hillcat hill", Regions()),
    "dialogue": ("user: What is this?\nassistant: cat hill\nuser: And this?\nassistant: A dog", Regions([], [])),
    "evaluation": ("cat hill\nWhich animal? [cat hill / no animal] cat hill", Regions(boxes=[[1, 3, 20, 27.5]])),
}


@pytest.mark.parametrize("task", TASKS)
def test_keys(task: str) -> None:
    assert (RECORD_TASKS[task].required, RECORD_TASKS[task].optional) == KEYS[task]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_draws_regions_states_the_size_of_its_image(task: str) -> None:
    draws = task in ("grounding", "ref_grounding", "grounded_caption", "ocr")
    assert RECORD_TASKS[task].states_size == draws


@pytest.mark.parametrize("task", TASKS)
def test_words_and_regions(task: str) -> None:
    content = check_record(make_record(task, 1)).content
    words, regions = SHOWN[task]
    assert RECORD_TASKS[task].words(content) == words
    assert RECORD_TASKS[task].regions(content) == regions


def test_regions_of_a_dialogue_are_those_on_its_first_image() -> None:
    parts = [
        {"ref": "a dog", "boxes": [[1, 1, 9, 9]], "image": 0},
        {"ref": "a cat", "boxes": [[2, 2, 8, 8]], "image": 1},
        {"quads": [QUAD]},
    ]
    content = {"turns": [{"role": "user", "parts": []}, {"role": "assistant", "parts": parts}]}
    assert RECORD_TASKS["dialogue"].regions(content) == Regions([[1, 1, 9, 9]], [QUAD])
