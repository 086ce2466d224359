"""Turns a range of scene numbers into the records of all tasks and writes them as one shard per task.

A shard is a pure function of (settings, split, shard number): any worker can write any shard, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from etils import epath

from data_pipelines.quickstart.dialogues import Picture, converse
from data_pipelines.quickstart.ingredients import Ingredients
from data_pipelines.quickstart.ocr_pictures import OcrPicture, render_words
from data_pipelines.quickstart.scenes import Scene, encode_image, make_scene, rng_for, scene_at
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.tasks import SCENE_TASKS, SOURCE, ocr_record, scene_record
from data_pipelines.quickstart.texts import caption_record, sentence_record
from qwenvl_jax.data.readers import record_folder
from qwenvl_jax.data.schema import TASKS, Record

NAME = "quickstart"
_WORDS_IN_DIALOGUES = 0.4  # of the second pictures show words


def shard_count(settings: QuickstartSettings, split: str) -> int:
    """Shards per task of one split."""
    return math.ceil(settings.count(split) / settings.records_per_shard)


def write_shards(
    folder: epath.Path, settings: QuickstartSettings, ingredients: Ingredients, split: str, shard: int
) -> dict[str, record_folder.Shard]:
    """Writes shard number `shard` of `split` of every task under `folder/<task>/`; returns their manifest lines.

    Raises:
      UserError: for a record that is not well formed.
      OSError: if the disk is full or not writable.
    """
    by_task = make_records(settings, ingredients, split, shard)
    count = shard_count(settings, split)
    return {task: record_folder.write_shard(folder / task, NAME, split, shard, count, by_task[task]) for task in TASKS}


def make_records(
    settings: QuickstartSettings, ingredients: Ingredients, split: str, shard: int
) -> dict[str, list[Record]]:
    """The records of one shard of every task.

    Record number i of each scene task shows scene number i: a picture is encoded once and used by all tasks.
    """
    start = shard * settings.records_per_shard
    numbers = range(start, min(start + settings.records_per_shard, settings.count(split)))
    scenes = [scene_at(settings.seed, split, i, ingredients.stamps, ingredients.views, settings.scene) for i in numbers]
    words = [_words(settings, ingredients, split, i) for i in numbers]
    quality = settings.scene.jpeg_quality
    scene_jpegs = [encode_image(scene.image_HWC, quality) for scene in scenes]
    word_jpegs = [encode_image(picture.image_HWC, quality) for picture in words]
    found: dict[str, list[Record]] = {task: [] for task in TASKS}
    for k, i in enumerate(numbers):
        number = f"{split}-{i:06d}"
        for task in SCENE_TASKS:
            found[task].append(
                scene_record(
                    task,
                    rng_for(settings.seed, task, split, i),
                    scenes[k],
                    scene_jpegs[k],
                    number,
                    ingredients.scene_license,
                    ingredients.stamps,
                    settings.zh_share,
                )
            )
        found["ocr"].append(ocr_record(words[k], word_jpegs[k], number, ingredients.ocr_license))
        found["dialogue"].append(_dialogue(settings, ingredients, split, i, k, scenes, scene_jpegs, words, word_jpegs))
    found["text"] = list(_texts(settings, ingredients, split, shard, numbers))
    return found


def _words(settings: QuickstartSettings, ingredients: Ingredients, split: str, number: int) -> OcrPicture:
    rng = rng_for(settings.seed, "ocr", split, number)
    language = "zh" if "zh" in ingredients.lexicons and rng.random() < settings.zh_share else "en"
    return render_words(rng, language, ingredients.lexicons[language], ingredients.views, settings.ocr)


def _dialogue(
    settings: QuickstartSettings,
    ingredients: Ingredients,
    split: str,
    number: int,
    k: int,
    scenes: list[Scene],
    scene_jpegs: list[bytes],
    words: list[OcrPicture],
    word_jpegs: list[bytes],
) -> Record:
    """A dialogue about scene `k` of the shard and another picture of it."""
    rng = rng_for(settings.seed, "dialogue", split, number)
    other = (k + 1 + int(rng.integers(max(1, len(scenes) - 1)))) % len(scenes)
    if rng.random() < _WORDS_IN_DIALOGUES or other == k:
        second = Picture(words[k], word_jpegs[k])
    else:
        second = Picture(scenes[other], scene_jpegs[other])
    language = "zh" if rng.random() < settings.zh_share else "en"
    first = Picture(scenes[k], scene_jpegs[k])
    name = f"{split}-{number:06d}"
    return converse(rng, [first, second], language, name, ingredients.scene_license, SOURCE)


def _texts(
    settings: QuickstartSettings, ingredients: Ingredients, split: str, shard: int, numbers: range
) -> Iterator[Record]:
    """Sentences about scenes of their own; in train also this shard's part of the captions."""
    if split == "train":
        for line in ingredients.captions[shard :: shard_count(settings, split)]:
            yield caption_record(line)
    words = [word for lexicon in ingredients.lexicons.values() for word in lexicon.words]
    for i in numbers:
        rng = rng_for(settings.seed, "text", split, i)
        scene = make_scene(rng, ingredients.stamps, ingredients.views, settings.scene, split)
        yield sentence_record(rng, scene, ingredients.stamps, words, f"{split}-{i:06d}", settings.zh_share)
