"""Answers agree with the boxes, by other means than those that made the answers."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest

from data_pipelines.quickstart.ingredients import Ingredients
from data_pipelines.quickstart.questions import ask
from data_pipelines.quickstart.scenes import Scene, SceneObject, scene_at
from data_pipelines.quickstart.sentences import caption, caption_segments, count_sentence, enumeration
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.stamps import Stamp


def item(noun: str, noun_zh: str, x: int, y: int) -> SceneObject:
    stamp = Stamp(noun, "animals", noun, f"a {noun}", noun_zh, f"一只{noun_zh}", "CC0-1.0", "test", {})
    return SceneObject(stamp, (x - 10, y - 10, x + 10, y + 10))


FOX = item("fox", "狐狸", 20, 50)
PIG = item("pig", "猪", 50, 20)
COW = item("cow", "母牛", 80, 70)


@pytest.mark.parametrize(
    ("objects", "english", "chinese"),
    [
        ([FOX], "A fox.", "一只狐狸。"),
        ([FOX, COW], "A fox and a cow.", "一只狐狸和一只母牛。"),
        ([item("fox", "狐狸", 40, 80), item("pig", "猪", 50, 20)], "A pig above a fox.", "一只猪在一只狐狸的上面。"),
        ([FOX, PIG, COW], "A fox, a pig and a cow.", "一只狐狸、一只猪和一只母牛。"),
    ],
)
def test_captions(objects: list[SceneObject], english: str, chinese: str) -> None:
    assert caption(objects, "en") == english
    assert caption(objects, "zh") == chinese
    for language in ("en", "zh"):
        segments = caption_segments(objects, language)
        assert "".join(text for text, _ in segments) == caption(objects, language)
        named = {o.stamp.id: text for text, o in segments if o}
        assert {k: v.lower() for k, v in named.items()} == {o.stamp.id: o.stamp.name(language) for o in objects}


def test_lists_and_counts() -> None:
    assert enumeration(["a fox", "a pig", "a cow"], "en") == "a fox, a pig and a cow"
    assert count_sentence([FOX], "en") == "There is 1 object: a fox."
    assert count_sentence([FOX, PIG], "zh") == "图里有两样东西：一只狐狸和一只猪。"


def true_answer(question: str, scene: Scene) -> str:
    """The answer according to the boxes alone, with a parser for every pattern of a question."""
    x = {o.stamp.noun_en: (o.box[0] + o.box[2]) / 2 for o in scene.objects}
    y = {o.stamp.noun_en: (o.box[1] + o.box[3]) / 2 for o in scene.objects}
    beyond = {
        "to the left of": lambda a, b: x[a] < x[b],
        "to the right of": lambda a, b: x[a] > x[b],
        "above": lambda a, b: y[a] < y[b],
        "below": lambda a, b: y[a] > y[b],
    }
    relation = "(to the left of|to the right of|above|below)"
    if question == "What is in the picture?":
        (answer,) = x
        return answer
    if question == "How many objects are there?":
        return str(len(x))
    if match := re.fullmatch(r"Is there an? (.+)\?", question):
        return "yes" if match[1] in x else "no"
    if match := re.fullmatch(r"What is (?:on|at) the (left|right|top|bottom)\?", question):
        values = x if match[1] in ("left", "right") else y
        return (min if match[1] in ("left", "top") else max)(values, key=values.__getitem__)
    if match := re.fullmatch(r"What is next to the (.+)\?", question):
        (answer,) = set(x) - {match[1]}
        return answer
    if match := re.fullmatch(r"Is the (.+) on the left or on the right\?", question):
        return "left" if x[match[1]] == min(x.values()) else "right"
    if match := re.fullmatch(rf"Is the (.+) {relation} the (.+)\?", question):
        return "yes" if beyond[match[2]](match[1], match[3]) else "no"
    if match := re.fullmatch(rf"What is the (.+) {relation}\?", question):
        candidates = [b for b in x if b != match[1] and beyond[match[2]](match[1], b)]
    elif match := re.fullmatch(rf"What is {relation} the (.+)\?", question):
        candidates = [b for b in x if b != match[2] and beyond[match[1]](b, match[2])]
    else:
        raise AssertionError(question)
    # objects less than the clear gap apart count for neither side
    axis = x if "left" in question or "right" in question else y
    anchor = match[1] if match[1] in x else match[2]
    (answer,) = [b for b in candidates if abs(axis[b] - axis[anchor]) >= 15]
    return answer


def test_answers_are_true_and_balanced(ingredients: Ingredients, settings: QuickstartSettings) -> None:
    kinds: collections.Counter[str] = collections.Counter()
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for index in range(1500):
        scene = scene_at(3, "train", index, ingredients.stamps, ingredients.views, settings.scene)
        made = ask(np.random.default_rng(index), scene, ingredients.stamps)
        assert made.answer == true_answer(made.question, scene), made
        kinds[made.kind] += 1
        answers[made.kind][made.answer] += 1
    assert set(kinds) == {
        *("what", "what_end", "how_many", "is_there", "what_beside", "what_of", "next_to", "is_beside", "which_half")
    }
    assert min(kinds.values()) >= 40
    for kind in ("is_there", "is_beside", "which_half"):
        counts = list(answers[kind].values())
        assert len(counts) == 2 and min(counts) / max(counts) > 0.7
