"""Folders and names that a run meets by accident: refused in one sentence or survived, never a checkpoint lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_jax.checkpoint import lineage, steps
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.manager import restore_state, save_frozen
from qwenvl_jax.checkpoint.restore import newest_state
from qwenvl_jax.config import TOWERS
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.claim import claimed
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error
from qwenvl_jax.runtime.events import EventWriter
from qwenvl_jax.training.start import find_start
from tests.checkpoint.saved_run import MOMENTS, TREE, assert_is, save
from tests.support.tiny_run import make_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["br[a]", "a*", "a?", "a\\b", "new\nline", "deep/[1]/run"])
def test_a_name_under_which_checkpoints_would_be_lost_is_refused(tmp_path: Path, name: str) -> None:
    for refuse in (
        lambda: lineage.check_resumable(tmp_path / name, make_config()),
        lambda: save_frozen(tmp_path / name, TREE),
    ):
        with pytest.raises(UserError, match="in its path, which the libraries that write checkpoints take for"):
            refuse()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run#1", "run?a=b", "x/../z", "br[a]", "a*", "new\nline", "n" * 900])
def test_a_name_under_which_checkpoints_would_be_lost_is_refused_on_gs(gcs: str, name: str) -> None:
    with pytest.raises(UserError, match=r"in its path|is longer than"):
        lineage.check_resumable(f"{gcs}/{name}", make_config())


@pytest.mark.parametrize(
    "name", ["ünï 漢 a:b", "100%25", "h#a", "here/../z", "there/../z", "q'\"x", "-dash", "~no such user/x"]
)
def test_a_checkpoint_comes_back_from_any_other_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "elsewhere/deep"):
        Path(folder).mkdir(parents=True)
    Path("there").symlink_to("elsewhere/deep")
    steps.check_name(name)
    save(Path(name), 1, 2, keep=1)
    assert_is(2, newest_state(Path(name), TREE, MOMENTS)[1:])


@pytest.mark.parametrize("name", ["ünï 漢 a+b&c:d", "100%25", "x//y/"])
def test_a_checkpoint_comes_back_from_any_other_name_on_gs(gcs: str, name: str) -> None:
    folder = f"{gcs}/{name}"
    steps.check_name(folder)
    save(storage.path(folder), 1, 2, keep=1)
    assert_is(2, newest_state(folder, TREE, MOMENTS)[1:])


@pytest.mark.parametrize("kind", ["long", "loop", "folder"])
def test_paths_that_cannot_be_used_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    workdir = tmp_path / {"long": "n" * 300, "loop": "loop", "folder": "run"}[kind]
    if kind == "loop":
        workdir.symlink_to(workdir)
    if kind == "folder":
        (workdir / "config.json").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        lineage.check_resumable(workdir, make_config())
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        lineage.begin("/proc/nowhere/run", make_config())
    assert "error: /proc/nowhere" in capsys.readouterr().err


def test_one_slash_instead_of_two_makes_no_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs:/bucket/run names no bucket"):
        storage.path("gs:/bucket/run")


def test_a_checkpoint_under_another_number_is_not_taken_for_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save(tmp_path, 3, 6)
    shutil.copytree(tmp_path / "checkpoints/3", tmp_path / "checkpoints/9")
    with pytest.raises(DamagedError, match="it is that of step 3 under another name"):
        restore_state(tmp_path, 9, TREE, MOMENTS)
    step, *restored = newest_state(tmp_path, TREE, MOMENTS)
    assert step == 6
    assert_is(6, tuple(restored))
    assert (tmp_path / "checkpoints/9.damaged").is_dir()


def test_numbers_that_no_step_has(tmp_path: Path) -> None:
    config = make_config()
    lineage.begin(tmp_path, config)
    lineage.write(tmp_path, config, dict.fromkeys(TOWERS))
    save(tmp_path, 3)
    for name in ("99999999999", "9" * 200, "-5", "03", "1e3", "٣"):
        shutil.copytree(tmp_path / "checkpoints/3", tmp_path / "checkpoints" / name)
    assert steps.finished_steps(tmp_path) == [3]
    (tmp_path / "checkpoints/3").rename(tmp_path / f"checkpoints/{config.train.steps + 1}")
    with pytest.raises(UserError, match=f"checkpoints/25 does not belong to this run of {config.train.steps} steps"):
        find_start(config, storage.path(tmp_path))


def test_a_file_where_a_checkpoint_will_be_written_is_moved_aside(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / "checkpoints/6").write_text("not ours")
    save(tmp_path, 6)
    assert_is(6, restore_state(tmp_path, 6, TREE, MOMENTS))
    assert (tmp_path / "checkpoints/6.damaged").read_text() == "not ours"


def test_two_commands_do_not_write_one_run(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom qwenvl_jax.runtime.claim import claimed\nwith claimed(sys.argv[1]): print('in'); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ}
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another process trains in"), claimed(tmp_path / "run"):
            pass
        other.kill()
        other.wait()
        with claimed(tmp_path / "run"):
            assert list((tmp_path / "run").iterdir()) == []


def test_no_event_file_replaces_another_when_the_clock_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    for _ in range(3):
        writer = EventWriter(storage.path(tmp_path))
        writer.add(1, {"loss": 1.0})
        writer.close()
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1 and len(list(tmp_path.iterdir())) == 3
