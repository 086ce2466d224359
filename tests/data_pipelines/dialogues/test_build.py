"""Whole runs: counts, shares, the same bytes however a run was ended, and mistakes of a user."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import beam
from data_pipelines.dialogues import build as build_module
from data_pipelines.dialogues import texts
from data_pipelines.dialogues.__main__ import main
from data_pipelines.dialogues.job import record_folders
from data_pipelines.dialogues.picture import TASKS
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from tests.data_pipelines.dialogues.conftest import Small, write_folders
from tests.support.commands import ROOT


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(small: Small, run: Any, job: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run without interruption."""
    output = tmp_path_factory.mktemp("finished") / "set"
    run(job(small, output))
    return output


def test_the_manifest_counts_the_written_records(finished: Path, small: Small) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    records = list(RecordReader(finished, verify=True))
    extra = manifest["extra"]
    assert sum(extra["dialogues"]["ways"].values()) == len(records) == manifest["splits"]["train"]["records"]
    assert len({record.id for record in records}) == len(records)
    images = [image for record in records for image in record.images]
    assert sorted(images) == sorted(truth.image for truth in small.pictures)  # each picture once in the whole set
    assert extra["dialogues"]["pictures"]["0"] == extra["dialogues"]["ways"]["text"]
    assert extra["dialogues"]["kinds"]["text"] / len(records) == pytest.approx(0.25, abs=0.02)
    assert (finished / "failed.jsonl").read_text() == ""
    for record in records:
        training_pieces(check_record(record))
    assert not (finished.parent / ".set.work").exists()


def test_languages_are_those_of_the_pictures(finished: Path, small: Small) -> None:
    language_of = {truth.image: truth.language for truth in small.pictures}
    for record in RecordReader(finished):
        assert {language_of[image] for image in record.images} <= {record.language}


def test_a_finished_set_is_left_alone_until_an_input_changes(
    finished: Path, small: Small, run: Any, job: Any, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    run(job(small, finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    folders = write_folders(tmp_path / "records", small.pictures)
    run(job(small, tmp_path / "set", records=tuple(folders)))
    assert contents(tmp_path / "set") == contents(finished)  # the same contents under other names
    fewer = write_folders(tmp_path / "records", small.pictures[:60])
    run(job(small, tmp_path / "set", records=tuple(fewer)))
    images = [image for record in RecordReader(tmp_path / "set") for image in record.images]
    assert sorted(images) == sorted(truth.image for truth in small.pictures[:60])


class KilledError(BaseException):
    pass


def test_ended_between_any_two_writes_it_continues_to_the_same_bytes(
    finished: Path, small: Small, run: Any, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    write_bytes = storage.write_bytes
    writes = 0

    def counted(path: Any, payload: bytes) -> None:
        nonlocal writes
        writes -= 1
        if writes < 0:
            raise KilledError
        write_bytes(path, payload)

    ended = 0
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", counted)
        for _ in range(8):
            writes = draw.randint(0, 12)
            try:
                run(job(small, tmp_path / "set"))
            except KilledError:
                ended += 1
    assert ended
    run(job(small, tmp_path / "set"))
    assert contents(tmp_path / "set") == contents(finished)


def test_count_and_passes(small: Small, run: Any, job: Any, tmp_path: Path) -> None:
    assert run(job(small, tmp_path / "few", count=40))["splits"]["train"]["records"] == 40
    with pytest.raises(UserError, match="raise --passes"):
        run(job(small, tmp_path / "many", count=150, text_share=0.1))
    assert run(job(small, tmp_path / "many", count=150, text_share=0.1, passes=4))["splits"]["train"]["records"] == 150
    with pytest.raises(UserError, match="text dialogues"):
        run(job(small, tmp_path / "texts", count=100, text_share=0.9))


def test_folders_of_others_are_never_overwritten(small: Small, run: Any, job: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="choose another --output"):
        run(job(small, tmp_path))
    with pytest.raises(UserError, match="is an input"):
        run(job(small, Path(small.records[0])))
    with pytest.raises(UserError, match="choose another --output"):
        run(job(small, Path(small.folder)))


def test_subfolders_of_an_output_of_the_pipelines_are_used(small: Small, tmp_path: Path) -> None:
    write_folders(tmp_path / "corpus", small.pictures[:5])
    (tmp_path / "corpus" / "manifest.json").write_text("{}")
    folders = record_folders(str(tmp_path / "corpus"), "train", TASKS)
    assert [Path(folder).name for folder in folders] == ["caption", "grounded_caption", "ocr", "ref_grounding", "vqa"]
    with pytest.raises(UserError, match="no records of the split"):
        record_folders(str(tmp_path / "corpus"), "test", TASKS)


def test_texts_are_continued_at_the_end_of_a_sentence() -> None:
    text = "One is here. Two is here. Three is here."
    record = texts.text_dialogue(Record("1", "text", "lore", "en", "MIT", (), {"text": text}), 7, "0")
    assert record is not None
    turns: Any = record.content
    question, answer = (turn["parts"][0]["text"] for turn in turns["turns"])
    assert question.endswith("\nOne is here. Two is here.") or question.endswith("\nOne is here.")
    assert text.endswith(answer)
    assert record.id == "dialogue-00000007"
    one = Record("1", "text", "lore", "en", "MIT", (), {"text": "No end"})
    assert texts.text_dialogue(one, 0, "0") is None


def test_dialogues_in_json_become_a_record_folder_once(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]},
        {"id": "b", "conversations": "broken"},
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = texts.staged(str(tmp_path), "qwen_vl_dialogues", "train", tmp_path / "staged")
    assert len(RecordReader(folder)) == 1
    assert texts.staged(str(tmp_path), "qwen_vl_dialogues", "train", tmp_path / "staged") == folder
    (tmp_path / "texts.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(UserError, match="malformed dialogue"):
        texts.staged(str(tmp_path), "qwen_vl_dialogues", "train", tmp_path / "staged")


def test_mistakes_in_flags_end_with_one_sentence(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = f"--records={small.folder / 'caption'}"
    output = f"--output={tmp_path / 'set'}"
    lines = [
        [records],
        [output, records, "--weights=wheree=2"],
        [output, records, "--endpoint=https://a.example/v1"],
        [output, records, "--endpoint=ftp://a.example/v1", "--model=m"],
        [output, records, "--endpoint=https://a:b@a.example/v1", "--model=m"],
        [output, records, "--endpoint=http://a.example/v1", "--model=m", "--key_variable=HOME"],
        [output, records, "--endpoint=https://a.example/v1", "--model=m", "--key_variable=NOT_SET_HERE"],
        [output, records, "--budget=3"],
        [output, records, "--text_share=1"],
        [output, records, "--temperature=nan"],
        [output, f"--records={tmp_path / 'nothing'}"],
        [output, records, "--unknown=3"],
    ]
    expected = ["--output", "did you mean 'where'", "--model", "https://", "password", "unencrypted", "NOT_SET_HERE"]
    expected += ["--input_price", "--text_share", "--temperature", "does not exist", "unknown flag"]
    for arguments, words in zip(lines, expected, strict=True):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ") and words in line, (arguments, line)


def test_an_input_that_is_written_again_during_a_run_is_noticed(
    small: Small, run: Any, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = write_folders(tmp_path / "records", small.pictures[:30])
    planned = build_module.planned

    def planned_late(*arguments: Any) -> Any:
        write_folders(tmp_path / "records", small.pictures[:40])
        return planned(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "planned", planned_late)
        with pytest.raises(UserError, match="written again"):
            run(job(small, tmp_path / "set", records=tuple(folders)))
    assert not (tmp_path / "set").exists()
    run(job(small, tmp_path / "set", records=tuple(folders)))
    images = [image for record in RecordReader(tmp_path / "set") for image in record.images]
    assert sorted(images) == sorted(truth.image for truth in small.pictures[:40])


def test_the_shards_on_an_object_store_are_those_on_a_disk(
    finished: Path, small: Small, run: Any, job: Any, gcs: str
) -> None:
    folders = [f"{gcs}/{Path(folder).name}" for folder in [*small.records, small.texts]]
    for folder, source in zip(folders, [*small.records, small.texts], strict=True):
        for name in storage.files_below(source):
            storage.write_bytes(f"{folder}/{name}", storage.read_bytes(f"{source}/{name}"))
    made = job(small, Path("x"), records=tuple(folders[:-1]), texts=(folders[-1],))
    run(dataclasses.replace(made, output=f"{gcs}/set", replies=f"{gcs}/replies"))
    written = {name: storage.read_bytes(f"{gcs}/set/{name}") for name in storage.files_below(f"{gcs}/set")}
    assert set(written) == set(contents(finished))
    for name in ("manifest.json", *(name for name in written if ".array_record" in name)):
        assert written[name] == (finished / name).read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_and_with_other_workers_it_gives_the_same_bytes(
    small: Small, job: Any, tmp_path: Path
) -> None:
    flags = [f"--records={','.join(small.records)}", f"--text={small.texts}", "--passes=3", "--dialogues_per_shard=8"]
    main([*flags, f"--output={tmp_path / 'whole'}", "--workers=1"])
    command = [sys.executable, "-m", "data_pipelines.dialogues", *flags, f"--output={tmp_path / 'killed'}"]
    draw = random.Random(1)
    for _ in range(4):
        process = subprocess.Popen(
            [*command, "--workers=2"], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True, env={**os.environ}
        )
        time.sleep(draw.uniform(3, 9))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--workers=2"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_temporary_files_of_killed_runs_are_not_published(
    small: Small, run: Any, job: Any, finished: Path, tmp_path: Path
) -> None:
    made = job(small, tmp_path / "set")
    left = made.building / ".dialogues-train.array_record-00000-of-00003.1.0a1b2c3d.tmp"
    storage.write_bytes(left, b"half")
    run(made)
    assert contents(tmp_path / "set") == contents(finished)


def test_another_run_on_the_same_output_is_refused(small: Small, job: Any, tmp_path: Path) -> None:
    made = job(small, tmp_path / "set")
    with build_module.locked(made.work, "first"), pytest.raises(UserError, match="another run works"):
        build_module.build(made, beam.options([], 1))
