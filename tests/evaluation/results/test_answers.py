"""A sweep that is interrupted, and records and pictures that cannot be read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from qwenvl_jax.config import Config
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.evaluation import sweep as sweep_module
from qwenvl_jax.evaluation.asking import questions
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking
from qwenvl_jax.evaluation.benchmarks.held_out.registry import HELD_OUT
from qwenvl_jax.evaluation.config import BenchmarkConfig, EvalConfig
from qwenvl_jax.evaluation.report.page import write_report
from qwenvl_jax.evaluation.results import answers
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation import samples
from tests.evaluation.killed import kill_after_the_first_part
from tests.evaluation.samples import record_of, rows_of, vqa_record


def settings(config: Config, checkpoint: Path, output: Path, folder: Path, **task: Any) -> EvalConfig:
    """The checkpoint is asked all records of a folder; `task` changes keys of the task's config."""
    asked = dataclasses.replace(BenchmarkConfig("vqa", str(folder), "train", 0, 4, 1), label="", **task)
    return samples.eval_config(config, checkpoint, output, asked)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    write_records(tmp_path / "many", {"train": [vqa_record(k) for k in range(30)]}, name="many")
    return tmp_path / "many"


def test_memory_does_not_grow_with_the_benchmark(
    many: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the questions that were taken, a few are prepared, and no others."""

    class Counting(RecordReader):
        read = 0

        def __getitem__(self, index: int) -> Record:
            Counting.read += 1
            return super().__getitem__(index)

    monkeypatch.setattr(questions, "AHEAD", 6)
    reader = Counting(many)
    question_set = questions.QuestionSet(HELD_OUT["vqa"], reader, range(len(reader)), tokenizer, Asking("training"))
    Counting.read = 0
    asked = question_set.prepared(range(len(question_set)), 4, 28, 256)
    assert isinstance(asked, Generator)
    for done in range(1, 13):
        assert next(asked).request is not None
        time.sleep(0.02)
        assert done <= Counting.read <= done + questions.AHEAD
    asked.close()


def write_part(folder: Path, content: Any) -> None:
    """A file of answers that is named after its content, as whole ones are."""
    payload = json.dumps(content).encode()
    folder.mkdir(exist_ok=True)
    (folder / f"{hashlib.sha256(payload).hexdigest()[:32]}.json").write_bytes(payload)


def test_the_answers_do_not_depend_on_how_often_a_sweep_was_interrupted(
    config: Config, checkpoint: Path, many: Path, tmp_path: Path
) -> None:
    """Killed after its first answers, with a damaged part and one of another sweep; answers are not asked again."""
    sweep(settings(config, checkpoint, tmp_path / "whole", many))
    interrupted = settings(config, checkpoint, tmp_path / "parts", many)
    folder = tmp_path / "parts/predictions/a/vqa.parts"
    kill_after_the_first_part(interrupted, folder, tmp_path)
    assert not (tmp_path / "parts/scores.json").exists()

    (of_settings,) = folder.iterdir()
    first_path = next(of_settings.glob("*.json"))
    ((marked_key, _, *rest), *others) = json.loads(first_path.read_text())
    assert len(others) < 29
    write_part(of_settings, [(marked_key, "marked", *rest)])  # to recognise it later
    first_path.unlink()
    write_part(folder / "another", [(marked_key, "of another checkpoint", *rest)])
    (of_settings / f"{64 * '0'}.json").write_text("half of a p")

    scores = sweep(interrupted)
    assert scores == json.loads((tmp_path / "parts/scores.json").read_text())
    assert [path.name for path in folder.iterdir()] == ["another"]  # nothing is lost
    rows = rows_of(tmp_path / "parts")
    (marked,) = [number for number, row in enumerate(rows) if row["prediction"] == "marked"]
    assert rows[marked]["key"] == marked_key
    expected = rows_of(tmp_path / "whole")
    expected[marked] |= {"prediction": "marked", "raw": "marked"}
    assert rows == expected


def test_a_full_disk_keeps_what_was_answered(
    config: Config, checkpoint: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system refuses files above a size: one error, whole files, and the next run goes on."""
    monkeypatch.setattr(answers, "PART_SECONDS", 0.0)
    output = settings(config, checkpoint, tmp_path / "full", many)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # a part has room, all answers have not
    try:
        with pytest.raises(OSError, match="large"):
            sweep(output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    folder = tmp_path / "full/predictions/a"
    assert [path.name for path in folder.iterdir()] == ["vqa.parts"]
    kept = [row for path in folder.glob("vqa.parts/*/*.json") for row in json.loads(path.read_text())]
    assert len(kept) == 30
    sweep(output)
    sweep(settings(config, checkpoint, tmp_path / "whole", many))
    assert rows_of(tmp_path / "full") == rows_of(tmp_path / "whole")


def damage_a_record(folder: Path) -> int:
    """Flips a bit in the first record of a shard; returns its index."""
    (shard,) = folder.glob("*.array_record*")
    content = bytearray(shard.read_bytes())
    content[700] ^= 64
    shard.write_bytes(content)
    return 0


def test_what_cannot_be_read_is_named_and_counts_as_wrong(config: Config, checkpoint: Path, tmp_path: Path) -> None:
    """A record with a flipped byte, and a JPEG that is cut in half, among others that are answered as before."""
    records = [vqa_record(number) for number in range(16)]
    write_records(tmp_path / "good", {"train": records}, name="good")
    payload = records[11].images[0]
    records[11] = dataclasses.replace(records[11], images=(payload[: len(payload) // 2],))
    write_records(tmp_path / "bad", {"train": records}, name="bad")
    lost = damage_a_record(tmp_path / "bad")
    assert lost != 11
    sweep(settings(config, checkpoint, tmp_path / "a", tmp_path / "good"))
    scores = sweep(settings(config, checkpoint, tmp_path / "b", tmp_path / "bad"))

    good = {row["id"]: row for row in rows_of(tmp_path / "a")}
    bad = {row["id"]: row for row in rows_of(tmp_path / "b")}
    assert set(good) - set(bad) == {f"vqa-{lost}"}
    cut = bad.pop("vqa-11")
    assert cut["exact"] == 0.0
    assert cut["prediction"] == ""
    assert "not a readable image" in cut["unanswered"]
    assert bad == {name: good[name] for name in bad}

    summary = json.loads((tmp_path / "b/predictions/a/vqa.json").read_text())
    assert summary["questions"] == 16
    assert [entry["id"] for entry in summary["unanswered"]] == [f"record {lost}", "vqa-11"]
    assert scores["a"]["unanswered"]["vqa"] == {"questions": 2, "first": summary["unanswered"]}
    assert "unanswered" not in json.loads((tmp_path / "a/scores.json").read_text())["a"]

    page = write_report(tmp_path / "b").read_text()
    for text in ("2 questions could not be asked", f"record {lost}", "vqa-11", "This picture cannot be read"):
        assert text in page


def test_a_lost_record_lowers_every_figure() -> None:
    """With two right answers and two records that cannot be read, half of the questions are right."""
    item = BenchmarkConfig("vqa", "", "train", 0, 4, 1)
    row = HELD_OUT["vqa"].read("net", {"question": "?", "answers": ["net"]})
    rows = [row | {"id": str(number)} for number in range(2)]
    assert sweep_module.scores_of(item, rows, 0)["vqa_acc"] == 1.0
    assert sweep_module.scores_of(item, rows, 2)["vqa_acc"] == 0.5


@pytest.mark.parametrize("name", list(HELD_OUT))
def test_what_is_not_answered_scores_nothing(name: str) -> None:
    """Even where the empty answer would be right: a truth of punctuation and articles."""
    truths: dict[str, dict[str, Any]] = {
        "ref_grounding": {"phrase": "it", "box": [1, 1, 9, 9], "width": 10, "height": 10},
        "ocr": {"lines": ["ab"], "width": 10, "height": 10},
        "vqa": {"question": "?", "answers": ["", "."]},
        "caption": {"references": ["the net"]},
        "dialogue": {"truth": "The.", "turn": 1},
    }
    row = HELD_OUT[name].unanswered(truths[name])
    other = {"prediction": "a b c d", "references": ["a b c d"]} if name == "caption" else row
    figures = HELD_OUT[name].score([row])
    assert figures and all(scores.aggregate == 0.0 for scores in figures.values()), figures
    assert HELD_OUT[name].score([row, other])  # and does not break the others


def refused(
    config: Config,
    checkpoint: Path,
    tmp_path: Path,
    records: list[Record],
    match: str,
    task: str = "vqa",
    **changes: Any,
) -> None:
    write_records(tmp_path / "records", {"train": records}, name="records")
    output = settings(config, checkpoint, tmp_path / "output", tmp_path / "records", name=task, **changes)
    with pytest.raises(UserError, match=match):
        sweep(output)
    assert not (tmp_path / "output").exists()


def test_records_of_another_task_are_refused_before_anything_is_asked(
    config: Config, checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    output = settings(config, checkpoint, tmp_path / "output", tiny_data / "caption")
    with pytest.raises(
        UserError, match=r"record 'caption-0' of .*caption is one of the task 'caption', which the benchmark"
    ):
        sweep(output)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "answers,message",
    [
        (
            [{"answr": "net"}],
            r"record 'vqa-1' of .*records cannot be scored: its answer {'answr': 'net'} is not a text",
        ),
        ([True], "its answer True is not a text"),
        ([2.0], "its answer 2.0 is not a text"),
        ([["net"]], r"its answer \['net'\] is not a text"),
    ],
)
def test_answers_in_an_unknown_form_are_refused_before_anything_is_asked(
    config: Config, checkpoint: Path, tmp_path: Path, answers: Any, message: str
) -> None:
    records = [vqa_record(0), vqa_record(1, answers=answers)]
    refused(config, checkpoint, tmp_path, records, message)


def test_boxes_that_no_answer_can_meet_are_refused_before_anything_is_asked(
    config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    content = {"phrase": "it", "box": [9, 9, 1, 1], "width": 40, "height": 24}
    record = record_of("ref_grounding", content)
    refused(config, checkpoint, tmp_path, [record], "inverted or empty", task="ref_grounding")


def test_a_set_of_which_nothing_can_be_read_is_refused(config: Config, checkpoint: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "one", {"train": [vqa_record(0)]}, name="one")
    damage_a_record(tmp_path / "one")
    with pytest.raises(UserError, match=r"no record of .*one can be read, the first because of"):
        sweep(settings(config, checkpoint, tmp_path / "output", tmp_path / "one"))


def test_the_figures_of_other_settings_never_vouch_for_new_answers(
    config: Config, checkpoint: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the answers and their figures: the older figures are gone, the answers are kept in parts."""
    output = settings(config, checkpoint, tmp_path / "output", many)
    sweep(output)
    changed = dataclasses.replace(output, prompt_style="released")
    write = answers.artifacts.write_json

    def killed(path: Path, value: Any) -> None:
        if Path(path).name == "vqa.json":
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(answers.artifacts, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(changed)
    monkeypatch.undo()
    folder = tmp_path / "output/predictions/a"
    assert not (folder / "vqa.json").exists()
    assert sweep(output) == sweep(output)
    assert json.loads((folder / "vqa.json").read_text())["questions"] == 30


def test_a_picture_of_another_size_than_its_record_says_counts_as_wrong(
    config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    """A camera's turning is not applied, so that its boxes would lie elsewhere."""

    def asked(width: int, height: int) -> Record:
        content = {"phrase": "it", "box": [1, 1, 9, 9], "width": width, "height": height}
        return record_of("ref_grounding", content, name=f"{width}")

    write_records(tmp_path / "r", {"train": [asked(40, 24), asked(24, 40)]}, name="r")
    scores = sweep(settings(config, checkpoint, tmp_path / "output", tmp_path / "r", name="ref_grounding"))
    (missing,) = scores["a"]["unanswered"]["ref_grounding"]["first"]
    assert missing["id"] == "24" and "40 x 24 pixels (EXIF rotation is not applied)" in missing["why"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"fingerprint": "m"}', '{"fingerprint": "m", "scores": [1]}', "[" * 9999]
)
def test_a_damaged_summary_or_part_is_made_again(content: str, tmp_path: Path) -> None:
    whole = answers.Answer("k", "a", 1)
    with answers.Answers(tmp_path, "vqa", "m") as first:
        first.add(whole)
    parts = tmp_path / "vqa.parts" / "m"
    (parts / "00000007.json").write_text(content)
    write_part(parts, json.loads(content) if content.startswith("{") else [["k", "b"], 5])
    assert answers.Answers(tmp_path, "vqa", "m").known == {"k": whole}
    rows = [{"id": "1", "key": "k", "raw": "a", "tokens": 1}]
    answers.finish(tmp_path, "vqa", "m", rows, {"scores": {"vqa_acc": 0.5}, "fingerprint": "m"})
    assert answers.Answers(tmp_path, "vqa", "m").known == {"k": whole}
    assert answers.Answers(tmp_path, "vqa", "of another checkpoint").known == {}
    summary = answers.finished(tmp_path, "vqa", "m")
    assert summary is not None
    assert summary["scores"] == {"vqa_acc": 0.5}
    (tmp_path / "vqa.json").write_text(content)
    assert answers.finished(tmp_path, "vqa", "m") is None
