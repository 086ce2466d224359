"""MME: two questions about every picture, of which one is to be answered by yes and the other by no.

Source: Fu et al. 2023, for research, https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation.
The layout is that of `MME_Benchmark_release_version.zip`: a folder per subtask, in one of two forms:

    FOLDER/existence/000000006040.jpg, 000000006040.txt
    FOLDER/landmark/images/10.jpg, landmark/questions_answers_YN/10.txt

A text has two lines: the question, a tab, and "Yes" or "No". FOLDER may also have the folder
MME_Benchmark_release_version, with or without MME_Benchmark in it. The category of a question is its subtask, its group
the picture, and its id the name of the picture with the number of the line.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

from etils import epath

from data_pipelines.corpora.annotations import read_parts, rows_of
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import BadRow, decoded, encodable
from data_pipelines.pair import Answer, Picture, Question, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

HOME_PAGE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
SUBTASKS = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
_ROOTS = ("", "MME_Benchmark_release_version", "MME_Benchmark_release_version/MME_Benchmark")
_TEXTS = "questions_answers_YN"
_SUFFIXES = ("jpg", "png", "jpeg")
_MOST_BYTES = 1 << 20  # of a text


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    """The texts of all subtasks in their order."""
    del split
    for root in _ROOTS:
        files = []
        for subtask in SUBTASKS:
            for below in (folder / root / subtask / _TEXTS, folder / root / subtask):
                names = storage.names(below) if storage.is_folder(below) else []
                texts = sorted(name for name in names if name.endswith(".txt"))
                files += [below / name for name in texts]
                if texts:
                    break
        if files:
            return files
    raise UserError(f"{folder} has no folder of a subtask such as {SUBTASKS[0]} with texts; get it from {HOME_PAGE}")


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    apart = file.parent.name == _TEXTS
    subtask = file.parent.parent if apart else file.parent
    pictures = subtask / "images" if apart else subtask
    paths = [pictures / f"{file.stem}.{suffix}" for suffix in _SUFFIXES]
    path = next((each for each in paths if storage.exists(each)), paths[0])
    name = f"{subtask.name}/{encodable(path.name)}"
    try:
        lines = decoded(storage.read_bytes(file, 0, _MOST_BYTES)).splitlines()
    except BadRow as error:
        yield error.failed
        return
    numbered = [(number, line) for number, line in enumerate(filter(str.strip, lines))]
    questions, failures = read_parts(numbered, functools.partial(_question, name))
    picture = Picture(path=os.fspath(path))
    yield from rows_of(
        RawPair(name, corpus.name, corpus.license, corpus.language, (picture,), questions=questions),
        failures,
        "questions",
    )


def _question(name: str, numbered: tuple[int, str]) -> Question:
    number, line = numbered
    text, _, answer = line.rpartition("\t")
    if not text.strip() or answer.strip().lower() not in ("yes", "no"):
        raise BadRow("wrong form", f"line {number + 1} is not a question, a tab, and Yes or No")
    subtask = name.partition("/")[0]
    return Question(text.strip(), (Answer(answer.strip()),), id=f"{name}#{number}", category=subtask, group=name)


LAYOUT = Layout(_files, _read)
