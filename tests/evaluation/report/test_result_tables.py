"""The paper's tables as data and as Markdown: against a golden file and an independent Markdown parser."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.report import numbers
from qwenvl_jax.evaluation.report.markdown import LONGEST, escaped, tables_as_markdown
from qwenvl_jax.evaluation.report.tables import TITLES, tables_of
from qwenvl_jax.evaluation.results.figures import Comparison
from tests.evaluation.report.entries import entry, figure, small_sweep

GOLDEN = Path(__file__).parents[2] / "golden/evaluation/tables.md"
PARSER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def test_the_tables_are_those_of_the_golden_file() -> None:
    """Without the notes, which are the registry's."""
    lines = tables_as_markdown(small_sweep()).splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("- **")) == GOLDEN.read_text()


def test_notes_say_what_a_reader_must_know() -> None:
    notes = [note for table in tables_of(small_sweep()) for note in table.notes]
    assert ("SEED-Bench", BENCHMARKS["seed_bench"].note) in notes
    hidden = [title for title, note in notes if note.startswith("Only a server knows")]
    assert hidden == ["VQAv2 test-dev"]
    released = [title for title, note in notes if note.startswith("The released scripts give another figure, because")]
    assert released == ["VQAv2 val"]


def test_tables_follow_the_paper_and_name_its_models() -> None:
    tables = {table.key: table for table in tables_of(small_sweep())}
    assert list(tables) == ["4", "5", "7", ""]
    assert tables["4"].models == ("Qwen-VL", "Qwen-VL-Chat") and tables[""].models == ()
    assert [line.title for line in tables["7"].lines[::2]] == [
        "SEED-Bench",
        "SEED-Bench · image",
        "SEED-Bench · video",
        "MME",
        "MME · perception",
        "MME · OCR",
    ]
    image = tables["7"].lines[2]
    assert image.paper == BENCHMARKS["seed_bench"].paper_figures["image"] != {}


def test_halves_of_chartqa_are_joined_for_each_checkpoint_that_was_asked_both() -> None:
    entries = [each for each in small_sweep() if (each.benchmark, each.step) != ("chartqa_test_human", 1000)]
    (table,) = (table for table in tables_of(entries) if table.key == "5")
    lines = [line for line in table.lines if line.title == "ChartQA test"]
    assert [(line.checkpoint, line.paper["Qwen-VL"]) for line in lines] == [("step2000", 65.7)]
    assert lines[0].figure is not None and lines[0].figure.value == pytest.approx(0.512)
    assert lines[0].comparison is not None and lines[0].comparison.value == pytest.approx(0.012)


def test_a_benchmark_asked_in_another_way_has_lines_and_no_figure_of_the_paper() -> None:
    plain = entry("okvqa_val", "vqa_accuracy", 0.5)
    shown = dataclasses.replace(plain, shots=4, label="okvqa_4")
    usual = dataclasses.replace(plain, shots=4, label="okvqa_val_4_shots", leak=True)
    prompt = dataclasses.replace(plain, prompt="<img>{question}", label="bare")
    (table,) = tables_of([plain, shown, usual, prompt])
    titles = ["OKVQA val", "OKVQA val, 4-shot (okvqa_4)", "OKVQA val, 4-shot with leaks", "OKVQA val (bare)"]
    assert [line.title for line in table.lines] == titles
    assert [bool(line.paper) for line in table.lines] == [True, False, False, True]
    assert list(table.columns) == ["OKVQA val", "OKVQA val (bare)"]
    assert [title for title, note in table.notes if "exemplars may" in note.lower()] == titles[2:3]


def test_few_shot_lines_alone_have_no_overview() -> None:
    shown = dataclasses.replace(entry("okvqa_val", "vqa_accuracy", 0.5), shots=4)
    assert [token.type for token in PARSER.parse(tables_as_markdown([shown]))].count("table_open") == 1


def test_the_judge_of_open_answers_is_named() -> None:
    silent = entry("touchstone_en", "", 0.0)
    scored = dataclasses.replace(entry("touchstone_cn", "touchstone", 4.0), judge="a | judge")
    (table,) = tables_of([silent, scored])
    judges = [note for _, note in table.notes if note.startswith(("The judge is", "No judge"))]
    assert judges == ["No judge has scored the answers yet (--judge).", "The judge is a | judge."]
    assert "The judge is a \\| judge." in tables_as_markdown([scored])


def test_every_table_of_a_benchmark_has_a_title() -> None:
    assert {benchmark.table for benchmark in BENCHMARKS.values()} <= set(TITLES)


@pytest.mark.parametrize(
    ("p", "text"), [(0.03, "0.03"), (0.00001, "< 0.0001"), (1.0, "1"), (0.123456, "0.12"), (None, "–")]
)
def test_p_is_written_shortly(p: float | None, text: str) -> None:
    assert numbers.p_value(Comparison(0.1, 100.0, 9, 9, 0, p=p)) == text


def test_the_papers_numbers_are_written_as_it_prints_them() -> None:
    values = (79.5, 89.36, 1487.58, 360.71, 645.2, 50.7)
    assert [numbers.of_paper(value) for value in values] == ["79.5", "89.36", "1487.58", "360.71", "645.2", "50.7"]


HOSTILE = st.text(
    st.sampled_from("|\\`*_[]()<>!#~$&:/w.-+=\n\r\t\x00\x1b\u202e\u2028\ud800 abc1é漢"), max_size=40
) | st.sampled_from(
    ["<script>alert(1)</script>", "[a](javascript:b)", "www.a.com", "https://a.b", "a | b", "~~a~~", "x" * 999]
)


@given(HOSTILE)
@settings(max_examples=400, deadline=None)
def test_any_name_is_one_text_in_its_cell(name: str) -> None:
    """Judged by markdown-it-py, which shows what the source means."""
    shown = f"a{name}"
    tokens = PARSER.parse(f"| head | other |\n| --- | ---: |\n| {escaped(shown)} | 2 |\n")
    kinds = [token.type for token in tokens]
    assert kinds.count("td_open") == 2 and kinds.count("tr_open") == 2 and kinds[0] == "table_open"
    inline = tokens[kinds.index("td_open") + 1]
    children = inline.children or []
    assert {child.type for child in children} <= {"text", "text_special", "softbreak"}
    text = "".join(child.content for child in children)
    assert len(text) <= LONGEST
    safe = "".join(character for character in name if character not in "\n\r\t\x00\x1b\u202e\u2028\ud800")
    if safe == name and len(shown) <= LONGEST:
        assert text == " ".join(shown.split())


def test_a_huge_hostile_sweep_stays_small() -> None:
    entries = [dataclasses.replace(each, label="|" * 100_000, checkpoint="\n# " * 50_000) for each in small_sweep()]
    text = tables_as_markdown(entries)
    assert len(text) < 60_000
    kinds = [token.type for token in PARSER.parse(text)]
    assert kinds.count("table_open") == 2 * len(tables_of(entries))


def test_figures_without_interval_are_dashes() -> None:
    assert numbers.interval(None) == numbers.score(None) == numbers.with_count(None) == "–"
    assert numbers.change(Comparison(-0.1, 100.0, 9, 9, 0)) == "-10.00"
    assert numbers.smallest(dataclasses.replace(figure(0.5), smallest=None), None) == "–"
