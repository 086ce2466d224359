"""SEED-Bench: multiple choices about pictures (types 1 to 9 of questions) and videos (types 10 to 12).

Source: Li et al. 2023, CC-BY-NC-4.0, https://github.com/AILab-CVC/SEED-Bench. Its DATASET.md and the script of Qwen-VL
(`eval_mm/seed_bench/trans.py`) state the layout:

    FOLDER/SEED-Bench.json              {"questions": [{"question_id": "101669", "question", "choice_a", .., "choice_d",
                                          "answer": "A", "data_id": "1454426_2591111986", "question_type_id": 1,
                                          "segment": [0.0, 2.5]}, ..], "question_type": {"Scene Understanding": 1, ..}}
    FOLDER/SEED-Bench-image/1454426_2591111986
    FOLDER/video_imgs_4/30055_0.jpg     frames of the video of question 30055, as that script writes them

A question without frames gets them from its video: `SSV2/videos/DATA_ID` (type 10, the whole video),
`EPIC-KITCHENS/NAME` (type 11, the segment in seconds), `BreakfastII_15fps_qvga_sync/DATA_ID` (type 12, the segment in
frames). The split `test` has all questions, `image` and `video` those of one kind. Videos have 4 frames per question,
as in the paper; in the split `video_8` they have 8, as the script is published. A question whose video is missing or
cannot be decoded stays, with a missing picture.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import answer_text, phrase_at, read_parts, rows_of
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.json_index import JsonIndex, indexed
from data_pipelines.corpora.json_stream import entries
from data_pipelines.corpora.rows import (
    BadRow,
    encodable,
    identifier_at,
    list_at,
    number_at,
    object_of,
    picture_path,
    require,
)
from data_pipelines.corpora.video_frames import read_frames
from data_pipelines.pair import Answer, Picture, Question, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

_HOME_PAGE = "https://github.com/AILab-CVC/SEED-Bench"
_PICTURES = ("SEED-Bench-image", "seed_bench_image")
_VIDEOS = {10: "SSV2/videos", 11: "EPIC-KITCHENS", 12: "BreakfastII_15fps_qvga_sync"}
_LETTERS = "ABCD"
VIDEO = "video_"  # before the number of frames in the name of a split
ALL = "all"  # the split of all questions, with four frames of each video
_PARTS = ("image", f"{VIDEO}4")


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    del split
    return require(folder, ("SEED-Bench.json",), _HOME_PAGE)


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """The pictures in the order of their first question, or one row per question about a video, or both."""
    if split == ALL:
        for part in _PARTS:
            yield from _read(corpus, folder, part, file)
        return
    names = _type_names(file)
    if split.startswith(VIDEO):
        yield from _videos(corpus, folder, file, int(split.removeprefix(VIDEO)), names)
        return
    below = next((folder / name for name in _PICTURES if storage.is_folder(folder / name)), folder / _PICTURES[0])
    with _index(file, videos=False) as index:
        yield from index.failures
        for name in index.keys:
            questions, failures = read_parts(index.values(name), lambda value: _question(value, names))
            try:
                picture = Picture(path=picture_path(below, name))
            except BadRow as error:
                yield error.failed
                continue
            id_ = encodable(name)
            pair = RawPair(id_, corpus.name, corpus.license, corpus.language, (picture,), questions=questions)
            yield from rows_of(pair, failures, "questions")


def _videos(
    corpus: Corpus, folder: epath.Path, file: epath.Path, count: int, names: Mapping[int, str]
) -> Iterator[Row]:
    frames = folder / f"video_imgs_{count}"
    there = set(storage.names(frames)) if storage.is_folder(frames) else set()
    with _index(file, videos=True) as index:
        yield from index.failures
        for number in index.keys:
            for value in index.values(number):
                try:
                    question = _question(value, names)
                    files = [f"{question.id}_{frame}.jpg" for frame in range(count)]
                    pictures = tuple(Picture(path=picture_path(frames, name)) for name in files if name in there)
                    pictures = pictures or _frames(folder, object_of(value), count)
                except BadRow as error:
                    yield error.failed
                    continue
                yield RawPair(
                    question.id, corpus.name, corpus.license, corpus.language, pictures, questions=(question,)
                )


def _index(file: epath.Path, videos: bool) -> contextlib.AbstractContextManager[JsonIndex[str]]:
    """The questions about pictures by their picture, or those about videos by their ids."""

    def key_of(name: str, value: Any) -> str | None:
        row = object_of(value)
        if (_type(row) in _VIDEOS) != videos:
            return None
        return identifier_at(row, "question_id") if videos else _data_id(row)

    return indexed(file, "questions", key_of)


def _data_id(row: Mapping[str, Any]) -> str:
    return phrase_at(row, "data_id").lstrip("/")  # the released script joins it to a folder without a slash


def _type(row: Mapping[str, Any]) -> int:
    number = number_at(row, "question_type_id")
    if number is None:
        raise BadRow("missing value", "question_type_id")
    return int(number)


def _type_names(file: epath.Path) -> dict[int, str]:
    """The names of the types of questions, by their numbers."""
    names = {}
    with contextlib.suppress(UserError):  # the questions alone may be there
        for entry in entries(file, "question_type"):
            if isinstance(entry.value, int):
                names[entry.value] = encodable(entry.name)
    return names


def _question(value: object, names: Mapping[int, str]) -> Question:
    row = object_of(value)
    choices = tuple(answer_text(row.get(f"choice_{letter.lower()}"), f"choice_{letter.lower()}") for letter in _LETTERS)
    answer = phrase_at(row, "answer").upper()
    if len(answer) != 1 or answer not in _LETTERS:
        raise BadRow("question without an answer", f"the answer is {answer[:40]!r}")
    right = _LETTERS.index(answer)
    kind = _type(row)
    return Question(
        text=phrase_at(row, "question"),
        answers=(Answer(choices[right]),),
        choices=choices,
        right=right,
        id=identifier_at(row, "question_id"),
        category=names.get(kind, str(kind)),
    )


def _frames(folder: epath.Path, row: Mapping[str, Any], count: int) -> tuple[Picture, ...]:
    """The frames of the video of a question; one missing picture if there is no video that can be decoded."""
    kind = _type(row)
    name = _data_id(row)
    path = picture_path(folder / _VIDEOS[kind], name.rpartition("/")[2] if kind == 11 else name)
    segment = [number for number in list_at(row, "segment")[:2] if isinstance(number, int | float)]
    in_frames = bool(segment) and isinstance(segment[0], int)
    try:
        with storage.local_copy(path) if storage.is_remote(path) else contextlib.nullcontext(path) as local:
            if not os.path.exists(local):
                return (Picture(),)
            pictures = read_frames(os.fspath(local), count, segment if len(segment) == 2 else (), in_frames=in_frames)
    except StorageError:
        raise
    except (BadRow, OSError):
        return (Picture(),)
    return tuple(map(Picture, pictures))


LAYOUT = Layout(_files, _read)
