"""Pure text: the captions of all stamps, and sentences about scenes that are never drawn.

A large language model already knows the names of things in both languages, the wording of captions, answers and lists,
and digits as coordinates. A model of the quickstart's size learns them here, so that stage 1 can freeze its decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.quickstart.captions import Caption
from data_pipelines.quickstart.in_words import sample_in_words
from data_pipelines.quickstart.questions import ask
from data_pipelines.quickstart.scenes import Scene
from data_pipelines.quickstart.sentences import (
    CLEAR_GAP,
    caption,
    count_sentence,
    ends,
    located_caption,
    location_sentence,
)
from data_pipelines.quickstart.stamps import Stamp
from data_pipelines.quickstart.tasks import SOURCE
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tags import box_to_text
from qwenvl_jax.data.tasks import Content, TextContent

GENERATED_LICENSE = "CC0-1.0"
# Most generated texts are samples of the image tasks over pictures made of words.
_PICTURE_SHARE = 0.9


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
    rng: np.random.Generator,
    draw: Callable[[], Scene],
    stamps: Sequence[Stamp],
    words: Sequence[str],
    number: str,
    zh_share: float,
) -> Record:
    """A sample of an image task over a picture made of words, or one or two sentences about a scene.

    Args:
      rng: consumed; equal states give equal records.
      draw: gives another scene at every call; its pixels are never used.
      stamps: all that scenes may show.
      words: all that a picture of words may show, in both languages.
      number: ends the id of the record, e.g. "train-000017".
      zh_share: share of Chinese.
    """
    scene = draw()
    language = "zh" if rng.random() < zh_share else "en"
    content: Content
    if rng.random() < _PICTURE_SHARE:
        language, content = sample_in_words(rng, scene, draw, stamps, words, zh_share)
    else:
        text = _zh_text(rng, scene) if language == "zh" else _en_text(rng, scene, stamps, words)
        content = TextContent(text=text)
    return Record(
        id=f"text-{number}",
        task="text",
        source=f"{SOURCE}_sentences",
        language=language,
        license=GENERATED_LICENSE,
        images=(),
        content=content,
    )


def _en_text(rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp], words: Sequence[str]) -> str:
    objects = scene.objects
    side = scene.image_HWC.shape[0]
    sentence = caption(objects, "en")
    kind = int(rng.integers(7))
    if kind == 0:
        return f"Generate the caption in English: {located_caption(objects, side, 'en')}"
    if kind == 1:  # the sentences before contain the answer
        question = ask(rng, scene, stamps)
        return f"{_facts(scene, 'en')} {question.question} Answer: {question.answer}"
    if kind == 2:
        return " ".join(f"{o.stamp.name_en}{box_to_text(o.box, side, side)}" for o in objects)
    if kind == 3:
        return _facts(scene, "en")
    if kind == 4:
        item = objects[rng.integers(len(objects))]
        return f"{sentence} This {box_to_text(item.box, side, side)} is {item.stamp.name_en}"
    if kind == 5 and words:
        picked = [words[i] for i in rng.choice(len(words), size=min(len(words), 3), replace=False)]
        return f"OCR: {' '.join(picked)}"
    return sentence


def _zh_text(rng: np.random.Generator, scene: Scene) -> str:
    sentence = caption(scene.objects, "zh")
    kind = int(rng.integers(4))
    if kind == 0:
        return f"Generate the caption in Chinese: {located_caption(scene.objects, scene.image_HWC.shape[0], 'zh')}"
    if kind == 1:
        return _facts(scene, "zh")
    if kind == 2:
        return "。".join(f"{o.stamp.name_zh}：{o.stamp.name_en}" for o in scene.objects)
    return sentence


def _facts(scene: Scene, language: str) -> str:
    """The number, the names and the clear locations of the objects, enough to answer any question about the scene."""
    sentences = [count_sentence(scene.objects, language)]
    gap = CLEAR_GAP * scene.image_HWC.shape[0]
    sentences += [location_sentence(item, side, language) for side, item in ends(scene.objects, gap).items()]
    return (" " if language == "en" else "").join(sentences)
