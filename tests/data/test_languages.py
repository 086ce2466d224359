"""The guessed language of a sample: that of the text which the model must write, in every kind of source."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest

from qwenvl_jax.data.languages import OTHER_TEXTS, WRITTEN_TEXTS, guess_language, language_of
from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.tasks import RECORD_TASKS
from tests.data.record_samples import encoded_image
from tests.data.source_files import write_jsonl, write_tar

QUAD = [[0, 0], [9, 0], [9, 9], [0, 9]]


def turns(*said: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"turns": [{"role": role, "parts": [part]} for role, part in said]}


@pytest.mark.parametrize(
    ("content", "language"),
    [
        ({"caption": "一只猫"}, "zh"),
        ({"caption": "a cat"}, "en"),
        ({"question": "What does the sign say, in its own language?", "answer": "出口"}, "zh"),
        ({"question": "牌子上写了什么？请告诉我", "answer": "exit"}, "en"),
        ({"question": "有几只猫？", "answer": "3"}, "zh"),  # a number has no letters, so the question counts
        ({"question": "How many?", "answer": "3"}, "en"),
        ({"phrase": "左边的猫", "box": [1, 2, 3, 4]}, "zh"),  # the model writes a box
        ({"ref": "This", "description": "滑雪板", "box": [1, 2, 3, 4]}, "zh"),
        ({"segments": [{"text": "一只", "boxes": []}, {"text": "猫", "boxes": [[0, 0, 9, 9]]}]}, "zh"),
        ({"lines": [{"text": "出口", "quad": QUAD}, {"text": "a", "quad": QUAD}]}, "zh"),
        ({"task": "caption", "words": "red square", "caption": "红色的正方形"}, "zh"),
        (
            {"annotations": [{"question": "What is it called?", "answer": "猫"}, {"question": "?", "answer": "狗"}]},
            "zh",
        ),
        (turns(("user", {"text": "Translate to Chinese: a cat"}), ("assistant", {"text": "一只猫"})), "zh"),
        (turns(("user", {"text": "翻译成英文：一只猫"}), ("assistant", {"ref": "a cat", "boxes": []})), "en"),
        (turns(("user", {"text": "猫在哪里？"}), ("assistant", {"boxes": [[0, 0, 9, 9]]})), "zh"),
        ({"system": "You are a helpful assistant.", **turns(("user", {"text": "?"}))}, "en"),
        ({"answer": None, "question": ["猫"], "turns": "none"}, "en"),  # not checked yet
        ([], "en"),
    ],
)
def test_the_text_that_the_model_must_write_decides(content: Any, language: str) -> None:
    assert language_of(content) == language


def test_every_text_of_a_task_counts_but_that_of_the_system() -> None:
    counted = {*WRITTEN_TEXTS, *OTHER_TEXTS}
    assert {key for task in RECORD_TASKS.values() for key in task.texts} - {"system"} <= counted


def test_the_normal_form_of_the_letters_is_counted() -> None:
    text = "한국어 中文中文"
    assert guess_language(text) == guess_language(unicodedata.normalize("NFD", text)) == "zh"


@pytest.mark.parametrize("caption", ["a cat", "一只猫 cat", "一只 cat", "12", "café 一只猫", "한국어 中文中文"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_json_and_tar_guess_alike(caption: str, form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    caption = unicodedata.normalize(form, caption)
    image = encoded_image(0)
    (tmp_path / "a.png").write_bytes(image)
    from_json = JsonReader(write_jsonl(tmp_path / "a.jsonl", [{"image": "a.png", "caption": caption}]), "caption")
    shard = write_tar(tmp_path / "a.tar", [("a.png", image), ("a.txt", caption.encode())])
    assert from_json[0].language == TarReader(str(shard))[0].language == guess_language(caption)
