"""Files of JSON and text, whatever characters they have."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.runtime import artifacts, folder_lock, storage

CHARACTERS = st.characters(exclude_categories=()) | st.sampled_from('\ud83d\udc00\ude00\u202e\x00\x1b\\"')
TEXTS = st.text(CHARACTERS)


def joined(value: object) -> object:
    """JSON has no way to tell two halves of a surrogate pair from the character; `surrogatepass` joins them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if isinstance(value, list):
        return [joined(each) for each in value]
    return value


@given(value=st.recursive(TEXTS, st.lists, max_leaves=5))
def test_every_text_can_be_written_as_json_and_is_read_back(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        artifacts.write_json(path, {"value": value})
        assert artifacts.read_json(path) == {"value": joined(value)}


def test_json_lines_and_pages_with_half_a_pair_are_written(tmp_path: Path) -> None:
    row = {"id": "caf\u00e9 \ud83d", "\udc00": 1}
    artifacts.write_text(tmp_path / "rows.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8")) == row
    artifacts.write_text(tmp_path / "page.html", "<p>caf\u00e9 \ud83d</p>")
    assert (tmp_path / "page.html").read_bytes() == "<p>caf\u00e9 \\ud83d</p>".encode()


def test_json_that_is_not_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        artifacts.write_json(tmp_path / "x.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_folders_that_take_one_name_at_the_same_moment_end_whole_and_leave_nothing_beside(tmp_path: Path) -> None:
    def place(number: int) -> None:
        source = tmp_path / f"source{number}"
        source.mkdir()
        (source / "half").touch()
        (source / "number").write_text(str(number))
        artifacts.replace_folder(source, tmp_path / "target")

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(place, range(200))) == [None] * 200
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target/half").exists() and int((tmp_path / "target/number").read_text()) < 200


@pytest.mark.parametrize("moment", ["before it is moved aside", "after it is moved aside", "and the disk fails"])
def test_another_call_that_is_quicker(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("source", "other", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "was").write_text(name)
    rename = storage.rename
    calls = []

    def renamed(source: Path, target: Path) -> None:
        calls.append(Path(source).name)
        if len(calls) == (1 if moment == "before it is moved aside" else 2):
            monkeypatch.setattr(storage, "rename", rename)
            artifacts.replace_folder(tmp_path / "other", tmp_path / "target")
            monkeypatch.setattr(storage, "rename", renamed)
            if moment == "and the disk fails":
                raise OSError(errno.EIO, "the disk fails")
        rename(source, target)

    monkeypatch.setattr(storage, "rename", renamed)
    if moment == "and the disk fails":
        with pytest.raises(OSError, match="the disk fails"):
            artifacts.replace_folder(tmp_path / "source", tmp_path / "target")
        assert (tmp_path / "target/was").read_text() == "other" and (tmp_path / "source/was").exists()
    else:
        artifacts.replace_folder(tmp_path / "source", tmp_path / "target")
        assert (tmp_path / "target/was").read_text() == "source"
        assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("parent", ["a file", "a link to nothing"])
def test_a_folder_below_no_folder_is_refused(parent: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "a file").touch()
    (tmp_path / "a link to nothing").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError):
        artifacts.replace_folder(tmp_path / "source", tmp_path / parent / "target")
    assert (tmp_path / "source").is_dir()


BUILD = """
import os, signal, sys
from qwenvl_jax.runtime import artifacts
with artifacts.built_beside(sys.argv[1]) as building:
    (building / "half").write_text("x")
    print(building.name, flush=True)
    if sys.stdin.read(1) == "k":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_build_removes_what_a_killed_one_left_and_nothing_of_one_that_is_alive(tmp_path: Path) -> None:
    def begin() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", BUILD, str(tmp_path / "[out]")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    killed, left = begin()
    assert killed.communicate("k") and (tmp_path / left / "half").exists()
    (tmp_path / ".[out].mine.tmp").mkdir()
    alive, building = begin()
    try:
        assert not (tmp_path / left).exists()
        with artifacts.built_beside(tmp_path / "[out]") as other:
            assert (tmp_path / building / "half").exists()
            (other / "whole").write_text("x")
        assert {path.name for path in tmp_path.iterdir()} == {"[out]", building, ".[out].mine.tmp"}
        assert [path.name for path in (tmp_path / "[out]").iterdir()] == ["whole"]
    finally:
        alive.communicate("\n")
    assert {path.name for path in tmp_path.iterdir()} == {"[out]", ".[out].mine.tmp"}
    assert [path.name for path in (tmp_path / "[out]").iterdir()] == ["half"]


@pytest.mark.parametrize("moment", [os.open, os.makedirs])
def test_a_build_whose_empty_folder_another_one_removes_makes_it_again(
    moment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build that begins at the same moment takes a folder that is not locked yet for one of a killed build."""
    removed: list[Any] = []

    def removed_before(path: Any, *arguments: Any, **named: Any) -> Any:
        if ".out." in str(path) and not removed:
            removed.append(path)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(path)
            if moment is os.makedirs:  # it saw the folder, which is gone when it looks again
                raise FileExistsError(errno.EEXIST, "File exists", str(path))
        return moment(path, *arguments, **named)

    monkeypatch.setattr(os, moment.__name__, removed_before)
    with artifacts.built_beside(tmp_path / "out") as building:
        (building / "whole").write_text("x")
    assert removed and [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_a_file_in_the_place_of_a_locked_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        folder_lock.lock(tmp_path / "file", "locked")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_next_build_removes_the_former_folder_that_a_killed_replacement_left(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123abcd.old"
    left.mkdir()
    (tmp_path / ".out.mine.old").mkdir()
    with artifacts.built_beside(tmp_path / "out"):
        assert left.exists(), "it is the last whole one"
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.mine.old"}


def test_a_build_leaves_what_belongs_to_an_output_whose_name_begins_alike(tmp_path: Path) -> None:
    others = {".out.v2.0123abcd.old", ".out.v2.0123abcd.tmp"}  # the former may be the last whole `out.v2`
    for name in others:
        (tmp_path / name).mkdir()
    for _ in range(2):
        with artifacts.built_beside(tmp_path / "out"):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", *others}
    with artifacts.built_beside(tmp_path / "out.v2"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.v2"}
