"""Samples over pictures made of words tell what the words show: answers are found again by reading the grid."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any

import pytest

from data_pipelines.quickstart.ingredients import Ingredients
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.shards import make_records
from data_pipelines.quickstart.word_pictures import BACKGROUNDS, SIGN
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.schema import Record


@pytest.fixture(scope="module")
def samples(settings: QuickstartSettings, ingredients: Ingredients) -> list[Record]:
    """Of stamps whose last words differ, as those of Tux Paint's do: of a red and a blue square one is left."""
    stamps = {stamp.noun_en.split()[-1]: stamp for stamp in ingredients.stamps}
    distinct = dataclasses.replace(ingredients, stamps=tuple(stamps.values()))
    records = make_records(dataclasses.replace(settings, train=600, records_per_shard=600), distinct, "train", 0)
    return [record for record in records["text"] if "words" in record.content]


def contents(samples: list[Record]) -> list[Any]:
    return [sample.content for sample in samples]


def of_task(samples: list[Record], task: str) -> list[Any]:
    return [content for content in contents(samples) if content["task"] == task]


def shown(words: str) -> set[str]:
    """What a grid shows beside its background."""
    return set(words.split(" ")) - {*BACKGROUNDS, SIGN}


def test_every_task_occurs_and_has_the_form_of_training(samples: list[Record]) -> None:
    tasks = Counter(content["task"] for content in contents(samples))
    assert tasks.keys() == {"caption", "vqa", "grounding", "ref_grounding", "grounded_caption", "ocr", "dialogue"}
    assert tasks["vqa"] > 0.2 * len(samples)
    assert tasks["dialogue"] > 0.2 * len(samples)
    for sample in samples:
        text = "".join(str(piece.value) for piece in training_pieces(sample))
        assert text.count("<img>") == text.count("</img>") >= 1


def test_a_thing_is_there_if_its_word_is_in_the_picture(samples: list[Record]) -> None:
    answers: Counter[str] = Counter()
    for content in of_task(samples, "vqa"):
        if found := re.fullmatch(r"Is there an? (.+)\?", content["question"]):
            assert content["answer"] == ("yes" if found[1].split()[-1] in shown(content["words"]) else "no")
            answers[content["answer"]] += 1
    assert min(answers["yes"], answers["no"]) > 10
    assert answers.total() > 0.08 * len(samples), "a bit of an answer teaches little"


def test_dialogues_name_the_right_one_of_two_pictures(samples: list[Record]) -> None:
    numbers: Counter[tuple[int, int]] = Counter()
    said_by: Counter[bool] = Counter()  # whether the other picture is one of words, too
    for content in of_task(samples, "dialogue"):
        said = [" ".join(str(part.get("text", "")) for part in turn["parts"]) for turn in content["turns"]]
        for question, answer in zip(said[::2], said[1::2], strict=True):
            if found := re.search(r"(?:What is in|And in|Read the text in) Picture (\d)", question):
                number = int(found[1])
                assert set(re.findall(r"[a-z]+", answer.lower())) & shown(content["words"][number - 1])
            elif found := re.search(r"Which picture shows an? (.+)\?", question):
                number = int(answer.removeprefix("Picture ").removesuffix("."))
                noun = found[1].split()[-1]
                # A picture of the word is no picture of the thing.
                grids = [words for words in content["words"] if SIGN not in words.split(" ")]
                assert content["words"][number - 1] in [words for words in grids if noun in shown(words)]
            elif found := re.fullmatch(r"Which picture says (.+)\?", question):
                number = int(answer.removeprefix("Picture ").removesuffix("."))
                signs = [set(words.split(" ")) for words in content["words"]]
                assert {SIGN, found[1]} <= signs[number - 1] and not {SIGN, found[1]} <= signs[2 - number]
                said_by[signs[2 - number] >= {SIGN}] += 1
            else:
                continue
            numbers[number, len(content["words"])] += 1
    assert numbers.keys() == {(1, 1), (1, 2), (2, 2)}
    assert said_by.keys() == {False, True}
