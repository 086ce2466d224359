"""AI2D: multiple choices about diagrams of school books (paper, Table 3 and section 4.2).

Source: Kembhavi et al. 2016, for research, https://prior.allenai.org/projects/diagram-understanding. The test set is
listed in a file of its own, which must exist, so that no training set can have its pictures:

    questions/0.png.json      {"imageName": "0.png", "questions": {"What does ..?": {"questionId": "0.png-0",
                                "answerTexts": ["a", "b", "c", "d"], "correctAnswer": 2, "abcLabel": false}, ..}}
    annotations/0.png.json    {"text": {"T0": {"rectangle": [[10, 20], [60, 34]], "replacementText": "A"}, ..}}
    images/0.png, ai2d_test_ids.csv (one number per line)

Questions with `abcLabel`, nearly half of all, are about a variant of the picture in which letters replace its labels.
The corpus has no files of these variants; they are drawn from the rectangles of `annotations`: each is filled with
white, and its letter is written in the middle. Such a diagram is a row of its own. Without `annotations` these
questions fail.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from PIL import ImageDraw, ImageFont

from data_pipelines.corpora.annotations import answer_text, id_at, numbers_of, phrase_at, read_parts, rows_of
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import BadRow, json_object, list_at, object_of, picture_path, require
from data_pipelines.pair import Answer, FailedRow, Picture, Question, RawPair, Row
from qwenvl_jax.data.images import exact
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

_HOME_PAGE = "https://prior.allenai.org/projects/diagram-understanding"
_TEST_IDS = "ai2d_test_ids.csv"
_LEAST_LETTER_PX = 10  # height of a letter in a flat rectangle
_MOST_LETTER_PX = 32


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    """One file per picture of the split."""
    (ids,) = require(folder, (_TEST_IDS,), _HOME_PAGE)
    tested = set(storage.read_bytes(ids).decode("utf-8", "replace").split())
    if not storage.is_folder(folder / "questions"):
        raise UserError(f"{folder / 'questions'} does not exist; get it from {_HOME_PAGE}, or correct the folder")
    names = [name for name in storage.names(folder / "questions") if name.endswith(".json")]
    return [folder / "questions" / name for name in names if (name.partition(".")[0] in tested) == (split == "test")]


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """The failed questions of one diagram, the diagram, and its variant with letters."""
    try:
        row = json_object(storage.read_bytes(file))
        name = phrase_at(row, "imageName")
        path = picture_path(folder / "images", name)
        members = object_of(row.get("questions"))
    except BadRow as error:
        yield error.failed
        return
    plain = {text: value for text, value in members.items() if not _has_letters(value)}
    lettered = {text: value for text, value in members.items() if _has_letters(value)}
    pair = RawPair(name, corpus.name, corpus.license, corpus.language, (Picture(path=path),))
    yield from _asked(pair, plain)
    if not lettered:
        return
    annotations = folder / "annotations" / f"{name}.json"
    if not storage.exists(annotations):
        for text in lettered:
            yield FailedRow("letters that are not in the picture", f"{name}: {text}")
        return
    try:
        picture = _with_letters(path, json_object(storage.read_bytes(annotations)))
    except BadRow as error:
        for _ in lettered:
            yield error.failed
        return
    variant = RawPair(f"{name}:letters", corpus.name, corpus.license, corpus.language, (picture,))
    yield from _asked(variant, lettered)


def _has_letters(value: object) -> bool:
    return isinstance(value, dict) and value.get("abcLabel") is True


def _asked(pair: RawPair, members: Mapping[str, Any]) -> Iterator[Row]:
    questions, failures = read_parts(members.items(), _question)
    asked = RawPair(pair.id, pair.source, pair.license, pair.language, pair.pictures, questions=questions)
    yield from rows_of(asked, failures, "questions")


def _question(member: tuple[str, object]) -> Question:
    text, value = member
    row = object_of(value)
    choices = [answer_text(choice) for choice in list_at(row, "answerTexts")]
    correct = row.get("correctAnswer")
    if not isinstance(correct, int) or isinstance(correct, bool) or not 0 <= correct < len(choices):
        raise BadRow("question without an answer", text)
    answers = (Answer(choices[correct]),)
    asked = phrase_at({"question": text}, "question")
    return Question(asked, answers, tuple(choices), correct, id=id_at(row, "questionId"))


def _with_letters(path: str, annotations: Mapping[str, Any]) -> Picture:
    """The variant of a diagram as a PNG; if the diagram is missing or damaged, the diagram itself.

    Raises:
      BadRow: if no rectangle with a letter can be read.
    """
    labels = annotations.get("text")
    boxes = []
    for label in labels.values() if isinstance(labels, dict) else ():
        row = object_of(label)
        if row.get("replacementText") is None:
            continue
        corners = list_at(row, "rectangle")
        if len(corners) != 2:
            raise BadRow("malformed box", "a rectangle is not two corners")
        box = (*numbers_of(corners[0], 2, "rectangle"), *numbers_of(corners[1], 2, "rectangle"))
        boxes.append((box, phrase_at(row, "replacementText")))
    if not boxes:
        raise BadRow("letters that are not in the picture", "the annotations have no labels")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            diagram = exact.decode_image(storage.read_bytes(path))
    except (UserError, OSError):
        return Picture(path=path)
    drawing = ImageDraw.Draw(diagram)
    for (x1, y1, x2, y2), letter in boxes:
        left, right = sorted((x1, x2))
        top, bottom = sorted((y1, y2))
        drawing.rectangle((left, top, right, bottom), fill="white")
        size = min(max(bottom - top, _LEAST_LETTER_PX), _MOST_LETTER_PX)
        middle = ((left + right) / 2, (top + bottom) / 2)
        drawing.text(middle, letter, fill="black", font=ImageFont.load_default(size), anchor="mm")
    buffer = io.BytesIO()
    diagram.save(buffer, "PNG")
    return Picture(buffer.getvalue(), width=diagram.width, height=diagram.height)


LAYOUT = Layout(_files, _read)
