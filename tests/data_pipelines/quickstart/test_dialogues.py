"""Dialogues about pictures: what they ask about words, and their licences."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.quickstart.dialogues import Picture, converse
from data_pipelines.quickstart.ocr_pictures import Line, OcrPicture
from qwenvl_jax.data.dialogues import DialogueContent
from qwenvl_jax.data.schema import Record, content_of

QUAD = ((10, 10), (90, 10), (90, 40), (10, 40))


def words(text: str, license: str = "CC0-1.0") -> Picture:
    lines = tuple(Line(word, QUAD) for word in text.split(" "))
    content = OcrPicture(np.zeros((100, 100, 3), np.uint8), lines, "en")
    return Picture(content, text.encode(), license)


def exchanges(record: Record) -> list[tuple[str, str]]:
    said = ["".join(p.get("text", "") for p in turn["parts"]) for turn in content_of(record, DialogueContent)["turns"]]
    return list(zip(said[::2], said[1::2], strict=True))


@pytest.mark.parametrize("other", ["owl", "fox"])
def test_two_pictures_of_words_are_read_and_found_by_their_words(other: str) -> None:
    found: set[tuple[str, str]] = set()
    for seed in range(60):
        record = converse(np.random.default_rng(seed), [words("fox"), words(other)], "en", "x", "tests")
        texts = [image.decode() for image in record.images]
        for question, answer in exchanges(record):
            if question.startswith("Read"):
                said, number = answer, int(question.removeprefix("Read the text in Picture ").rstrip("."))
            else:
                said = question.removeprefix("Which picture says ").rstrip("?")
                number = int(answer.removeprefix("Picture ").rstrip("."))
            assert texts[number - 1] == said
            found.add((question.split()[0], said))
    read = {("Read", "fox"), ("Read", other)}
    # If both pictures say the same, nobody can tell which one is meant.
    assert found == (read if other == "fox" else read | {("Which", "fox"), ("Which", "owl")})


@pytest.mark.parametrize("other", ["fox owl", "owl fox"])
def test_no_question_is_which_picture_says_what_both_say(other: str) -> None:
    asked: set[str] = set()
    for seed in range(60):
        record = converse(np.random.default_rng(seed), [words("fox"), words(other)], "en", "x", "tests")
        asked |= {question for question, _ in exchanges(record) if question.startswith("Which")}
    assert asked == {f"Which picture says {other}?"}


def test_a_dialogue_has_the_licences_of_the_pictures_that_it_shows() -> None:
    pictures = [words("fox", "GPL-2.0-or-later"), words("owl", "CC0-1.0 AND GPL-2.0-or-later")]
    licenses = {1: ["GPL-2.0-or-later"], 2: ["CC0-1.0", "GPL-2.0-or-later"]}
    numbers = set()
    for seed in range(20):
        record = converse(np.random.default_rng(seed), pictures, "en", "x", "tests")
        numbers.add(len(record.images))
        assert sorted(record.license.split(" AND ")) == licenses[len(record.images)]
    assert numbers == {1, 2}
