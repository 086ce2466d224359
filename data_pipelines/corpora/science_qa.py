"""ScienceQA: multiple choices from school science, some with a picture (paper, section 4.2).

Source: Lu et al. 2022, CC-BY-NC-SA-4.0, https://github.com/lupantech/ScienceQA, whose loaders read:

    FOLDER/problems.json       {"5": {"question", "choices": ["a", "b"], "answer": 0, "hint": "", "image": "image.png",
                                "subject": "natural science", "split": "test", ..}, ..}; `image` may be null
    FOLDER/pid_splits.json     {"test": ["5", ..], "val": .., "train": .., "minival": .., "minitest": ..}
    FOLDER/images/test/5/image.png, or FOLDER/test/5/image.png

If there is no problems.json, the file of Qwen-VL's evaluation is read (`eval_mm/EVALUATION.md`):

    FOLDER/scienceqa_test_img.jsonl    {"image": "..", "hint": "", "question", "choices": [..], "answer": 0} per line; a
                                       picture has the path that the line states, from FOLDER or two folders above it

Only questions with a picture are read (ScienceQA-Img). Questions of the splits `..._text` have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import answer_text, category_at, id_at, phrase_at
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.json_stream import entries
from data_pipelines.corpora.question_list import first_there
from data_pipelines.corpora.rows import (
    BadRow,
    encodable,
    json_object,
    lines,
    list_at,
    object_of,
    picture_path,
    whole_line,
)
from data_pipelines.pair import Answer, Picture, Question, RawPair, Row
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

_HOME_PAGE = "https://github.com/lupantech/ScienceQA"
_PROBLEMS = "problems.json"
_SPLITS = "pid_splits.json"
TEXT = "_text"  # the end of the name of a split of questions without a picture


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    name = split.removesuffix(TEXT)
    file = first_there(folder, (_PROBLEMS, f"scienceqa_{name}_img.jsonl"), _HOME_PAGE)
    if file.name == _PROBLEMS and not storage.exists(folder / _SPLITS):
        raise UserError(f"{folder / _SPLITS} does not exist; get it from {_HOME_PAGE}, or correct the folder")
    return [file]


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    if file.name != _PROBLEMS:
        yield from _of_lines(corpus, folder, file)
        return
    name = split.removesuffix(TEXT)
    splits = artifacts.read_json(folder / _SPLITS)
    members = splits.get(name) if isinstance(splits, dict) else None
    if not isinstance(members, list):
        raise UserError(f"{folder / _SPLITS} has no list {name!r}; get it from {_HOME_PAGE}")
    wanted = {str(member) for member in members}
    pictures = folder / "images" / name if storage.is_folder(folder / "images" / name) else folder / name
    for entry in entries(file):
        if entry.failure is not None:
            yield entry.failure
            continue
        if entry.name not in wanted:
            continue
        try:
            row = object_of(entry.value)
            has_picture = row.get("image") is not None
            if has_picture == split.endswith(TEXT):
                continue
            path = picture_path(pictures, f"{entry.name}/{phrase_at(row, 'image')}") if has_picture else ""
            yield _pair(corpus, row, entry.name, path)
        except BadRow as error:
            yield error.failed


def _of_lines(corpus: Corpus, folder: epath.Path, file: epath.Path) -> Iterator[Row]:
    for number, line in lines(file):
        try:
            row = json_object(whole_line(line))
            name = phrase_at(row, "image")
            path = picture_path(folder, name)
            if not storage.exists(path) and storage.exists(picture_path(folder.parent.parent, name)):
                path = picture_path(folder.parent.parent, name)  # "data/scienceqa/images/.." from where scripts start
            yield _pair(corpus, row, id_at(row, "question_id", "id") or str(number), path)
        except BadRow as error:
            yield error.failed


def _pair(corpus: Corpus, row: Mapping[str, Any], name: str, path: str) -> RawPair:
    choices = tuple(answer_text(choice) for choice in list_at(row, "choices"))
    right = row.get("answer")
    if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < len(choices):
        raise BadRow("question without an answer", encodable(name))
    hint = row.get("hint")
    question = Question(
        text=phrase_at(row, "question"),
        answers=(Answer(choices[right]),),
        choices=choices,
        right=right,
        hint=encodable(hint).strip() if isinstance(hint, str) else "",
        id=encodable(name),
        category=category_at(row, "subject"),
    )
    pictures = (Picture(path=path),) if path else ()
    return RawPair(encodable(name), corpus.name, corpus.license, corpus.language, pictures, questions=(question,))


LAYOUT = Layout(_files, _read)
