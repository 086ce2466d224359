"""Steps on Beam: their order, their errors, and what Beam would say about them."""

from __future__ import annotations

import errno
import functools
import tempfile
from pathlib import Path

import pytest

from data_pipelines.beam import Step, is_local, options, run_steps
from qwenvl_jax.runtime.errors import StorageError, StorageOutage, UserError


def note(folder: str, element: int) -> None:
    (Path(folder) / f"{element}").write_text("x")


def written(folder: str) -> list[int]:
    """As many elements as there are files: none if this step is planned before the other has ended."""
    return [100 + int(path.name) for path in Path(folder).iterdir() if int(path.name) < 100]


def test_a_step_is_planned_when_the_one_before_has_ended(tmp_path: Path) -> None:
    write = functools.partial(note, str(tmp_path))
    first = Step("first", lambda: range(7), write)
    nothing = Step("nothing", lambda: [], write)
    run_steps([first, nothing, Step("second", functools.partial(written, str(tmp_path)), write)], options([], 1))
    names = sorted(int(path.name) for path in tmp_path.iterdir())
    assert names == [*range(7), *range(100, 107)]


def fail(error: Exception, element: int) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        UserError("one 'sentence' <with> signs; ä"),
        StorageError("no answer"),
        StorageOutage("late"),
        MemoryError("of 3 GB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_on_purpose_keep_their_kind_and_sentence(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)) as raised:
        run_steps([Step("s", lambda: [1], functools.partial(fail, error))], options([], 1))
    assert str(raised.value) == str(error) and not isinstance(raised.value, RuntimeError)
    said = capfd.readouterr()
    assert said.err == "" and said.out == ""


def test_errors_of_a_disk_keep_their_number_and_file() -> None:
    for error in (OSError(errno.ENOSPC, "x", "/a/b"), RuntimeError("writing x: No space left on device")):
        with pytest.raises(OSError) as raised:
            run_steps([Step("s", lambda: [1], functools.partial(fail, error))], options([], 1))
        assert raised.value.errno == errno.ENOSPC and raised.value.filename in ("/a/b", "the step s")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(Exception, match="no purpose"):
        run_steps([Step("s", lambda: [1], functools.partial(fail, KeyError("no purpose")))], options([], 1))


def test_errors_in_a_plan_are_carried_too() -> None:
    def plan() -> list[int]:
        raise UserError("nothing to do")

    with pytest.raises(UserError, match="nothing to do"):
        run_steps([Step("s", plan, print)], options([], 1))


@pytest.mark.slow
def test_errors_pass_from_worker_processes() -> None:
    with pytest.raises(UserError, match="from afar"):
        run_steps([Step("s", lambda: [1, 2], functools.partial(fail, UserError("from afar")))], options([], 2))


def test_flags_are_those_of_beam() -> None:
    assert is_local(options([], 2)) and not is_local(options(["--runner=FlinkRunner"], 2))
    with pytest.raises(UserError, match="unknown flag --runer; did you mean '--runner'"):
        options(["--runer=DirectRunner"], 1)
    with pytest.raises(UserError, match="unknown flag --keep_wrok; did you mean '--keep_work'"):
        options(["--keep_wrok"], 1, of_command=["--keep_work", "--retry"])
    with pytest.raises(UserError, match="unknown flag --qqq; see --help"):
        options(["--qqq"], 1)
    with pytest.raises(UserError, match=r"unexpected argument 'x'"):
        options(["x"], 1)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--runner=Nope", "Unexpected pipeline runner: Nope"),
        ("--runner=no.such.Runner", "No module named 'no'"),
        ("--runner=DataflowRunner", "Missing required option: project"),
        ("--direct_running_mode=nope", "invalid choice: 'nope'"),
        ("--direct_num_workers=many", "invalid int value: 'many'"),
        ("--direct_num_workers=-1", "must be 0 or more"),
    ],
)
def test_values_that_beam_refuses_are_refused_before_the_run(
    flag: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as refused:
        options([flag], 1)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_options_that_are_checked_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options([], 1)
    assert not list(tmp_path.glob("beam-pipeline-temp*"))
    run_steps([Step("s", lambda: [1], print)], options([], 1))
    assert not list(tmp_path.glob("beam-pipeline-temp*")) and list(tmp_path.iterdir())  # Beam's own, of the run


def test_more_processes_than_any_machine_has_are_refused() -> None:
    with pytest.raises(UserError, match="100000000000 processes are too many"):
        options([], 10**11)


def test_a_runner_that_cannot_start_ends_with_a_sentence() -> None:
    refused = options(["--runner=PortableRunner"], 1)  # without a --job_endpoint
    with pytest.raises(UserError, match=r"--runner=PortableRunner did not start the pipeline: .*--job_endpoint"):
        run_steps([Step("s", lambda: [1], print)], refused)
