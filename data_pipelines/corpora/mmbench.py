"""MMBench: multiple choices that are asked once for every rotation of their options.

Source: Liu et al. 2023, licence Apache-2.0 (code), https://github.com/open-compass/MMBench, whose files were first
published as `mmbench_dev_20230712.tsv`. The columns are those that the evaluation scripts of the repository and of
Qwen-VL (`eval_mm/mmbench`) read:

    FOLDER/mmbench_dev_20230712.tsv     index TAB question TAB hint TAB A TAB B TAB C TAB D TAB answer TAB category
                                        TAB image TAB ..; `image` is in base64
    FOLDER/mmbench_test_20230712.tsv    without answers

Newer files are named mmbench_dev_en_20231003.tsv, mmbench_dev_cn_20231003.tsv, MMBench_DEV_EN.tsv and so on. A rotation
of question 241 has the index 1000241, 2000241 or 3000241: all of them are one pair with the picture of the first, and
have the same group. In some files the image of a row is the index of the row that has the picture. Options that are
empty are left out, as pandas and the released scripts do.

The file is read twice: first the questions, which take a few megabytes, then the pictures one by one.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.delimited import TableRow, filled, picture_in, table_rows
from data_pipelines.corpora.question_list import first_there
from data_pipelines.corpora.rows import BadRow
from data_pipelines.pair import Answer, FailedRow, Picture, Question, RawPair, Row

_HOME_PAGE = "https://github.com/open-compass/MMBench"
ROTATION = 1_000_000  # added to the index of a question for each of its rotations
_NAMES = {
    "dev": ("mmbench_dev_20230712.tsv", "mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv"),
    "test": ("mmbench_test_20230712.tsv", "mmbench_test_en_20231003.tsv", "MMBench_TEST_EN.tsv"),
    "dev_cn": ("mmbench_dev_cn_20231003.tsv", "MMBench_DEV_CN.tsv"),
    "test_cn": ("mmbench_test_cn_20231003.tsv", "MMBench_TEST_CN.tsv"),
}
_NEEDED = ("index", "question", "A", "B", "image")


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    return [first_there(folder, _NAMES[split], _HOME_PAGE)]


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """The rows that fail, and a pair at the first rotation of every question."""
    groups: dict[int, list[Question]] = {}
    failures: dict[int, FailedRow] = {}
    firsts: dict[int, int] = {}  # number of a row -> its group
    others: dict[str, bytes] = {}  # index of a row that has the picture of another row -> its picture
    for number, row in table_rows(file, "\t", needed=_NEEDED):
        if isinstance(row, FailedRow):
            failures[number] = row
            continue
        try:
            index = _index(row)
            question = _question(row, index)
        except BadRow as error:
            failures[number] = error.failed
            continue
        if _is_index(row["image"]):
            others[row["image"].strip()] = b""
        group = index % ROTATION
        if group not in groups:
            firsts[number] = group
        groups.setdefault(group, []).append(question)
    language = "zh" if split.endswith("_cn") else corpus.language
    for number, row in table_rows(file, "\t", needed=_NEEDED):
        if number in failures:
            yield failures[number]
        if isinstance(row, FailedRow):
            continue
        if row["index"].strip() in others:
            others[row["index"].strip()] = picture_in(row["image"])
        if number in firsts:
            group = firsts[number]
            image = row["image"].strip()
            picture = Picture(others[image] if _is_index(image) else picture_in(image))
            yield RawPair(str(group), corpus.name, corpus.license, language, (picture,), questions=tuple(groups[group]))


def _index(row: TableRow) -> int:
    text = filled(row, "index").removesuffix(".0")
    if not text.isdecimal() or not text.isascii() or len(text) > 12:
        raise BadRow("wrong type", f"the index is {text[:40]!r}, not a whole number")
    return int(text)


def _is_index(image: str) -> bool:
    """Whether the image of a row is the index of another row; a picture in base64 has more characters."""
    return len(image.strip()) <= 12 and image.strip().isdecimal()


def _question(row: TableRow, index: int) -> Question:
    letters = [letter for letter in string.ascii_uppercase if row.get(letter, "").strip()]
    choices = tuple(row[letter].strip() for letter in letters)
    if len(choices) < 2:
        raise BadRow("missing value", f"question {index} has fewer than two options")
    answer = row.get("answer", "").strip()
    right = letters.index(answer) if answer in letters else -1
    if answer and right < 0:
        raise BadRow("question without an answer", f"question {index} has the answer {answer[:40]!r}")
    return Question(
        text=filled(row, "question"),
        answers=(Answer(choices[right]),) if right >= 0 else (),
        choices=choices,
        right=right,
        hint=row.get("hint", "").strip(),
        id=str(index),
        category=row.get("category", "").strip(),
        group=str(index % ROTATION),
    )


LAYOUT = Layout(_files, _read)
