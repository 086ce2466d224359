"""The first and the last typed value of the input pipeline: Record -> Example -> Batch.

A `Record` is one sample as a file stores it, an `Example` (`data.examples`) is one tokenised sample, and a `Batch` is
the input of the training step. Numpy only: nothing here knows JAX, a tokenizer or a file format.

Shape suffixes: A microbatches (gradient accumulation), B rows, L tokens, I images, H/W pixels, Q queries per image.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

# The seven tasks of the multi-task stage (paper, Table 3 and Box B.1) and the dialogues of stage 3 (B.2).
TASKS = ("caption", "vqa", "grounding", "ref_grounding", "grounded_caption", "ocr", "text", "dialogue")


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample as stored in a record file, before any tokenisation.

    `content` depends on `task`. Boxes are `[x1, y1, x2, y2]` and quads `[[x, y] * 4]` (clockwise from the top
    left), both in pixels of the image as stored, whose size is `content["width"]`, `content["height"]`:

    caption           {"caption": str}
    vqa               {"question": str, "answer": str}; evaluation sets may add "answers": [str]
    grounding         {"segments": [{"text": str, "boxes": [box]}]}: a caption cut into pieces; pieces with
                      boxes become <ref>..</ref><box>..</box>
    ref_grounding     {"phrase": str, "box": box}
    grounded_caption  {"box": box, "description": str, "ref": str}
    ocr               {"lines": [{"text": str, "quad": quad}]}
    text              {"text": str}, or a sample of another task whose picture is made of words:
                      {"task": str, "words": str, and that task's content}; for decoders that cannot see yet
    dialogue          {"system": str, "turns": [{"role": "user" | "assistant", "parts": [part]}]} with
                      part = {"text": str} | {"image": index into images} | {"ref": str, "boxes": [box], "image": index}
                      and "sizes": [[width, height]] per image. {"image": index, "numbered": false} stands without
                      "Picture n: " before it and the line break after it. A place may lack "ref" or have "quads"
                      for "boxes". {"tag": "box", "text": str} is a place that a user only speaks of, as in
                      "Answer as <box>(x1,y1),(x2,y2)</box>"; tags "ref", "box" and "quad".
    """

    id: str
    task: str
    source: str
    language: str
    license: str
    images: tuple[bytes, ...]
    content: dict[str, Any]


class Batch(NamedTuple):
    """One batch, static in shape: A microbatches of B rows of L tokens, with I images of H x W pixels each.

    The first six are [A, B, L], `images` is [A, I, H, W, 3]. Within the step, a microbatch is a `Batch` without axis A.

    Attributes:
      tokens: int32 ids; 0 in padding.
      targets: int32, the id that follows each place within its own sample; 0 where there is none.
      loss_mask: float32, 1 where `targets` is supervised.
      segment_ids: int32, 1.. numbers the samples of a row, 0 is padding.
      positions: int32, restarts at 0 with every sample.
      image_slot: int32 into the features of the row's image group, -1 for text. Rows and images are cut into
        image groups (`config.data.image_groups`); feature q of the group's image i has the slot i * Q + q.
      images: uint8 pixels, zero where the budget is not used.
    """

    tokens: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    image_slot: np.ndarray
    images: np.ndarray
