"""answers.html: pictures, prompts, answers and boxes on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.evaluation.generation.pictures import read_picture
from qwenvl_jax.html.figures import Region, corners_of_box, figure, palette_color, within
from qwenvl_jax.html.page import bullets, captioned, grid, header, page, section, visible
from qwenvl_jax.runtime.errors import UserError

SHOWN_SIDE = 640  # px of the longer side of a picture on the page
NAMED = 50  # inputs without an answer that are named


def answers_page(rows: Sequence[Mapping[str, Any]], intro: str, shown: int) -> str:
    """The page.

    Args:
      rows: of `answers.jsonl`, in the order of the inputs.
      intro: about the model.
      shown: at most this many inputs with an answer are shown; their pictures are read again.
    """
    answered = [row for row in rows if row["answer"] is not None]
    missing = [row for row in rows if row["answer"] is None]
    counts = f"{len(answered):,} answers"
    if len(answered) > shown:
        counts += f", of which the first {shown:,} are shown here; answers.jsonl has all"
    links = [("answers", "Answers")] + ([("unanswered", "Not answered")] if missing else [])
    cards = [_card(row) for row in answered[:shown]]
    parts = [
        header("Answers", f"{escape(intro)} {escape(counts)}.", links),
        section("answers", "Answers", "", grid(cards)),
    ]
    if missing:
        parts.append(_missing(missing))
    return visible(page("Qwen-VL in JAX · answers", "\n".join(parts)))


def _missing(rows: Sequence[Mapping[str, Any]]) -> str:
    first = f" The first {NAMED}:" if len(rows) > NAMED else ""
    subject = "1 input has" if len(rows) == 1 else f"{len(rows):,} inputs have"
    intro = f"{subject} no answer, because a picture cannot be read or a line of a list is broken.{first}"
    return section("unanswered", "Not answered", intro, bullets(escape(row["why"]) for row in rows[:NAMED]))


def _card(row: Mapping[str, Any]) -> str:
    samples = row.get("samples", [row])
    lines = [f"<b>{escape(row['prompt'])}</b>"]
    for sample in samples:
        score = f' <span class="soft small">{sample["score"]:.3f}</span>' if "score" in sample else ""
        lines.append(escape(sample["answer"]) + score)
    lines.append(f'<span class="soft small">{escape(row["id"])}</span>')
    return captioned("".join(_figures(row)), lines)


def _figures(row: Mapping[str, Any]) -> list[str]:
    """The pictures of a row with their boxes, which older rows have for the last one only."""
    last = len(row["images"]) - 1
    drawn = []
    for number, path in enumerate(row["images"]):
        boxes = [box for box in row["boxes"] if box.get("image", last) == number]
        try:
            image = decode_image(read_picture(path))
        except UserError:
            drawn.append('<p class="soft small">This picture cannot be read any more.</p>')
            continue
        labels = list(dict.fromkeys(box["ref"] for box in boxes))
        regions = [
            Region(corners_of_box(box["box"]), palette_color(labels.index(box["ref"])), box["ref"]) for box in boxes
        ]
        small = within(image, SHOWN_SIDE)
        drawn.append(figure(small, regions, alt=row["id"], units=image.size))
    return drawn
