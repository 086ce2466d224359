"""The composer of every record task: a function from a cleaned pair to the record of that task."""

from __future__ import annotations

from collections.abc import Callable

from data_pipelines.compose.caption import caption
from data_pipelines.compose.dialogue import dialogue
from data_pipelines.compose.evaluation import evaluation
from data_pipelines.compose.grounding import grounded_caption, grounding, ref_grounding
from data_pipelines.compose.ocr import ocr
from data_pipelines.compose.text import text
from data_pipelines.compose.vqa import vqa
from data_pipelines.pair import RawPair
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.schema import Record

# (pair) -> its record of one task, which holds the picture once and all its annotations of that task; None if the pair
# has nothing for the task. The pair's pictures have their bytes and their true sizes. Raises UserError for a pair from
# which no well-formed record can be made.
Composer = Callable[[RawPair], Record | None]

COMPOSERS: dict[str, Composer] = {
    "caption": caption,
    "vqa": vqa,
    "grounding": grounding,
    "ref_grounding": ref_grounding,
    "grounded_caption": grounded_caption,
    "ocr": ocr,
    "text": text,
    "dialogue": dialogue,
    EVALUATION: evaluation,
}
