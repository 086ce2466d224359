"""MMLU, CMMLU and C-Eval: examinations in multiple choices, without pictures; a file per subject.

MMLU (Hendrycks et al. 2021, MIT, https://github.com/hendrycks/test), without a header:

    FOLDER/dev/astronomy_dev.csv, val/astronomy_val.csv, test/astronomy_test.csv    question,A,B,C,D,answer
    or the same below FOLDER/data

CMMLU (Li et al. 2023, CC-BY-NC-4.0, https://github.com/haonan-li/CMMLU); its first column is a number without a name:

    FOLDER/dev/astronomy.csv, test/astronomy.csv    ,Question,A,B,C,D,Answer

C-Eval (Huang et al. 2023, CC-BY-NC-SA-4.0, https://github.com/hkust-nlp/ceval); `dev` has a column `explanation` as
well, and the answers of `test` are not public:

    FOLDER/dev/physician_dev.csv, val/physician_val.csv, test/physician_test.csv    id,question,A,B,C,D,answer

The layouts are those that the loaders of these repositories read. A row is one question; its id is the subject and the
number of the row, or the `id` of the row. Texts stay as they are written: Qwen's script for MMLU reads them by pandas,
which turns options such as "None" and "NA" into "nan".
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.delimited import TableRow, table_rows
from data_pipelines.corpora.rows import BadRow, encodable
from data_pipelines.pair import Answer, FailedRow, Question, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

_LETTERS = "ABCD"
_MMLU = ("question", *_LETTERS, "answer")
_LEAST = ("question", *_LETTERS)


def _files(suffix: str, source: str, folder: epath.Path, split: str) -> list[epath.Path]:
    """The files of all subjects; `suffix` is what follows the subject in their names, with {} for the split."""
    end = suffix.format(split)
    for below in (folder / split, folder / "data" / split):
        names = [name for name in storage.names(below) if name.endswith(end)] if storage.is_folder(below) else []
        if names:
            return [below / name for name in sorted(names)]
    raise UserError(f"{folder / split} has no file *{end}; get it from {source}, or correct the folder")


def _read(suffix: str, header: bool, corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    subject = encodable(file.name.removesuffix(suffix.format(split)))
    met: set[str] = set()
    for number, row in table_rows(file, ",", () if header else _MMLU):
        if isinstance(row, FailedRow):
            yield FailedRow(row.reason, f"{subject}: {row.detail}")
            continue
        try:
            question = _question({name.lower() if len(name) > 1 else name: row[name] for name in row}, subject, number)
            if question.id in met:
                raise BadRow("repeated question", question.id)
        except BadRow as error:
            yield FailedRow(error.failed.reason, f"{subject}, row {number}: {error.failed.detail}")
            continue
        met.add(question.id)
        yield RawPair(question.id, corpus.name, corpus.license, corpus.language, questions=(question,))


def _question(row: TableRow, subject: str, number: int) -> Question:
    missing = [column for column in _LEAST if column not in row]
    if missing:
        raise BadRow("missing value", f"there is no column {missing[0]!r}")
    choices = tuple(row[letter].strip() for letter in _LETTERS)
    text = row["question"].strip()
    if not text:
        raise BadRow("missing value", "question")
    answer = row.get("answer", "").strip().upper()
    if len(answer) > 1 or answer not in _LETTERS:  # no answer is in it, too
        raise BadRow("question without an answer", f"the answer is {answer[:40]!r}")
    right = _LETTERS.index(answer) if answer else -1
    return Question(
        text=text,
        answers=(Answer(choices[right]),) if answer else (),
        choices=choices,
        right=right,
        id=f"{subject}/{row.get('id', '').strip() or number}",
        category=subject,
    )


def _layout(suffix: str, source: str, *, header: bool = True) -> Layout:
    return Layout(functools.partial(_files, suffix, source), functools.partial(_read, suffix, header))


MMLU = _layout("_{}.csv", "https://github.com/hendrycks/test", header=False)
CMMLU = _layout(".csv", "https://github.com/haonan-li/CMMLU")
CEVAL = _layout("_{}.csv", "https://github.com/hkust-nlp/ceval")
