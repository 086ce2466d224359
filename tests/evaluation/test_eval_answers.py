"""A sweep that is interrupted, and records and pictures that cannot be read."""

import dataclasses
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation import answers, questions
from qwenvl_jax.evaluation.config import CheckpointConfig, EvalConfig, TaskConfig
from qwenvl_jax.evaluation.report.page import write_report
from qwenvl_jax.evaluation.sweep import sweep
from qwenvl_jax.evaluation.tasks.registry import TASKS
from qwenvl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def picture(seed: int = 0, **save) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, **{"format": "JPEG", **save})
    return buffer.getvalue()


def vqa_record(k: int, **changes) -> Record:
    content = {"question": f"What is {'so ' * (k % 5)}it?", "answer": "net"}
    return Record(f"vqa-{k}", "vqa", "tests", "en", "CC0-1.0", (picture(k),), content | changes)


def settings(config, checkpoint, output, folder, **task) -> EvalConfig:
    return EvalConfig(
        checkpoints=(CheckpointConfig("a", str(checkpoint), 28),),
        tokenizer=config.tokenizer,
        tasks=(dataclasses.replace(TaskConfig("vqa", str(folder), "train", 0, 4, 1), **task),),
        batch_size=4,
        prompt_style="training",
        output=str(output),
    )


@pytest.fixture
def many(tmp_path):
    write_records(tmp_path / "many", {"train": [vqa_record(k) for k in range(30)]}, name="many")
    return tmp_path / "many"


def rows_of(output: Path, task: str = "vqa") -> list[dict]:
    return [json.loads(line) for line in (output / f"predictions/a/{task}.jsonl").read_text().split("\n") if line]


def test_memory_goes_by_the_batch(many, tokenizer):
    """While one batch is answered, two more are made ready, and no others."""

    class Counting(RecordReader):
        read = 0

        def __getitem__(self, index):
            Counting.read += 1
            return super().__getitem__(index)

    reader = Counting(many)
    opened = questions.QuestionSet(TASKS["vqa"], reader, len(reader), tokenizer, "training")
    Counting.read = 0
    batches = opened.batches([range(k, k + 3) for k in range(0, 30, 3)], 4, 28, lambda number: False)
    for done in range(1, 5):
        assert len(next(batches)) == 3
        time.sleep(0.05)
        assert 3 * done <= Counting.read <= 3 * (done + questions.AHEAD)
    batches.close()


def test_the_answers_do_not_depend_on_how_often_a_sweep_was_interrupted(config, checkpoint, many, tmp_path):
    """Killed after its first answers, and once more by a disk that is full; what is there is not asked again."""
    whole = settings(config, checkpoint, tmp_path / "whole", many)
    sweep(whole)
    parts = settings(config, checkpoint, tmp_path / "parts", many)
    (tmp_path / "settings.json").write_text(json.dumps(dataclasses.asdict(parts)))
    code = (
        "import json, sys; from qwenvl_jax.config import from_config_dict; from qwenvl_jax.evaluation import answers\n"
        "from qwenvl_jax.evaluation.config import EvalConfig; from qwenvl_jax.evaluation.sweep import sweep\n"
        "answers.PART_SECONDS = 0.0\n"
        "sweep(from_config_dict(EvalConfig, json.load(open(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "settings.json")]
    folder = tmp_path / "parts/predictions/a/vqa.parts"
    running = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not (folder.exists() and list(folder.glob("*.json"))):
        assert running.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.002)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / "parts/scores.json").exists()
    first = sorted(folder.glob("*.json"))[0]
    part = json.loads(first.read_text())
    assert 0 < len(part["rows"]) < 30
    part["rows"][0][1]["prediction"] = "marked"  # to know it again
    first.write_text(json.dumps(part))
    (folder / "00000099.json").write_text(json.dumps({**part, "fingerprint": "another", "rows": [[3, {"id": "no"}]]}))
    (folder / "00000098.json").write_text("half of a p")
    scores = sweep(parts)
    assert scores == json.loads((tmp_path / "parts/scores.json").read_text())
    assert not folder.exists()
    expected, found = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    marked = [number for number, row in enumerate(found) if row["prediction"] == "marked"]
    assert marked == [part["rows"][0][0]]
    expected[marked[0]]["prediction"] = "marked"
    assert found == expected


def test_a_full_disk_keeps_what_was_answered(config, checkpoint, many, tmp_path, monkeypatch):
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
    kept = [row for path in folder.glob("vqa.parts/*.json") for row in json.loads(path.read_text())["rows"]]
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


def test_what_cannot_be_read_is_named_and_counts_as_wrong(config, checkpoint, tmp_path):
    """A record with a flipped byte, and a JPEG that is cut at half, among others that answer as before."""
    records = [vqa_record(k) for k in range(16)]
    write_records(tmp_path / "good", {"train": records}, name="good")
    cut = records[11].images[0][: len(records[11].images[0]) // 2]
    records[11] = dataclasses.replace(records[11], images=(cut,))
    write_records(tmp_path / "bad", {"train": records}, name="bad")
    lost = damage_a_record(tmp_path / "bad")
    assert lost != 11
    sweep(settings(config, checkpoint, tmp_path / "a", tmp_path / "good"))
    scores = sweep(settings(config, checkpoint, tmp_path / "b", tmp_path / "bad"))
    good = {row["id"]: row for row in rows_of(tmp_path / "a")}
    bad = {row["id"]: row for row in rows_of(tmp_path / "b")}
    assert set(good) - set(bad) == {f"vqa-{lost}"}
    for name, row in bad.items():
        if name == "vqa-11":
            assert row["exact"] == 0.0 and row["prediction"] == "" and "not a readable image" in row["unanswered"]
        else:
            assert row == good[name]
    missing = json.loads((tmp_path / "b/predictions/a/vqa.json").read_text())
    assert missing["questions"] == 16
    assert [one["id"] for one in missing["unanswered"]] == [f"record {lost}", "vqa-11"]
    assert scores["a"]["unanswered"]["vqa"] == {"questions": 2, "first": missing["unanswered"]}
    assert "unanswered" not in json.loads((tmp_path / "a/scores.json").read_text())["a"]
    page = write_report(tmp_path / "b").read_text()
    assert "2 questions could not be asked" in page and f"record {lost}" in page and "vqa-11" in page
    assert "This picture cannot be read" in page


def test_a_lost_record_lowers_every_figure(config, checkpoint, tmp_path):
    """Of two questions answered right and two records that are none, half are right."""
    from qwenvl_jax.evaluation import sweep as module

    task = TaskConfig("vqa", "", "train", 0, 4, 1)
    rows = [TASKS["vqa"].read("net", {"question": "?", "answers": ["net"]})] * 2
    assert module._figures(rows, TASKS["vqa"], task, 0) == {"vqa_acc": 1.0}
    assert module._figures(rows, TASKS["vqa"], task, 2) == {"vqa_acc": 0.5}


@pytest.mark.parametrize("name", list(TASKS))
def test_what_is_not_answered_scores_nothing(name):
    """Even where the empty answer would be right: a truth of punctuation and articles."""
    about = {
        "ref_grounding": {"phrase": "it", "box": [1, 1, 9, 9], "width": 10, "height": 10},
        "ocr": {"lines": ["ab"], "width": 10, "height": 10},
        "vqa": {"question": "?", "answers": ["", "."]},
        "caption": {"references": ["the net"]},
        "dialogue": {"truth": "The.", "turn": 1},
    }[name]
    row = TASKS[name].unanswered(about)
    other = {"prediction": "a b c d", "references": ["a b c d"]} if name == "caption" else row
    figures = TASKS[name].score([row])
    assert figures and all(value == 0.0 for value in figures.values()), figures
    assert TASKS[name].score([row, other])  # and does not break the others


def refused(config, checkpoint, tmp_path, records, match, task="vqa", **changes):
    write_records(tmp_path / "records", {"train": records}, name="records")
    output = settings(config, checkpoint, tmp_path / "output", tmp_path / "records", name=task, **changes)
    with pytest.raises(UserError, match=match):
        sweep(output)
    assert not (tmp_path / "output").exists()


def test_records_of_another_task_are_refused_before_anything_is_asked(config, checkpoint, tiny_data, tmp_path):
    output = settings(config, checkpoint, tmp_path / "output", tiny_data / "caption")
    with pytest.raises(
        UserError, match=r"record 'caption-0' of .*caption is one of the task 'caption', which the task"
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
    config, checkpoint, tmp_path, answers, message
):
    records = [vqa_record(0), vqa_record(1, answers=answers)]
    refused(config, checkpoint, tmp_path, records, message)


def test_boxes_that_no_answer_can_meet_are_refused_before_anything_is_asked(config, checkpoint, tmp_path):
    content = {"phrase": "it", "box": [9, 9, 1, 1], "width": 40, "height": 24}
    record = Record("r", "ref_grounding", "tests", "en", "CC0-1.0", (picture(),), content)
    refused(config, checkpoint, tmp_path, [record], "inverted or empty", task="ref_grounding")


def test_a_set_of_which_nothing_can_be_read_is_refused(config, checkpoint, tmp_path):
    write_records(tmp_path / "one", {"train": [vqa_record(0)]}, name="one")
    damage_a_record(tmp_path / "one")
    with pytest.raises(UserError, match=r"no record of .*one can be read, the first because of"):
        sweep(settings(config, checkpoint, tmp_path / "output", tmp_path / "one"))


def test_the_figures_of_other_settings_never_vouch_for_new_answers(config, checkpoint, many, tmp_path, monkeypatch):
    """Killed between the answers and their figures: the older figures are gone, the answers are kept in parts."""
    output = settings(config, checkpoint, tmp_path / "output", many)
    sweep(output)
    changed = dataclasses.replace(output, prompt_style="released")

    def killed(path, value):
        if Path(path).name == "vqa.json":
            raise KeyboardInterrupt
        return write(path, value)

    write = answers.artifacts.write_json
    monkeypatch.setattr(answers.artifacts, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(changed)
    monkeypatch.undo()
    folder = tmp_path / "output/predictions/a"
    assert not (folder / "vqa.json").exists()
    assert sweep(output) == sweep(output)
    assert json.loads((folder / "vqa.json").read_text())["questions"] == 30


def test_a_picture_of_another_size_than_its_record_says_counts_as_wrong(config, checkpoint, tmp_path):
    """A camera's turning is not applied, so that its boxes would lie elsewhere."""

    def asked(width: int, height: int) -> dict:
        content = {"phrase": "it", "box": [1, 1, 9, 9], "width": width, "height": height}
        return Record(f"{width}", "ref_grounding", "tests", "en", "CC0-1.0", (picture(),), content)

    write_records(tmp_path / "r", {"train": [asked(40, 24), asked(24, 40)]}, name="r")
    scores = sweep(settings(config, checkpoint, tmp_path / "output", tmp_path / "r", name="ref_grounding"))
    (missing,) = scores["a"]["unanswered"]["ref_grounding"]["first"]
    assert missing["id"] == "24" and "40 x 24 pixels (EXIF rotation is not applied)" in missing["why"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"fingerprint": "m"}', '{"fingerprint": "m", "scores": [1]}', "[" * 9999]
)
def test_a_damaged_summary_or_part_is_made_again(content, tmp_path):
    with answers.Answers(tmp_path, "vqa", "m") as found:
        found.add({0: {"id": "a"}})
    (tmp_path / "vqa.parts" / "00000007.json").write_text(content)
    (tmp_path / "vqa.parts" / "00000008.json").write_text('{"fingerprint": "m", "rows": [[0, 5], {}]}')
    found = answers.Answers(tmp_path, "vqa", "m")
    assert found.rows == {0: {"id": "a"}}
    found.finish({"scores": {"vqa_acc": 0.5}})
    assert answers.finished(tmp_path, "vqa", "m")["scores"] == {"vqa_acc": 0.5}
    (tmp_path / "vqa.json").write_text(content)
    assert answers.finished(tmp_path, "vqa", "m") is None
