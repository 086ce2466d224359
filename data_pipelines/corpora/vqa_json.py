"""VQAv2, OK-VQA, VizWiz, TextVQA, ST-VQA and OCR-VQA (paper, Table 3 and section 4.2): questions in JSON.

VQAv2 (Goyal et al. 2017, CC-BY-4.0, https://visualqa.org) and OK-VQA (Marino et al. 2019, licence not stated,
https://okvqa.allenai.org, whose files lack `v2_`) have questions and answers apart, and pictures of COCO:

    v2_OpenEnded_mscoco_train2014_questions.json    {"questions": [{"image_id", "question", "question_id"}, ..]},
                                                    also val2014, test-dev2015 and test2015
    v2_mscoco_train2014_annotations.json            {"annotations": [{"question_id", "answers": [{"answer",
                                                      "answer_confidence": "yes" | "maybe" | "no"}, ..],
                                                      "answer_type": "other"}, ..]}
    train2014/COCO_train2014_000000000009.jpg, val2014/.., test2015/COCO_test2015_000000000001.jpg of both test sets

VizWiz (Gurari et al. 2018, CC-BY-4.0, https://vizwiz.org): answers as in VQAv2, in one list.

    Annotations/train.json     or train.json: [{"image": "VizWiz_train_00000000.jpg", "question", "answers": [..],
                               "answer_type": "other"}, ..]; also val.json and test.json
    train/VizWiz_train_00000000.jpg

TextVQA (Singh et al. 2019, CC-BY-4.0, https://textvqa.org) and ST-VQA (Biten et al. 2019, research use,
https://rrc.cvc.uab.es/?ch=11), whose rows name the path of the picture:

    TextVQA_0.5.1_train.json    {"data": [{"image_id", "question", "answers": ["nokia", ..]}, ..]}
    train_images/0054c91397f2fe05.jpg    of train and val; test_images/.. of test
    train_task_3.json           {"data": [{"file_path": "coco-text/COCO_train2014_000000000009.jpg", ..}, ..]}

OCR-VQA (Mishra et al. 2019, research use, https://ocr-vqa.github.io), a member per book cover:

    dataset.json                {"0451450655": {"imageURL", "questions": [..], "answers": [..], "split": 1 | 2 | 3}, ..}
    images/0451450655.jpg       with the suffix of its imageURL

Memory: the indexes of VQAv2 and OK-VQA take 80 MB for the 444,000 questions of the training set of VQAv2; VizWiz,
TextVQA and ST-VQA see `question_list`; OCR-VQA is read one cover at a time. A question without an answer fails, except
in the test sets of VQAv2, VizWiz and TextVQA, whose answers are hidden.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import (
    answer_text,
    answers_of,
    category_at,
    confident_answer,
    phrase_at,
    question,
    read_parts,
    rows_of,
)
from data_pipelines.corpora.corpus import ANNOTATIONS, Corpus, Layout, ReadFile
from data_pipelines.corpora.json_index import JsonIndex, indexed
from data_pipelines.corpora.json_stream import entries
from data_pipelines.corpora.question_list import QuestionList, first_there
from data_pipelines.corpora.rows import BadRow, encodable, identifier_at, list_at, object_of, picture_path, require
from data_pipelines.pair import Answer, Picture, Question, RawPair, Row

_MOST_IMAGE_ID = 10**12 - 1  # COCO's names of files have twelve digits


@dataclasses.dataclass(frozen=True)
class _TwoFiles:
    """The layout of VQAv2 (`prefix` "v2_") and OK-VQA ("")."""

    prefix: str
    home_page: str

    def files(self, folder: epath.Path, split: str) -> list[epath.Path]:
        questions = f"{self.prefix}OpenEnded_mscoco_{split}_questions.json"
        names = (questions,) if _is_hidden(split) else (questions, self._answers(split))
        return require(folder, names, self.home_page)[:1]

    def _answers(self, split: str) -> str:
        return f"{self.prefix}mscoco_{split}_annotations.json"

    def read(self, corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
        """The questions and answers that are malformed, then the pictures in the order of their first question."""
        with contextlib.ExitStack() as stack:
            answers = None
            if not _is_hidden(split):
                answers = stack.enter_context(indexed(folder / self._answers(split), "annotations", _question_id))
                yield from answers.failures
            index = stack.enter_context(indexed(file, "questions", _image_id))
            yield from index.failures
            part = "test2015" if _is_hidden(split) else split
            for number in index.keys:
                questions, failures = read_parts(index.values(number), functools.partial(_answered, answers))
                name = f"{part}/COCO_{part}_{number:012d}.jpg"
                picture = Picture(path=picture_path(folder, name))
                pair = RawPair(name, corpus.name, corpus.license, corpus.language, (picture,), questions=questions)
                yield from rows_of(pair, failures, "questions")


def _is_hidden(split: str) -> bool:
    return split.startswith("test")


def _question_id(name: str, value: object) -> int:
    return _key(value, "question_id")


def _image_id(name: str, value: object) -> int:
    return _key(value, "image_id")


def _key(value: object, key: str) -> int:
    number = identifier_at(object_of(value), key)
    if not number.isdecimal() or not number.isascii() or len(number) > 20:
        raise BadRow("wrong type", f"{key!r} is not a whole number")
    if key == "image_id" and int(number) > _MOST_IMAGE_ID:
        raise BadRow("unknown picture", f"no file of COCO has the number {number}")
    return int(number)


def _answered(answers: JsonIndex[int] | None, value: object) -> Question:
    """A question with its answers from the other file; None if there is no such file."""
    row = object_of(value)
    number = _key(row, "question_id")
    text = phrase_at(row, "question")
    if answers is None:
        return question(text, (), hidden=True, id=str(number))
    annotations = answers.values(number)
    if len(annotations) > 1:
        raise BadRow("question answered twice", f"question {number}")
    if not annotations:
        raise BadRow("question without an answer", text)
    stated = answers_of(list_at(annotations[0], "answers"), confident_answer)
    return question(text, stated, id=str(number), category=_answer_type(annotations[0]))


def _answer_type(row: Mapping[str, Any]) -> str:
    return category_at(row, "answer_type")


def _one_file(pattern: str, source: str, folder: epath.Path, split: str) -> list[epath.Path]:
    return require(folder, (pattern.format(split),), source)


def _vizwiz_files(folder: epath.Path, split: str) -> list[epath.Path]:
    names = (f"Annotations/{split}.json", f"{split}.json")
    return [first_there(folder, names, "https://vizwiz.org/tasks-and-datasets/vqa/")]


def _vizwiz_picture(row: Mapping[str, Any], split: str) -> str:
    return f"{split}/{phrase_at(row, 'image')}"


def _vizwiz_answers(row: Mapping[str, Any]) -> tuple[Answer, ...]:
    return answers_of(list_at(row, "answers"), confident_answer)


def _textvqa_picture(row: Mapping[str, Any], split: str) -> str:
    folder = "test_images" if split == "test" else "train_images"  # those of the validation set too
    return f"{folder}/{identifier_at(row, 'image_id')}.jpg"


def _st_vqa_picture(row: Mapping[str, Any], split: str) -> str:
    return phrase_at(row, "file_path")


def _read_covers(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """The book covers of a split in the order of the file."""
    for entry in entries(file):
        if entry.failure is not None:
            yield entry.failure
            continue
        try:
            row = object_of(entry.value)
            if identifier_at(row, "split") != split:
                continue
            suffix = phrase_at(row, "imageURL").rpartition("/")[2].rpartition(".")[2]
            picture = Picture(path=picture_path(folder / "images", f"{entry.name}.{suffix}"))
            texts = list_at(row, "questions")
            answers = list_at(row, "answers")
            if len(texts) != len(answers):
                raise BadRow("question without an answer", f"{len(texts)} questions and {len(answers)} answers")
        except BadRow as error:
            yield error.failed
            continue
        ids = [f"{entry.name}#{number}" for number in range(len(texts))]  # the corpus has none
        questions, failures = read_parts(zip(ids, texts, answers, strict=True), _cover_question)
        pair = RawPair(entry.name, corpus.name, corpus.license, corpus.language, (picture,), questions=questions)
        yield from rows_of(pair, failures, "questions")


def _cover_question(value: tuple[str, object, object]) -> Question:
    id_, text, answer = value
    return question(phrase_at({"question": text}, "question"), [Answer(answer_text(answer))], id=encodable(id_))


def _one(pattern: str, home_page: str, read: ReadFile) -> Layout:
    """The layout of a corpus whose split is one file; the pattern has {} for the split."""
    return Layout(functools.partial(_one_file, pattern, home_page), read, cut=True, most_strides=ANNOTATIONS)


_VQAV2 = _TwoFiles("v2_", "https://visualqa.org/download.html")
_OKVQA = _TwoFiles("", "https://okvqa.allenai.org/download.html")
VQAV2 = Layout(_VQAV2.files, _VQAV2.read, cut=True, most_strides=ANNOTATIONS)
OKVQA = Layout(_OKVQA.files, _OKVQA.read, cut=True, most_strides=ANNOTATIONS)
VIZWIZ = Layout(
    _vizwiz_files,
    QuestionList(_vizwiz_picture, key="", answers=_vizwiz_answers, id=("image",), category=_answer_type),
    cut=True,
    most_strides=ANNOTATIONS,
)
TEXTVQA = _one("TextVQA_0.5.1_{}.json", "https://textvqa.org/dataset/", QuestionList(_textvqa_picture))
ST_VQA = _one("{}_task_3.json", "https://rrc.cvc.uab.es/?ch=11&com=downloads", QuestionList(_st_vqa_picture))
OCR_VQA = _one("dataset.json", "https://ocr-vqa.github.io", _read_covers)
