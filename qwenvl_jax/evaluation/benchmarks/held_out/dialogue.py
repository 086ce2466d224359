"""ChatML dialogues of several turns: every turn of the assistant is asked after the true turns before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenvl_jax.data import tags
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark, Question, without_tags
from qwenvl_jax.evaluation.metrics.grounding import intersection_over_union
from qwenvl_jax.evaluation.metrics.metric import Scores, mean_over, mean_scores
from qwenvl_jax.evaluation.metrics.vqa import normalise_words, strip_punctuation
from qwenvl_jax.runtime.errors import UserError

IOU_THRESHOLD = 0.5


def _written(pieces: Sequence[Piece]) -> str:
    return "".join(str(piece.value) for piece in pieces if piece.kind != "image")


def questions(record: Record, asking: Asking) -> list[Question]:
    """One question per turn of the assistant. `asking` changes nothing, because ChatML has only one prompt style.

    Raises:
      UserError: if there is no such turn, or a turn is malformed.
    """
    content: Mapping[str, Any] = record.content
    turns = content["turns"]
    context = {"system": content.get("system", ""), "sizes": content.get("sizes", ())}
    asked = []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        prompt = chat_pieces(turns[:number], **context, open_end=True)
        whole = chat_pieces(turns[: number + 1], **context)
        # `whole` is the prompt, the answer, and then <|im_end|> and a line break.
        truth = tags.normal_form(_written(whole[len(prompt) : -2]))
        asked.append(Question(f"{record.id}#{number}", tuple(prompt), record.images, {"truth": truth, "turn": number}))
    if not asked:
        raise UserError("it has no turn of the assistant, so there is nothing to ask")
    return asked


def read(text: str, about: dict[str, Any]) -> dict[str, Any]:
    """Right if every true box is met by the predicted box of the same number (IoU 0.5); without boxes, by the words."""
    text = tags.normal_form(text)
    true_boxes = [box for _, boxes in tags.parse_boxes(about["truth"]) for box in boxes]
    kind = "box" if true_boxes else "text"
    if true_boxes:
        boxes = [box for _, group in tags.parse_boxes(text) for box in group]
        right = len(boxes) == len(true_boxes) and all(map(_meets, boxes, true_boxes))
    else:
        right = _words(text) == _words(about["truth"])
    return {"prediction": text.strip(), **about, "kind": kind, "right": float(right)}


def unanswered(about: dict[str, Any]) -> dict[str, Any]:
    """The row of a turn that could not be asked; wrong even if the true words are only articles, which do not count."""
    return read("", about) | {"right": 0.0}


def _meets(box: tags.BoxInThousandths, true: tags.BoxInThousandths) -> bool:
    """Whether a box meets the true one. A box thinner than a thousandth has no area, so it only meets an equal box."""
    return tuple(min(value, 999) for value in box) == true or intersection_over_union(box, true) >= IOU_THRESHOLD


def _words(text: str) -> str:
    return normalise_words(strip_punctuation(without_tags(text).strip()))


def score(rows: Sequence[dict[str, Any]]) -> dict[str, Scores]:
    """`dialogue_acc` over all turns, and separately for turns answered in words and for turns with boxes."""
    right = [row["right"] for row in rows]
    scores = {"dialogue_acc": mean_scores(right)}
    for kind in ("text", "box"):
        counted = [row["kind"] == kind for row in rows]
        if any(counted):
            scores[f"dialogue_{kind}_acc"] = mean_over(right, counted)
    return scores


BENCHMARK = Benchmark(
    "dialogue",
    "Dialogue turns",
    questions,
    read,
    unanswered,
    score,
    "dialogue",
    stops=(tags.IM_END, tags.IM_START, tags.ENDOFTEXT),
    max_new_tokens=512,
)
