"""Records of the image tasks, each made from one scene or from one picture of words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.quickstart.ocr_pictures import OcrPicture
from data_pipelines.quickstart.questions import ask
from data_pipelines.quickstart.scenes import Scene
from data_pipelines.quickstart.sentences import caption_segments, located_caption
from data_pipelines.quickstart.stamps import Stamp
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import (
    CaptionContent,
    Content,
    GroundedCaptionContent,
    GroundingContent,
    OcrContent,
    OcrLine,
    RefGroundingContent,
    Segment,
    VqaContent,
)

SCENE_TASKS = ("caption", "vqa", "grounding", "ref_grounding", "grounded_caption")
SOURCE = "quickstart"


class SceneCaptionContent(CaptionContent):
    """A caption with the size of its picture in pixels."""

    width: int
    height: int


class SceneVqaContent(VqaContent):
    """A question with its kind (`questions.ask`) and the size of the picture in pixels."""

    kind: str
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
) -> Record:
    """The record of `task` for one scene.

    Args:
      task: one of SCENE_TASKS.
      rng: chooses the language of a caption, the question, the object referred to.
      scene: the composition.
      jpeg: its encoded image.
      number: ends the id of the record, e.g. "train-000017".
      license: of the picture.
      stamps: all stamps of the data set, for questions about absent objects.
      zh_share: share of captions that are Chinese.
    """
    side = scene.image_HWC.shape[0]
    language = "en"
    content: Content
    if task == "caption":
        language = "zh" if rng.random() < zh_share else "en"
        caption = located_caption(scene.objects, side, language)
        content = SceneCaptionContent(caption=caption, width=side, height=side)
    elif task == "vqa":
        asked = ask(rng, scene, stamps)
        content = SceneVqaContent(
            question=asked.question, answer=asked.answer, kind=asked.kind, width=side, height=side
        )
    elif task == "grounding":
        segments: list[Segment] = [
            {"text": text, "boxes": [list(item.box)] if item else []}
            for text, item in caption_segments(scene.objects, language)
        ]
        content = GroundingContent(segments=segments, width=side, height=side)
    else:
        item = scene.objects[rng.integers(len(scene.objects))]
        name = item.stamp.name_en
        box = list(item.box)
        if task == "ref_grounding":
            content = RefGroundingContent(phrase=name, box=box, width=side, height=side)
        else:
            content = GroundedCaptionContent(box=box, description=name, ref="This", width=side, height=side)
    return Record(
        id=f"{task}-{number}",
        task=task,
        source=SOURCE,
        language=language,
        license=license,
        images=(jpeg,),
        content=content,
    )


def ocr_record(picture: OcrPicture, jpeg: bytes, number: str, license: str) -> Record:
    """The record of a picture of words."""
    side = picture.image_HWC.shape[0]
    lines: list[OcrLine] = [{"text": line.text, "quad": [list(point) for point in line.quad]} for line in picture.lines]
    return Record(
        id=f"ocr-{number}",
        task="ocr",
        source=SOURCE,
        language=picture.language,
        license=license,
        images=(jpeg,),
        content=OcrContent(lines=lines, width=side, height=side),
    )
