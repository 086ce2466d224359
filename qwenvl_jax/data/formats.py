"""Record -> pieces: what a record is as a training sample, and as the prompt of an evaluation.

`tasks` has the prompt and the answer of every task, `dialogues` the turns of ChatML.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.annotations import ANNOTATIONS
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.schema import TASKS, Record
from qwenvl_jax.data.tasks import PROMPT_STYLES, RECORD_TASKS, RecordTask
from qwenvl_jax.data.word_pictures import word_pictures
from qwenvl_jax.runtime.errors import UserError, nearest


def training_pieces(record: Record) -> list[Piece]:
    """The whole sample of a record with one sample (`schema.samples_of`), supervised where the loss counts.

    caption           <img/>Generate the caption in English:| the caption<|endoftext|>
    vqa               <img/>question Answer:| answer<|endoftext|>
    grounding         <img/>Generate the caption in English with grounding:| a<ref> dog</ref><box>..</box><|endoftext|>
    ref_grounding     <img/><ref>phrase</ref>|<box>(x1,y1),(x2,y2)</box><|endoftext|>
    grounded_caption  <img/><ref>This</ref><box>..</box>| is description<|endoftext|>
    ocr               <img/>OCR with grounding: |<ref>text</ref><quad>(..),(..),(..),(..)</quad>..<|endoftext|>
    text              |text<|endoftext|>
    dialogue          see `dialogues.chat_pieces`
    (The loss begins at |. Coordinates are written as in `tags`.)

    Raises:
      UserError: naming the record, if its content lacks a value or a box leaves its image.
    """
    with _naming(record):
        if record.task == "dialogue":
            return _dialogue(record)
        if record.task == "text" and "words" in record.content:
            return _with_word_pictures(record)
        task = _task_of(record)
        if not task.teaches:
            raise UserError("it holds questions of a benchmark, on which no model may be trained; remove it")
        answer = task.answer(record.content, record.language) if task.answer else []
        prompt = task.prompt(record.content, record.language, "training") if task.prompt else []
        supervised = [dataclasses.replace(piece, supervised=True) for piece in answer]
        return [*prompt, *supervised, Piece("special", tags.ENDOFTEXT, True)]


def prompt_pieces(record: Record, style: str = "released") -> list[Piece]:
    """The prompt of an evaluation record up to the start of the answer. Nothing is supervised.

    Args:
      record: of the evaluation set.
      style: "released" asks as the released evaluation does ("Describe the image in English:"); "training" repeats
        the prompt of training ("Generate the caption in English:"), the only one that a small model knows. They
        differ in captions only. The prompt of a referring expression ends with `<box>`, so that the answer starts at
        "(x1,y1)".

    Raises:
      UserError: for an unknown style, or a record whose task has no prompt.
    """
    if style not in PROMPT_STYLES:
        raise UserError(
            f"prompt style {style!r} is not one of {', '.join(PROMPT_STYLES)}{nearest(style, PROMPT_STYLES)}"
        )
    with _naming(record):
        if record.task == "dialogue":
            return [dataclasses.replace(piece, supervised=False) for piece in _dialogue(record, open_end=True)]
        task = _task_of(record)
        if task.prompt is None:
            raise UserError(f"the task {record.task!r} has no prompt; evaluate it by likelihood or choose another task")
        pieces = task.prompt(record.content, record.language, style)
        return [*pieces, Piece("special", task.answer_opening)] if task.answer_opening else pieces


@contextlib.contextmanager
def _naming(record: Record) -> Iterator[None]:
    """Adds the name of the record to an error about its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"record {record.id!r} of {record.source!r}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"record {record.id!r} has a {record.task} content that does not fit ({error!r})") from None


def _task_of(record: Record) -> RecordTask[Any]:
    if ANNOTATIONS in record.content:
        raise UserError(f"it has several samples under {ANNOTATIONS!r}; write one record per sample for an evaluation")
    if record.task not in RECORD_TASKS:
        raise UserError(f"unknown task {record.task!r}{nearest(str(record.task), TASKS)}")
    return RECORD_TASKS[record.task]


def _with_word_pictures(record: Record) -> list[Piece]:
    """A sample of another task, with words between the image tags instead of image features."""
    content: Mapping[str, Any] = record.content
    words = word_pictures(content)
    # The words are the images of the sample, which may show no others.
    sample = dataclasses.replace(record, task=content["task"], images=tuple(picture.encode() for picture in words))
    pieces: list[Piece] = []
    for piece in training_pieces(sample):
        if piece.kind == "image":
            shown = Piece("text", f" {words[int(piece.value)]}")
            pieces += [Piece("special", tags.IMG), shown, Piece("special", tags.IMG_END)]
        else:
            pieces.append(piece)
    return pieces


def _dialogue(record: Record, open_end: bool = False) -> list[Piece]:
    content: Mapping[str, Any] = record.content
    pieces = chat_pieces(
        content["turns"], system=content.get("system", ""), sizes=content.get("sizes", ()), open_end=open_end
    )
    for piece in pieces:
        if piece.kind == "image" and not 0 <= int(piece.value) < len(record.images):
            raise UserError(f"a turn shows image {piece.value}, but there are {len(record.images)}")
    return pieces
