"""Recipes of the annotated corpora: questions, regions, grounded captions (paper, A.2 and A.3).

No pair is dropped for its contents, only if its picture or boxes cannot be used.
"""

from __future__ import annotations

from data_pipelines.clean.grounding import boxes_in_picture, flat_spans, spans_in_text
from data_pipelines.clean.image import open_pictures
from data_pipelines.clean.rule import Rule, rule

_QUESTIONS = (
    *("ai2d", "chartqa", "docvqa", "dvqa", "gqa", "infovqa", "ocr_vqa", "okvqa"),
    *("st_vqa", "textvqa", "vgqa", "vizwiz", "vqav2"),
)
_PHRASES = ("kgeography", "refcoco", "refcoco_plus", "refcocog", "visual_genome")

_OPEN = rule(open_pictures, decode=True, frames="first")
_BOXES = rule(boxes_in_picture, overhang=0.05)

RECIPES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(_QUESTIONS, (_OPEN,)),
    **dict.fromkeys(_PHRASES, (_OPEN, _BOXES)),
    # The pictures of the web are too many to decode every one.
    "grit": (rule(spans_in_text), rule(open_pictures), _BOXES, rule(flat_spans, choose="most_boxes")),
}
