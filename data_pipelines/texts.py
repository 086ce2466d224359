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
)
from data_pipelines.grounding.stamps import Stamp
from data_pipelines.grounding.tasks import SOURCE
from data_pipelines.grounding.word_pictures import word_picture
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tags import box_to_text

GENERATED_LICENSE = "CC0-1.0"
_CLEAR_GAP = 0.15
# Most generated texts begin with a picture made of words, of as many cells as the model has image features.
_PICTURE_SHARE = 0.7
_PICTURE_GRID = 4


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
        text = _read_picture(rng, scene, stamps, language)
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


def _read_picture(rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp], language: str) -> str:
    """A picture made of words and what can be read off it: its caption, an answer or the place of a thing."""
    side = scene.image_HWC.shape[0]
    picture = word_picture(rng, scene.objects, side, _PICTURE_GRID)
    kind = int(rng.integers(3))
    if kind == 0:
        name = "English" if language == "en" else "Chinese"
        return f"{picture} Generate the caption in {name}: {caption(scene.objects, language)}"
    if kind == 1:
        question = ask(rng, scene, stamps)
        return f"{picture} {question.question} Answer: {question.answer}"
    item = scene.objects[rng.integers(len(scene.objects))]
    return f"{picture} {item.stamp.name(language)} {box_to_text(item.box, side, side)}"


def _en_text(rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp], words: Sequence[str]) -> str:
    objects = scene.objects
    side = scene.image_HWC.shape[0]
    said = caption(objects, "en")
    kind = int(rng.integers(7))
    if kind == 0:
        return f"Generate the caption in English: {said}"
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
        return f"Generate the caption in Chinese: {said}"
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
