"""Pure text: the captions of all stamps, and sentences about scenes that are never drawn.

A large language model already knows the names of things in both languages, the wording of captions, answers and lists,
and digits as coordinates. A model of the quickstart's size learns them here, so that stage 1 can freeze its decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from data_pipelines.quickstart.captions import Caption
from data_pipelines.quickstart.maps import MAP, map_content, placed
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
from data_pipelines.quickstart.tasks import SOURCE, scene_record
from data_pipelines.quickstart.word_pictures import BACKGROUNDS, PICTURE_GRID, SIGN, word_picture
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tags import box_to_text
from qwenvl_jax.data.tasks import Content, OcrContent, OcrLine, TextContent

GENERATED_LICENSE = "CC0-1.0"
# Most generated texts are samples of the image tasks over pictures made of words.
_PICTURE_SHARE = 0.9
_MAP_OF_A_WORD = "map of a word"
_TASK_SHARES = {
    "caption": 0.15,
    "vqa": 0.1,
    MAP: 0.1,
    "grounding": 0.25,
    "ref_grounding": 0.25,
    "grounded_caption": 0.04,
    "ocr": 0.06,
    _MAP_OF_A_WORD: 0.05,
}


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
    """A sample of an image task over a picture made of words, or one or two sentences about `scene`.

    The pixels of the scene are never used.
    """
    language = "zh" if rng.random() < zh_share else "en"
    if rng.random() < _PICTURE_SHARE:
        language, content = _in_words(rng, scene, stamps, words, zh_share)
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


def _in_words(
    rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp], words: Sequence[str], zh_share: float
) -> tuple[str, Content]:
    """(language, content) of a text record that has the form of an image task."""
    side = scene.image_HWC.shape[0]
    task = str(rng.choice(list(_TASK_SHARES), p=list(_TASK_SHARES.values())))
    if task in ("ocr", _MAP_OF_A_WORD):
        word = words[int(rng.integers(len(words)))]
        x1 = int(rng.integers(1, side // 5))
        height = int(rng.integers(side // 4, side // 2))
        y1 = int(rng.integers(1, side - height))
        x2 = side - x1
        y2 = y1 + height
        drawn = [(word, (x1, y1, x2, y2))]
        picture = word_picture(drawn, SIGN, side, PICTURE_GRID)
        if task == _MAP_OF_A_WORD:
            return "en", _with_words("vqa", picture, map_content(drawn, side))
        lines: list[OcrLine] = [{"text": word, "quad": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]}]
        ocr = OcrContent(lines=lines, width=side, height=side)
        return "en" if word.isascii() else "zh", _with_words(task, picture, ocr)
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    picture = word_picture(placed(scene), background, side, PICTURE_GRID)
    if task == MAP:
        return "en", _with_words("vqa", picture, map_content(placed(scene), side))
    sample = scene_record(task, rng, scene, b"", "", GENERATED_LICENSE, stamps, zh_share)
    return sample.language, _with_words(task, picture, sample.content)


def _with_words(task: str, picture: str, content: Content) -> Content:
    """The content of a text record: a sample of `task` over a picture made of words."""
    return cast(Content, {"task": task, "words": picture, **content})


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
