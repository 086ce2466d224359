"""GQA: compositional questions about pictures of Visual Genome (paper, Table 3).

Source: Hudson and Manning 2019. Licence CC-BY-4.0. Home page: https://cs.stanford.edu/people/dorarad/gqa/

    train_balanced_questions.json    {"02930152": {"imageId": "2354786", "question": .., "answer": "yes",
                                      "types": {"structural": "verify", ..}, ..}, ..}
    val_balanced_questions.json, testdev_balanced_questions.json, val_all_questions.json
    train_all_questions/train_all_questions_0.json .. _9.json
    images/2354786.jpg

A file is an object with one member per question, in no order of pictures; it is indexed (`json_index`), which takes
50 MB for the 943,000 questions of the balanced training set, and as much for each of the ten files of 1.4 million that
make up `train_all`. A picture whose questions are in several of these ten is a row of each.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from data_pipelines.corpora.annotations import answer_text, category_at, phrase_at, question, read_parts, rows_of
from data_pipelines.corpora.corpus import ANNOTATIONS, Corpus, Layout
from data_pipelines.corpora.json_index import indexed
from data_pipelines.corpora.rows import BadRow, encodable, identifier_at, object_of, picture_path, require
from data_pipelines.pair import Answer, Picture, Question, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

HOME_PAGE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    if storage.is_folder(folder / split):
        names = [name for name in storage.names(folder / split) if name.endswith(".json")]
        if not names:
            raise UserError(f"{folder / split} has no questions; unpack those of {HOME_PAGE} there")
        return [folder / split / name for name in names]
    return require(folder, (f"{split}.json",), HOME_PAGE)


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """The questions that are not JSON or name no picture, then the pictures in the order of their first question."""
    with indexed(file, "", lambda name, value: identifier_at(object_of(value), "imageId")) as index:
        yield from index.failures
        for image in index.keys:
            questions, failures = read_parts(index.members(image), _question)
            try:
                picture = Picture(path=picture_path(folder / "images", f"{image}.jpg"))
            except BadRow as error:
                yield error.failed
                continue
            name = image if file.parent == folder else f"{image}:{file.stem}"  # several files name one picture
            pair = RawPair(name, corpus.name, corpus.license, corpus.language, (picture,), questions=questions)
            yield from rows_of(pair, failures, "questions")


def _question(member: tuple[str, object]) -> Question:
    row = object_of(member[1])
    answers = [Answer(answer_text(row.get("answer")))]
    types = row.get("types")
    category = category_at(types, "structural") if isinstance(types, dict) else ""
    return question(phrase_at(row, "question"), answers, id=encodable(member[0]), category=category)


LAYOUT = Layout(_files, _read, cut=True, most_strides=ANNOTATIONS)
