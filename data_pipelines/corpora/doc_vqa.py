"""DocVQA, InfoVQA, ChartQA and DVQA (paper, Table 3): questions about documents and charts.

DocVQA and InfoVQA (Mathew et al. 2021 and 2022, research use, https://www.docvqa.org), in the older archives and in
those of today:

    train/train_v1.0.json                  {"data": [{"questionId", "question", "image": "documents/xnbl0037_1.png",
                                             "answers": ["0.28"]}, ..]}
    train/documents/xnbl0037_1.png
    spdocvqa_qas/train_v1.0_withQT.json, spdocvqa_images/xnbl0037_1.png; the test set is test_v1.0.json
    infographicsvqa_qas/infographicsVQA_train_v1.0.json    {"data": [{"image_local_name": "20471.jpeg", ..}, ..]}
    infographicsvqa_images/20471.jpeg

ChartQA (Masry et al. 2022, GPL-3.0, https://github.com/vis-nlp/ChartQA). A picture that is in the file of human
questions and in that of generated ones is a row of each:

    train/train_human.json, train/train_augmented.json     [{"imgname": "two_col_40.png", "query", "label"}, ..]
    train/png/two_col_40.png

DVQA (Kafle et al. 2018, CC-BY-NC-4.0, https://github.com/kushalkafle/DVQA_dataset):

    qa/train_qa.json, images/bar_train_00000001.png    [{"image": "bar_train_00000001.png", "question", "answer"}, ..]

Memory: see `question_list`; 130 MB for the 2.3 million questions of DVQA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.corpora.annotations import answer_text, phrase_at
from data_pipelines.corpora.corpus import ANNOTATIONS, Corpus, Layout
from data_pipelines.corpora.question_list import QuestionList, first_there
from data_pipelines.corpora.rows import encodable, list_at, require
from data_pipelines.pair import Answer, Row

_DOC_VQA = "https://rrc.cvc.uab.es/?ch=17&com=downloads"
_NEW_QUESTIONS = "spdocvqa_qas"
_CHARTQA = "https://github.com/vis-nlp/ChartQA"
_DVQA = "https://github.com/kushalkafle/DVQA_dataset"


def _docvqa_files(folder: epath.Path, split: str) -> list[epath.Path]:
    names = (
        f"{split}/{split}_v1.0.json",
        f"{_NEW_QUESTIONS}/{split}_v1.0_withQT.json",
        f"{_NEW_QUESTIONS}/{split}_v1.0.json",
    )
    return [first_there(folder, names, _DOC_VQA)]


def _read_docvqa(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    new = file.parent.name == _NEW_QUESTIONS

    def picture(row: Mapping[str, Any], split: str) -> str:
        name = phrase_at(row, "image")
        return f"spdocvqa_images/{name.rpartition('/')[2]}" if new else f"{split}/{name}"

    return QuestionList(picture, category=_question_types)(corpus, folder, split, file)


def _question_types(row: Mapping[str, Any]) -> str:
    """The types of a question in the newer archives, such as "table/list, form"."""
    return ", ".join(encodable(kind) for kind in list_at(row, "question_types") if isinstance(kind, str))


def _infovqa_files(folder: epath.Path, split: str) -> list[epath.Path]:
    names = [f"infographicsvqa_qas/infographicsVQA_{split}_v1.0{end}.json" for end in ("", "_withQT")]
    return [first_there(folder, names, _DOC_VQA)]


def _infovqa_picture(row: Mapping[str, Any], split: str) -> str:
    return f"infographicsvqa_images/{phrase_at(row, 'image_local_name')}"


def _chartqa_files(folder: epath.Path, split: str) -> list[epath.Path]:
    """`split` is a folder, or one of its files: "test/test_human"."""
    names = (f"{split}.json",) if "/" in split else (f"{split}/{split}_human.json", f"{split}/{split}_augmented.json")
    return require(folder, names, _CHARTQA)


def _chartqa_picture(row: Mapping[str, Any], split: str) -> str:
    return f"{split.partition('/')[0]}/png/{phrase_at(row, 'imgname')}"


def _chartqa_answers(row: Mapping[str, Any]) -> Sequence[Answer]:
    return (Answer(answer_text(row.get("label"), "label")),)


def _dvqa_files(folder: epath.Path, split: str) -> list[epath.Path]:
    return [first_there(folder, (f"qa/{split}_qa.json", f"{split}_qa.json"), _DVQA)]


def _dvqa_picture(row: Mapping[str, Any], split: str) -> str:
    return f"images/{phrase_at(row, 'image')}"


def _dvqa_answers(row: Mapping[str, Any]) -> Sequence[Answer]:
    return (Answer(answer_text(row.get("answer"))),)


DOCVQA = Layout(_docvqa_files, _read_docvqa, cut=True, most_strides=ANNOTATIONS)
INFOVQA = Layout(_infovqa_files, QuestionList(_infovqa_picture), cut=True, most_strides=ANNOTATIONS)
CHARTQA = Layout(
    _chartqa_files,
    QuestionList(_chartqa_picture, key="", question="query", answers=_chartqa_answers, several_files=True, hidden=()),
    cut=True,
    most_strides=ANNOTATIONS,
)
DVQA = Layout(
    _dvqa_files, QuestionList(_dvqa_picture, key="", answers=_dvqa_answers), cut=True, most_strides=ANNOTATIONS
)
