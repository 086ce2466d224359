"""Pure text: the captions of all stamps, and sentences about scenes that nobody draws.

It gives a language model of the quickstart's size what a large one knows already: the names of things in both
languages, how captions, answers and lists are worded, and digits as coordinates, so that a frozen decoder can be
taught to see.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.clean.rules import Caption
from data_pipelines.grounding.questions import ask
from data_pipelines.grounding.scenes import Scene
from data_pipelines.grounding.sentences import (
    caption,
    count_sentence,
    ends,
    place_sentence,
    placed_caption,
)
from data_pipelines.grounding.stamps import Stamp
from data_pipelines.grounding.tasks import SOURCE, word_caption
from data_pipelines.grounding.word_pictures import BACKGROUNDS, SIGN, word_picture
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tags import box_to_text, quad_to_text

GENERATED_LICENSE = "CC0-1.0"
_CLEAR_GAP = 0.15
# Most generated texts begin with a picture made of words, of as many cells as the model has image features.
_PICTURE_SHARE = 0.85
_PICTURE_GRID = 4
# Captions, answers, boxes, words with their quads: where a thing begins and ends takes longest to learn.
_READINGS = (0.4, 0.15, 0.4, 0.05)


def caption_record(line: Caption) -> Record:
    """The caption of one stamp as pure text."""
    return Record(
        id=f"text-{line.language}-{line.id}",
        task="text",
        source=f"{line.source}_captions",
        language=line.language,
        license=line.license,
        images=(),
        content={"text": line.text},
    )


def sentence_record(
    rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp], words: Sequence[str], number: str, zh_share: float
) -> Record:
    """One or two generated sentences about `scene`, whose pixels are never used."""
    language = "zh" if rng.random() < zh_share else "en"
    if rng.random() < _PICTURE_SHARE:
        text = _read_picture(rng, scene, stamps, words, language)
    else:
        text = _zh_text(rng, scene) if language == "zh" else _en_text(rng, scene, stamps, words)
    return Record(
        id=f"text-{number}",
        task="text",
        source=f"{SOURCE}_sentences",
        language=language,
        license=GENERATED_LICENSE,
        images=(),
        content={"text": text},
    )


def _read_words(rng: np.random.Generator, words: Sequence[str], side: int) -> str:
    """A word that fills the width of a picture made of words, and what it says."""
    word = words[int(rng.integers(len(words)))]
    left, height = int(rng.integers(side // 20, side // 5)), int(rng.integers(side // 4, side // 2))
    top = int(rng.integers(side // 100, side - height - side // 100))
    box = (left, top, side - left, top + height)
    picture = word_picture([(word, box)], SIGN, side, _PICTURE_GRID)
    if rng.random() < 0.5:
        language = "en" if word.isascii() else "zh"
        name = "English" if language == "en" else "Chinese"
        return f"{picture} Generate the caption in {name}: {word_caption(word, language)}"
    x1, y1, x2, y2 = box
    quad = quad_to_text([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], side, side)
    return f"{picture} OCR with grounding: {word} {quad}"


def _read_picture(
    rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp], words: Sequence[str], language: str
) -> str:
    """A picture made of words and what can be read off it: its caption, an answer or the place of a thing."""
    side = scene.image_HWC.shape[0]
    kind = int(rng.choice(len(_READINGS), p=_READINGS))
    if kind == 3:
        return _read_words(rng, words, side)
    things = [(o.stamp.noun_en.split()[-1], o.box) for o in scene.objects]
    picture = word_picture(things, BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))], side, _PICTURE_GRID)
    if kind == 0:
        name = "English" if language == "en" else "Chinese"
        return f"{picture} Generate the caption in {name}: {placed_caption(scene.objects, side, language)}"
    if kind == 1:
        question = ask(rng, scene, stamps)
        return f"{picture} {question.question} Answer: {question.answer}"
    order = rng.permutation(len(scene.objects))
    items = [scene.objects[i] for i in order]
    return " ".join([picture, *(f"{o.stamp.name('en')} {box_to_text(o.box, side, side)}" for o in items)])


def _en_text(rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp], words: Sequence[str]) -> str:
    objects = scene.objects
    side = scene.image_HWC.shape[0]
    said = caption(objects, "en")
    kind = int(rng.integers(7))
    if kind == 0:
        return f"Generate the caption in English: {placed_caption(objects, side, 'en')}"
    if kind == 1:  # the answer can be read off the sentences before
        question = ask(rng, scene, stamps)
        return f"{_facts(scene, 'en')} {question.question} Answer: {question.answer}"
    if kind == 2:
        return " ".join(f"{o.stamp.name_en}{box_to_text(o.box, side, side)}" for o in objects)
    if kind == 3:
        return _facts(scene, "en")
    if kind == 4:
        item = objects[rng.integers(len(objects))]
        return f"{said} This {box_to_text(item.box, side, side)} is {item.stamp.name_en}"
    if kind == 5 and words:
        picked = [words[i] for i in rng.choice(len(words), size=min(len(words), 3), replace=False)]
        return f"OCR: {' '.join(picked)}"
    return said


def _zh_text(rng: np.random.Generator, scene: Scene) -> str:
    said = caption(scene.objects, "zh")
    kind = int(rng.integers(4))
    if kind == 0:
        return f"Generate the caption in Chinese: {placed_caption(scene.objects, scene.image_HWC.shape[0], 'zh')}"
    if kind == 1:
        return _facts(scene, "zh")
    if kind == 2:
        return "。".join(f"{o.stamp.name_zh}：{o.stamp.name_en}" for o in scene.objects)
    return said


def _facts(scene: Scene, language: str) -> str:
    """The number, the names and the clear places, enough to answer any question about the scene."""
    sentences = [count_sentence(scene.objects, language)]
    gap = _CLEAR_GAP * scene.image_HWC.shape[0]
    sentences += [place_sentence(item, side, language) for side, item in ends(scene.objects, gap).items()]
    return (" " if language == "en" else "").join(sentences)
