"""All reports of a folder of predictions: sound pages, whatever records and answers contain."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import Config, to_dict
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking
from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig
from qwenvl_jax.evaluation.report.everything import write_reports
from qwenvl_jax.evaluation.report.tables_page import tables_page
from qwenvl_jax.evaluation.results import answers
from qwenvl_jax.evaluation.results.collected import collect
from qwenvl_jax.evaluation.results.entries import RESULTS, read_results
from qwenvl_jax.evaluation.results.figures import figures_of
from qwenvl_jax.evaluation.results.layout import read_config
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.samples import noise


class Checked(html.parser.HTMLParser):
    """Checks that elements close in order; collects elements, addresses and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def records(corpus: str, questions: Sequence[dict[str, Any]], images: int = 1) -> list[Record]:
    """One record per question, with pictures of 40 x 24 pixels."""
    made = []
    for number, question in enumerate(questions):
        content: Any = {"questions": [{"id": f"{corpus} {number}"} | question]}
        if "box" in question:
            content |= {"width": 40, "height": 24}
        pictures = tuple(noise(number + 100 * image) for image in range(images))
        made.append(Record(f"{corpus}/{number}", "evaluation", corpus, "en", "CC0-1.0", pictures, content))
    return made


def answer_all(config: EvalConfig, checkpoint: str, item: BenchmarkConfig, asked: list[Record], text: str) -> None:
    """Writes predictions as a sweep does: every second answer is right, the others are `text`."""
    rows: list[dict[str, Any]] = []
    for number, record in enumerate(asked):
        for question in item.benchmark.questions(record, Asking()):
            truth = question.about["truth"]
            right = truth.get("answers", ["(100,100),(500,500)</box>"])[0]
            row = item.benchmark.read(right if number % 2 else text, question.about)
            rows.append({"id": question.id, "record": record.id, "cluster": record.id, "tokens": 3, **row})
    folder = storage.path(config.output) / "predictions" / checkpoint
    missing = [{"id": "lost", "why": text}]
    summary = {"questions": len(rows) + 1, "tokens": 3 * len(rows), "scores": {}, "seconds": 1.5, "unanswered": missing}
    answers.finish(folder, item.label, "settings", rows, summary | {"step": 7, "fingerprint": ""})


def evaluated(config: Config, root: Path, text: str) -> Path:
    """A folder of a sweep over four benchmarks and two checkpoints, in which foreign texts are `text`."""
    asked = {
        "okvqa_val": records("okvqa", [{"text": text, "answers": [*["net"] * 9, text]} for _ in range(6)]),
        "refcoco_val": records("refcoco", [{"text": text, "box": [4, 2, 20, 12]} for _ in range(6)]),
        "seed_bench": records(
            "seed_bench",
            [{"text": text, "options": ["cat", text, "net", "hat"], "right": 2, "category": text} for _ in range(6)],
            images=2,
        ),
        "vqav2_testdev": records("vqav2", [{"text": text} for _ in range(2)]),
    }
    for name, some in asked.items():
        write_records(root / name, {"test": some}, name="tests")
    benchmarks = tuple(BenchmarkConfig(name, str(root / name), "test") for name in asked)
    checkpoints = tuple(CheckpointConfig(name, str(root / "runs/stage2"), 28, 7) for name in ("first", "second"))
    output = root / "output"
    settings_ = EvalConfig(checkpoints, config.tokenizer, benchmarks, 4, "released", str(output))
    for checkpoint in checkpoints:
        for item in benchmarks:
            answer_all(settings_, checkpoint.name, item, asked[item.name], text)
    artifacts.write_json(output / "evaluation.json", to_dict(settings_))
    return output


def test_one_command_makes_tables_pages_and_scalars(config: Config, tmp_path: Path) -> None:
    output = evaluated(config, tmp_path, "a dog (250,250),(500,500)")
    written = write_reports(output)
    assert [path.name for path in written] == ["tables.html", "tables.md", "tensorboard"]
    page = Checked((output / "tables.html").read_text())
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    for text in ("OKVQA val", "58.6", "Table 6", "SEED-Bench", "Only a server knows", "right", "wrong", "C. net"):
        assert text in page.text
    # Three right and three wrong answers of three benchmarks, and two whose truth is hidden.
    assert page.elements.count("figure") == 20
    shown = (output / "tables.html").read_text()
    assert len(re.findall(r'class="region dashed"', shown)) == 6  # the true boxes
    assert shown.count("Not answered") >= 1 and "of 7, first lost" in page.text
    entry = read_results(storage.path(output))[0]
    assert (entry.questions, entry.unanswered, entry.step, entry.tokens) == (7, 1, 7, 18)
    assert "OKVQA val" in (output / "tables.md").read_text()


def test_results_are_made_anew_if_predictions_change(config: Config, tmp_path: Path) -> None:
    output = evaluated(config, tmp_path, "x")
    write_reports(output)
    first = (output / RESULTS).stat().st_mtime_ns
    write_reports(output)
    assert (output / RESULTS).stat().st_mtime_ns == first
    folder = output / "predictions/first"
    rows = answers.read_rows(storage.path(folder), "okvqa_val")
    before = figures_of(BENCHMARKS["okvqa_val"], rows)["vqa_accuracy"].value
    better = [row | {"prediction": "net"} for row in rows]
    summary = json.loads((folder / "okvqa_val.json").read_text())
    answers.finish(storage.path(folder), "okvqa_val", "settings", better, summary)
    write_reports(output)
    entry = read_results(storage.path(output))[0]
    assert entry.figures["vqa_accuracy"].value > before * 6 / 7
    assert entry.checkpoint == "first" and entry.comparisons == {}


def test_a_damaged_file_of_predictions_is_left_out_and_named(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = evaluated(config, tmp_path, "x")
    (output / "predictions/second/refcoco_val.jsonl").write_text("{}")
    write_reports(output)
    labels = {(entry.checkpoint, entry.label) for entry in read_results(storage.path(output))}
    assert ("first", "refcoco_val") in labels and ("second", "refcoco_val") not in labels
    said = "".join("".join(capsys.readouterr()).split())
    assert "second/refcoco_val.jsonlwaschangedordamaged" in said and "first/refcoco_val.jsonlwas" not in said


def test_reasons_of_a_file_that_was_changed_are_not_shown(config: Config, tmp_path: Path) -> None:
    """Entries made before the change are shown, but nothing more is read from the file."""
    output = storage.path(evaluated(config, tmp_path, "x"))
    entries = collect(read_config(output), output / "predictions")
    before = tables_page(read_config(output), output / "predictions", entries)
    rows = output / "predictions/second/refcoco_val.jsonl"
    rows.write_text(rows.read_text() + rows.read_text().splitlines(keepends=True)[0])
    after = tables_page(read_config(output), output / "predictions", entries)
    assert (before.count("first lost: x"), after.count("first lost: x")) == (8, 7)


def test_tables_need_no_records(config: Config, tmp_path: Path) -> None:
    output = evaluated(config, tmp_path, "x")
    storage.remove(storage.path(tmp_path / "okvqa_val"))
    write_reports(output)
    page = Checked((output / "tables.html").read_text())
    assert page.elements.count("figure") == 14 and "OKVQA val" in page.text


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no evaluation\.json"):
        write_reports(tmp_path)


HOSTILE = st.text(st.sampled_from("<>&\"'/=` \nabscript!-[]{}|\u2028\x85\u202e\x00é"), min_size=1, max_size=12).map(
    lambda text: f"<script>{text}</script><img src=x onerror='{text}'>\"'&amp;|\n# {text}"
)


@given(HOSTILE)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_becomes_part_of_a_page(config: Config, tmp_path: Path, text: str) -> None:
    output = evaluated(config, tmp_path, text)
    write_reports(output)
    document = (output / "tables.html").read_text()
    page = Checked(document)
    assert not {"script", "img", "iframe"} & set(page.elements) and "onerror" not in page.attributes
    assert "<script>" in page.text
    assert not re.search("[\x00\u202e\u2028]", document)


def test_huge_answers_are_cut(config: Config, tmp_path: Path) -> None:
    output = evaluated(config, tmp_path, "long " * 20_000)
    write_reports(output)
    assert (output / "tables.html").stat().st_size < 600_000
    assert (output / "tables.md").stat().st_size < 20_000


def test_the_examples_of_all_checkpoints_are_about_the_same_records(config: Config, tmp_path: Path) -> None:
    output = evaluated(config, tmp_path, "x")
    write_reports(output)
    second = re.findall(r'href="(data:[^"]+)"', (output / "tables.html").read_text())
    stored = json.loads((output / "evaluation.json").read_text())
    stored["checkpoints"] = stored["checkpoints"][::-1]
    artifacts.write_json(output / "evaluation.json", stored)
    write_reports(output)
    assert re.findall(r'href="(data:[^"]+)"', (output / "tables.html").read_text()) == second
    assert dataclasses.asdict(read_results(storage.path(output))[0])["checkpoint"] == "second"
