"""Records of the image tasks, each made from one scene or from one picture of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from data_pipelines.quickstart.ocr_pictures import OcrPicture
from data_pipelines.quickstart.questions import Question, ask
from data_pipelines.quickstart.scenes import Scene
from data_pipelines.quickstart.sentences import caption_segments, located_caption
from data_pipelines.quickstart.stamps import Stamp
from qwenvl_jax.data.annotations import ANNOTATIONS
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import (
    CaptionContent,
    Content,
    GroundingContent,
    OcrContent,
    OcrLine,
    Segment,
)

SCENE_TASKS = ("caption", "vqa", "grounding", "ref_grounding", "grounded_caption")
SOURCE = "quickstart"


class SceneCaptionContent(CaptionContent):
    """A caption with the size of its picture in pixels."""

    width: int
    height: int


def scene_record(
    task: str,
    rng: np.random.Generator,
    scene: Scene,
    jpeg: bytes,
    number: str,
    license: str,
    stamps: Sequence[Stamp],
    zh_share: float,
    most_samples: int = 1,
) -> Record:
    """The record of `task` for one scene.

    Questions and expressions have several samples per picture if `most_samples` allows: the input encodes the picture
    once for all of them.

    Args:
      task: one of SCENE_TASKS.
      rng: chooses the language of a caption, the question, the object referred to.
      scene: the composition.
      jpeg: its encoded image.
      number: ends the id of the record, e.g. "train-000017".
      license: of the picture.
      stamps: all stamps of the data set, for questions about absent objects.
      zh_share: share of captions that are Chinese.
      most_samples: of the record.
    """
    side = scene.image_HWC.shape[0]
    language = "en"
    content: Content
    if task == "caption":
        language = "zh" if rng.random() < zh_share else "en"
        caption = located_caption(scene.objects, side, language)
        content = SceneCaptionContent(caption=caption, width=side, height=side)
    elif task == "grounding":
        segments: list[Segment] = [
            {"text": text, "boxes": [list(item.box)] if item else []}
            for text, item in caption_segments(scene.objects, language)
        ]
        content = GroundingContent(segments=segments, width=side, height=side)
    else:
        content = _together(_samples(task, rng, scene, stamps, most_samples), side)
    return Record(
        id=f"{task}-{number}",
        task=task,
        source=SOURCE,
        language=language,
        license=license,
        images=(jpeg,),
        content=content,
    )


def _samples(
    task: str, rng: np.random.Generator, scene: Scene, stamps: Sequence[Stamp], most: int
) -> list[dict[str, Any]]:
    """Different questions about a scene, or expressions for its objects in random order, without the picture's size."""
    if task == "vqa":
        asked = {question.question: question for question in (ask(rng, scene, stamps) for _ in range(most))}
        return [_asked(question) for question in asked.values()]
    objects = [scene.objects[i] for i in rng.permutation(len(scene.objects))][:most]
    if task == "ref_grounding":
        return [{"phrase": item.stamp.name_en, "box": list(item.box)} for item in objects]
    return [{"box": list(item.box), "description": item.stamp.name_en, "ref": "This"} for item in objects]


def _asked(question: Question) -> dict[str, Any]:
    return {"question": question.question, "answer": question.answer, "kind": question.kind}


def question_content(question: Question, side: int) -> Content:
    """One question about a square picture of `side` pixels."""
    return _together([_asked(question)], side)


def _together(samples: list[dict[str, Any]], side: int) -> Content:
    """The content of one sample, or of several under `annotations`."""
    content = samples[0] if len(samples) == 1 else {ANNOTATIONS: samples}
    return cast(Content, {**content, "width": side, "height": side})


def ocr_record(picture: OcrPicture, jpeg: bytes, number: str, license: str) -> Record:
    """The record of a picture of words."""
    return Record(
        id=f"ocr-{number}",
        task="ocr",
        source=SOURCE,
        language=picture.language,
        license=license,
        images=(jpeg,),
        content=ocr_content(picture),
    )


def ocr_content(picture: OcrPicture) -> OcrContent:
    """The lines of a picture of words."""
    side = picture.image_HWC.shape[0]
    lines: list[OcrLine] = [{"text": line.text, "quad": [list(point) for point in line.quad]} for line in picture.lines]
    return OcrContent(lines=lines, width=side, height=side)
