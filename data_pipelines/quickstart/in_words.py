"""Samples of the image tasks over pictures made of words, for a decoder that cannot see yet.

    <img> sand sand frog frog sand frog frog frog sand ..</img>Is there a frog? Answer: yes

Dialogues show one or two such pictures, so that the decoder learns which of them a question means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from data_pipelines.quickstart.dialogues import Picture, converse
from data_pipelines.quickstart.maps import MAP, map_content, placed
from data_pipelines.quickstart.ocr_pictures import Line, OcrPicture
from data_pipelines.quickstart.questions import ask_presence
from data_pipelines.quickstart.scenes import Scene
from data_pipelines.quickstart.stamps import Stamp
from data_pipelines.quickstart.tasks import SOURCE, ocr_content, question_content, scene_record
from data_pipelines.quickstart.word_pictures import BACKGROUNDS, PICTURE_GRID, SIGN, word_picture
from qwenvl_jax.data.tasks import Content

_MAP_OF_A_WORD = "map of a word"
_PRESENCE = "presence"
_SHARES = {
    "caption": 0.07,
    # An answer is one word, so questions need many samples to weigh as much as boxes, and yes or no even more.
    "vqa": 0.18,
    _PRESENCE: 0.09,
    MAP: 0.06,
    "grounding": 0.1,
    "ref_grounding": 0.15,
    "grounded_caption": 0.02,
    "ocr": 0.04,
    _MAP_OF_A_WORD: 0.03,
    "dialogue": 0.26,
}
_WORDS_IN_DIALOGUES = 0.5  # share of second pictures that show a word
_BOTH_OF_WORDS = 0.5  # share of these pairs whose first picture shows a word, too


def sample_in_words(
    rng: np.random.Generator,
    scene: Scene,
    draw: Callable[[], Scene],
    stamps: Sequence[Stamp],
    words: Sequence[str],
    zh_share: float,
) -> tuple[str, Content]:
    """(language, content) of a text record that has the form of an image task.

    Args:
      rng: consumed; equal states give equal samples.
      scene: that the picture shows, unless it shows a word.
      draw: gives another scene at every call.
      stamps: all that scenes may show.
      words: all that a picture of words may show, in both languages.
      zh_share: share of Chinese.
    """
    side = scene.image_HWC.shape[0]
    task = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
    if task == "dialogue":
        first: Scene | OcrPicture = scene
        second: Scene | OcrPicture = draw()
        if rng.random() < _WORDS_IN_DIALOGUES:
            second = _written(rng, words, side)
            first = _written(rng, words, side) if rng.random() < _BOTH_OF_WORDS else scene
        language = "zh" if rng.random() < zh_share else "en"
        return language, _dialogue(rng, [first, second], language)
    if task in ("ocr", _MAP_OF_A_WORD):
        picture = _written(rng, words, side)
        shown = _in_words(rng, picture)
        if task == "ocr":
            return picture.language, _over(task, shown, ocr_content(picture))
        return "en", _over("vqa", shown, map_content(placed(picture), side))
    shown = _in_words(rng, scene)
    if task == MAP:
        return "en", _over("vqa", shown, map_content(placed(scene), side))
    if task == _PRESENCE:
        return "en", _over("vqa", shown, question_content(ask_presence(rng, scene, stamps), side))
    sample = scene_record(task, rng, scene, b"", "", "", stamps, zh_share)
    return sample.language, _over(task, shown, sample.content)


def _over(task: str, words: str | list[str], content: Content) -> Content:
    """The content of a text record: a sample of `task` over pictures made of words."""
    return cast(Content, {"task": task, "words": words, **content})


def _dialogue(rng: np.random.Generator, pictures: Sequence[Scene | OcrPicture], language: str) -> Content:
    """A dialogue about the first of two pictures or about both; the words take the place of the encoded images."""
    shown = [Picture(picture, _in_words(rng, picture).encode()) for picture in pictures]
    dialogue = converse(rng, shown, language, "", SOURCE)
    return _over("dialogue", [words.decode() for words in dialogue.images], dialogue.content)


def _written(rng: np.random.Generator, words: Sequence[str], side: int) -> OcrPicture:
    """A picture of one word at a random place, which nobody draws."""
    word = words[int(rng.integers(len(words)))]
    x1 = int(rng.integers(1, side // 5))
    height = int(rng.integers(side // 4, side // 2))
    y1 = int(rng.integers(1, side - height))
    x2, y2 = side - x1, y1 + height
    line = Line(word, ((x1, y1), (x2, y1), (x2, y2), (x1, y2)))
    return OcrPicture(np.zeros((side, side, 3), np.uint8), (line,), "en" if word.isascii() else "zh")


def _in_words(rng: np.random.Generator, picture: Scene | OcrPicture) -> str:
    """The picture as a grid of words, on a random background."""
    surface = SIGN if isinstance(picture, OcrPicture) else BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    return word_picture(placed(picture), surface, picture.image_HWC.shape[0], PICTURE_GRID)
