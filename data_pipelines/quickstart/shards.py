"""Turns a range of scene numbers into the records of all tasks and writes them as one shard per task.

A shard is a pure function of (settings, split, shard number): any worker can write any shard, in any order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from data_pipelines.quickstart.dialogues import Picture, converse
from data_pipelines.quickstart.ingredients import Ingredients
from data_pipelines.quickstart.maps import MAP, map_record
from data_pipelines.quickstart.ocr_pictures import OcrPicture, render_words
from data_pipelines.quickstart.scenes import encode_image, make_scene, rng_for, scene_at
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.tasks import SCENE_TASKS, SOURCE, ocr_record, scene_record
from data_pipelines.quickstart.texts import caption_record, sentence_record
from qwenvl_jax.data.record_writer import Shard, write_shard
from qwenvl_jax.data.schema import TRAINING_TASKS, Record

NAME = "quickstart"
_WORDS_IN_DIALOGUES = 0.5  # share of second pictures that show words
_BOTH_OF_WORDS = 0.4  # share of these pairs whose first picture shows words, too


# One folder of records per task, and one for the maps.
FOLDERS = (*TRAINING_TASKS, MAP)


def shard_count(settings: QuickstartSettings, split: str) -> int:
    """Shards per task of one split."""
    return math.ceil(settings.count(split) / settings.records_per_shard)


def write_shards(
    folder: epath.Path, settings: QuickstartSettings, ingredients: Ingredients, split: str, shard: int
) -> dict[str, Shard]:
    """Writes shard number `shard` of `split` of every task under `folder/<task>/`; returns their manifest lines.

    Raises:
      UserError: if a record is not well formed.
      OSError: if the disk is full or not writable.
    """
    by_task = make_records(settings, ingredients, split, shard)
    count = shard_count(settings, split)
    return {task: write_shard(folder / task, NAME, split, shard, count, by_task[task]) for task in FOLDERS}


def make_records(
    settings: QuickstartSettings, ingredients: Ingredients, split: str, shard: int
) -> dict[str, list[Record]]:
    """The records of one shard of every task.

    Record number i of each scene task shows scene number i. A picture is encoded once and used by all tasks.
    """
    start = shard * settings.records_per_shard
    numbers = range(start, min(start + settings.records_per_shard, settings.count(split)))
    quality = settings.scene.jpeg_quality
    scenes = [scene_at(settings.seed, split, i, ingredients.stamps, ingredients.views, settings.scene) for i in numbers]
    words = [_words(settings, ingredients, split, i) for i in numbers]
    scene_pictures, word_pictures = (
        [Picture(picture, encode_image(picture.image_HWC, quality), license) for picture in pictures]
        for pictures, license in ((scenes, ingredients.scene_license), (words, ingredients.ocr_license))
    )
    records: dict[str, list[Record]] = {task: [] for task in FOLDERS}
    for position, number in enumerate(numbers):
        name = f"{split}-{number:06d}"
        picture = scene_pictures[position]
        for task in SCENE_TASKS:
            rng = rng_for(settings.seed, task, split, number)
            record = scene_record(
                task,
                rng,
                scenes[position],
                picture.jpeg,
                name,
                ingredients.scene_license,
                ingredients.stamps,
                settings.zh_share,
                settings.samples_per_picture if split == "train" else 1,
            )
            records[task].append(record)
        jpeg = word_pictures[position].jpeg
        records["ocr"].append(ocr_record(words[position], jpeg, name, ingredients.ocr_license))
        # Every other map is one of words, from which the features learn to read.
        mapped, shown = (words, word_pictures) if number % 2 else (scenes, scene_pictures)
        records[MAP].append(map_record(mapped[position], shown[position].jpeg, name, shown[position].license, SOURCE))
        rng = rng_for(settings.seed, "dialogue", split, number)
        pictures = _two_pictures(rng, position, scene_pictures, word_pictures)
        language = "zh" if rng.random() < settings.zh_share else "en"
        records["dialogue"].append(converse(rng, pictures, language, name, SOURCE))
    records["text"] = list(_texts(settings, ingredients, split, shard, numbers))
    return records


def _words(settings: QuickstartSettings, ingredients: Ingredients, split: str, number: int) -> OcrPicture:
    """The picture of words with this number."""
    rng = rng_for(settings.seed, "ocr", split, number)
    language = "zh" if "zh" in ingredients.lexicons and rng.random() < settings.zh_share else "en"
    return render_words(rng, language, ingredients.lexicons[language], ingredients.views, settings.ocr)


def _two_pictures(
    rng: np.random.Generator, position: int, scenes: Sequence[Picture], words: Sequence[Picture]
) -> tuple[Picture, Picture]:
    """Two pictures of the shard for the dialogue at `position`: of scenes, of a scene and words, or both of words."""
    other = (position + 1 + int(rng.integers(max(1, len(scenes) - 1)))) % len(scenes)
    if rng.random() < _WORDS_IN_DIALOGUES or other == position:
        both = rng.random() < _BOTH_OF_WORDS and other != position
        return (words[other] if both else scenes[position]), words[position]
    return scenes[position], scenes[other]


def _texts(
    settings: QuickstartSettings, ingredients: Ingredients, split: str, shard: int, numbers: range
) -> Iterator[Record]:
    """Sentences about scenes that no image record shows; in train also this shard's part of the captions."""
    if split == "train":
        for line in ingredients.captions[shard :: shard_count(settings, split)]:
            yield caption_record(line)
    words = [word for lexicon in ingredients.lexicons.values() for word in lexicon.words]
    texts = settings.texts_per_scene if split == "train" else 1
    for i in range(numbers.start * texts, numbers.stop * texts):
        rng = rng_for(settings.seed, "text", split, i)
        draw = functools.partial(make_scene, rng, ingredients.stamps, ingredients.views, settings.scene, split)
        yield sentence_record(rng, draw, ingredients.stamps, words, f"{split}-{i:06d}", settings.zh_share)
