"""Pages of SynthDoG as its own generator writes them: a picture and the text that is written in it, without positions.

Source: https://github.com/clovaai/donut/tree/master/synthdog. Licence: the generator is MIT; the pages have texts of
Wikipedia (CC-BY-SA) and photographs as backgrounds.

    FOLDER/train/metadata.jsonl          also validation, test
    FOLDER/train/image_12.jpg

A line is `{"file_name": .., "ground_truth": ..}`; the value of the latter is a text with JSON in it:
`{"gt_parse": {"text_sequence": ..}}`. Because the lines have no quadrilaterals, a page is a question with one answer.
Pages with quadrilaterals are the corpus `synthetic_pages`.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import (
    json_object,
    lines,
    object_of,
    picture_path,
    read_each,
    require,
    text_at,
    whole_line,
)
from data_pipelines.pair import Answer, Picture, Question, RawPair, Row

QUESTIONS = {"en": "What is the text in the image?", "zh": "图中的文字是什么？"}


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    return require(folder, [f"{split}/metadata.jsonl"], "the generator of https://github.com/clovaai/donut")


def _read_file(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    def read(numbered: tuple[int, bytes | None]) -> RawPair:
        number, line = numbered
        row = json_object(whole_line(line))
        truth = json_object(text_at(row, "ground_truth"))
        text = text_at(object_of(truth.get("gt_parse")), "text_sequence")
        return RawPair(
            id=f"{split}/{number}",
            source=corpus.name,
            license=corpus.license,
            language=corpus.language,
            pictures=(Picture(path=picture_path(folder / split, text_at(row, "file_name"))),),
            questions=(Question(QUESTIONS[corpus.language], (Answer(text),)),),
        )

    yield from read_each(lines(file), read)


LAYOUT = Layout(_files, _read_file, cut=True)
