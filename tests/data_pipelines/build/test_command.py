"""The command: one sentence for every mistake, a full disk, and what a run says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import beam
from data_pipelines.__main__ import main
from data_pipelines.compose import composers
from data_pipelines.corpora import table
from data_pipelines.recipes import table as recipes
from qwenvl_jax.runtime.errors import UserError
from tests.data_pipelines.build.conftest import one_by_one
from tests.support import small_corpus


@pytest.fixture(autouse=True, scope="module")
def known() -> Iterator[None]:
    """The command knows the small corpus; other tests of the same process do not."""
    tables: tuple[dict[str, Any], ...] = (table.CORPORA, recipes.RECIPES, recipes.ACROSS, composers.COMPOSERS)
    before = [dict(each) for each in tables]
    small_corpus.register()
    yield
    for each, entries in zip(tables, before, strict=True):
        each.clear()
        each.update(entries)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_mistakes_end_with_one_sentence(small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (f"--input={small_folder}", f"--output={tmp_path}/output")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for arguments, words in [
        ((), "name a corpus"),
        (("smalx", *flags), "did you mean 'small'"),
        (("small",), "--input is missing"),
        (("small", flags[0]), "--output is missing"),
        (("small", *flags, "--split=trian"), "did you mean 'train'"),
        (("small", *flags, "--split=x"), "it has train"),
        (("small", *flags, "--worker=2"), "unknown flag --worker"),
        (("small", *flags, "--retri"), "unknown flag --retri"),
        (("small", *flags, "--runner", "DirectRunner"), "unexpected argument"),
        (("small", *flags, "--workers=x"), "invalid int value"),
        (("small", *flags, "--workers=-1"), "must be 0 or more"),
        (("small", *flags, "--retry"), "--retry needs a finished output"),
        (("small", f"--input={tmp_path}/nowhere", flags[1]), "is not there"),
        (("small", f"--input={tmp_path}/empty", flags[1]), "has no files of small"),
        (("small", flags[0], f"--output={small_folder}"), "is the input"),
        (("small", flags[0], f"--output={tmp_path}/mine"), "such as 'thesis.txt'"),
        (("small", flags[0], "--output=/proc/x/y"), "/proc"),
        (("small", flags[0], "--output=s3://bucket/x"), "only local paths and gs://"),
    ]:
        line = refusal(capsys, *arguments)
        assert line.startswith("error: ") and words in line, (arguments, line)
    assert (tmp_path / "mine" / "thesis.txt").exists() and not (tmp_path / "output").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "empty", "mine"]


@pytest.mark.parametrize("name", ["text/thesis.txt", "examples/mine.jsonl", "notes.md"])
def test_folders_with_our_names_and_foreign_files_are_never_removed(
    name: str, small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "output" / name
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    line = refusal(capsys, "small", f"--input={small_folder}", f"--output={tmp_path}/output")
    assert "did not write" in line and kept.read_text() == "mine"


def test_an_output_that_is_a_link_stays_one(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Any
) -> None:
    """Its folder may be on another disk, which has the room that the link's disk lacks."""
    monkeypatch.setattr(beam, "run_steps", one_by_one)
    (tmp_path / "other_disk" / "data").mkdir(parents=True)
    (tmp_path / "output").symlink_to(tmp_path / "other_disk" / "data")
    for _ in range(2):  # the second run finds the first one's output
        main(["small", f"--input={small_folder}", f"--output={tmp_path}/output", "--workers=1"])
        assert (tmp_path / "output").is_symlink()
        assert {path.name for path in (tmp_path / "other_disk").iterdir()} == {"data", ".data.work"}
    main(["small", f"--input={small_folder}", f"--output={tmp_path}/plain", "--workers=1"])
    assert contents(tmp_path / "other_disk" / "data") == contents(tmp_path / "plain")


def test_an_output_with_the_former_name_of_the_examples_is_built_again(small_folder: Path, tmp_path: Path) -> None:
    flags = (f"--input={small_folder}", f"--output={tmp_path}/output", "--workers=1")
    main(["small", *flags])
    (tmp_path / "output/examples").rename(tmp_path / "output/samples")
    (tmp_path / "output/manifest.json").write_text("{}")
    main(["small", *flags])
    assert sorted(path.name for path in (tmp_path / "output/examples").iterdir()) == ["dropped.jsonl", "kept.jsonl"]
    assert not (tmp_path / "output/samples").exists()


def test_a_rule_that_is_there_twice_is_refused(run_small: Any, small_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has lower_case twice"):
        run_small(small_folder, tmp_path / "output", recipe=(*small_corpus.RECIPE, small_corpus.RECIPE[1]))


def test_a_run_reports_its_parts_and_counts(
    small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (f"--input={small_folder}", f"--output={tmp_path}/output", "--workers=1")
    main(["small", *flags])
    said = capsys.readouterr().out
    assert "10 files, 10 parts" in said and "longest_of_picture" in said and "cleaned" in said
    assert "--retry" in said and "MB" in said
    main(["small", *flags])
    up_to_date = capsys.readouterr().out
    assert "is up to date" in up_to_date
    assert up_to_date.splitlines()[-1] == f"the report is {tmp_path}/output/report.html"
    main(["small", *flags, "--retry"])
    assert "cleaned" in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("left", [30, 250])
def test_a_full_disk_ends_a_run_that_then_continues(
    left: int, small_folder: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With little space left no part can be written, with more of it no shard."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * ((2000 - left) * 1024))
    flags = (f"--input={small_folder}", f"--output={small_disk}/output", "--workers=1")
    line = refusal(capsys, "small", *flags)
    assert "no space left on the disk of" in line and str(small_disk) in line
    assert not (small_disk / "output").exists()
    ballast.unlink()
    main(["small", *flags])
    assert (small_disk / "output" / "manifest.json").exists()


def test_a_pipe_in_the_input_is_refused(small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_folder / "0003.jsonl").unlink()
    os.mkfifo(small_folder / "0003.jsonl")
    line = refusal(capsys, "small", f"--input={small_folder}", f"--output={tmp_path}/output", "--workers=1")
    assert "0003.jsonl is a pipe" in line
