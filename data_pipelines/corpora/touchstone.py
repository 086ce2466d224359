"""TouchStone: open questions whose answers a language model judges, with a human description of each picture.

Source: Bai et al. 2023, licence not stated, https://github.com/OFA-Sys/TouchStone, whose README names the file and its
columns:

    FOLDER/touchstone_20230831.tsv       index TAB image TAB question TAB human_annotation TAB gpt4_ha_answer
                                         TAB category TAB task_name; `image` is in base64
    FOLDER/touchstone_20230831_cn.tsv    the Chinese edition, if you have it

The answer of GPT-4 is the reference that a judge compares with, and the human annotation is the hint.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.delimited import filled, picture_in, table_rows
from data_pipelines.corpora.rows import BadRow, require
from data_pipelines.pair import Answer, FailedRow, Picture, Question, RawPair, Row

_HOME_PAGE = "https://github.com/OFA-Sys/TouchStone"
_NEEDED = ("index", "image", "question", "human_annotation", "gpt4_ha_answer")


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    end = "_cn" if split == "zh" else ""
    return require(folder, (f"touchstone_20230831{end}.tsv",), _HOME_PAGE)


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    """One pair per row, because few rows share a picture."""
    met: set[str] = set()
    for _, row in table_rows(file, "\t", needed=_NEEDED):
        if isinstance(row, FailedRow):
            yield row
            continue
        try:
            index = filled(row, "index")
            if index in met:
                raise BadRow("repeated question", index)
            question = Question(
                text=filled(row, "question"),
                answers=(Answer(filled(row, "gpt4_ha_answer")),),
                hint=filled(row, "human_annotation"),
                id=index,
                category=row.get("category", "").strip(),
            )
        except BadRow as error:
            yield error.failed
            continue
        met.add(index)
        picture = Picture(picture_in(row["image"].strip()))
        yield RawPair(index, corpus.name, corpus.license, split, (picture,), questions=(question,))


LAYOUT = Layout(_files, _read)
