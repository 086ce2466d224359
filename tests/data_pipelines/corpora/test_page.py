"""docs/corpora.md says what the table and the readers say."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.corpora import page
from data_pipelines.corpora.table import CORPORA

PAGE = Path(__file__).parents[3] / page.PAGE


def test_every_corpus_has_its_line_and_its_folder() -> None:
    lines = PAGE.read_text().splitlines()
    for name, corpus in CORPORA.items():
        [line] = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert corpus.license in line and corpus.home_page in line
        section = line.rpartition("(#")[2].partition(")")[0]
        start = lines.index(f"### {section}")
        text = "\n".join(lines[start:]).partition("\n### ")[0]
        assert "\n    " in text, f"{section} shows no tree of files"


def test_only_the_generated_part_is_written_anew() -> None:
    assert page.updated("By hand.\n") == f"By hand.\n{page.MARK}\n{page.generated()}"
