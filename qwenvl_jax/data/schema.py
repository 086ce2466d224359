"""The first and the last typed value of the input pipeline: Record -> Example -> Batch.

A `Record` is one sample, or several of one image, as a file stores it. An `Example` (`data.examples`) is one tokenised
sample, and a `Batch` is the input of the training step. Numpy only: nothing here knows JAX, a tokenizer or a file
format.

Shape suffixes: A microbatches (gradient accumulation), B rows, L tokens, I images, H/W pixels, Q queries per image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from qwenvl_jax.data.annotations import ANNOTATIONS, check_one_size, contents_of
from qwenvl_jax.data.dialogues import THOUSANDTHS
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.tasks import RECORD_TASKS, Content, check_content
from qwenvl_jax.runtime.errors import UserError, nearest

TASKS = tuple(RECORD_TASKS)
TRAINING_TASKS = tuple(name for name, task in RECORD_TASKS.items() if task.teaches)

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Record:
    """One entry of a record file, before any tokenisation: one sample, or several of one image (`samples_of`).

    Attributes:
      id: unique within its source.
      task: one of TASKS.
      source: the corpus it came from.
      language: "en" or "zh".
      license: of text and images.
      images: encoded.
      content: the TypedDict of the task, or several that share keys (`data.tasks`).
    """

    id: str
    task: str
    source: str
    language: str
    license: str
    images: tuple[bytes, ...]
    content: Content


def content_of(record: Record, kind: type[C]) -> C:
    """The content of a record whose task has contents of this kind, such as `tasks.VqaContent`."""
    return cast(C, record.content)


def samples_of(record: Record) -> tuple[Record, ...]:
    """The samples of a checked record, each as a record with the same image: itself, or one per annotation."""
    if ANNOTATIONS not in record.content:
        return (record,)
    return tuple(
        dataclasses.replace(record, id=f"{record.id}[{number}]", content=cast(Content, content))
        for number, content in enumerate(contents_of(cast(Mapping[str, Any], record.content)))
    )


def sample_count(record: Record) -> int:
    """How many samples a checked record has; of a benchmark, how many questions."""
    content: Mapping[str, Any] = record.content
    if record.task == EVALUATION:
        return len(content["questions"])
    return len(content.get(ANNOTATIONS, (None,)))


def check_record(record: Record) -> Record:
    """Checks task, texts, images and content of a record, and that there is something to learn from it.

    Raises:
      UserError: naming the record.
    """
    name = f"record {record.id!r} of {record.source!r}"
    if record.task not in TASKS:
        raise UserError(f"record {record.id!r} has the unknown task {record.task!r}{nearest(record.task, TASKS)}")
    for field in ("id", "source", "language", "license"):
        if not getattr(record, field):
            raise UserError(f"{name} has no {field}; every record needs one")
    try:
        check_content(record.task, record.content)
        if RECORD_TASKS[record.task].states_size:
            check_one_size(contents_of(cast(Mapping[str, Any], record.content)))
    except UserError as error:
        raise UserError(f"{name}, task {record.task!r}: {error}") from None
    one_image = RECORD_TASKS[record.task].one_image or (record.task == EVALUATION and "width" in record.content)
    if one_image and len(record.images) != 1:
        raise UserError(f"{name}, task {record.task!r}, has {len(record.images)} images instead of one")
    return record


def stated_sizes(record: Record) -> list[tuple[float, float] | None]:
    """[width, height] in pixels that a checked record states of each of its images; None if it states none.

    A dialogue whose regions are in thousandths (`dialogues.THOUSANDTHS`) does not state the size of the image.
    """
    content: Mapping[str, Any] = record.content
    count = len(record.images)
    if RECORD_TASKS[record.task].states_size or (record.task == EVALUATION and "width" in content):
        return [(content["width"], content["height"])] * count
    sizes = (content.get("sizes") or ()) if record.task == "dialogue" else ()
    stated = [None if list(size) == [THOUSANDTHS, THOUSANDTHS] else (size[0], size[1]) for size in sizes[:count]]
    return stated + [None] * (count - len(stated))


class Batch(NamedTuple):
    """One batch, static in shape: A microbatches of B rows of L tokens, with I images of H x W pixels each.

    `images` is [A, I, H, W, 3], all other arrays (`TOKEN_ARRAYS`) are [A, B, L]. Within the step, a microbatch is a
    `Batch` without axis A.

    Attributes:
      tokens: int32 ids; 0 in padding.
      targets: int32, the id of the next token of the same sample; 0 at a sample's last token and in padding.
      loss_mask: float32, 1 where `targets` is supervised.
      segment_ids: int32; the samples of a row are numbered from 1, padding is 0.
      positions: int32; each sample starts at 0.
      image_slot: int32 into the features of the row's image group, -1 for text. Rows and images are cut into
        image groups (`config.data.image_groups`); feature q of the group's image i has the slot i * Q + q.
      sources: int32, the index of the sample's source in `config.data.mixture`; 0 in padding, whose `loss_mask` is 0.
      images: uint8 pixels; zeros in the unused part of the budget.
    """

    tokens: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    image_slot: np.ndarray
    sources: np.ndarray
    images: np.ndarray


TOKEN_ARRAYS = tuple(name for name in Batch._fields if name != "images")  # the arrays of a `Batch` that are [A, B, L]
