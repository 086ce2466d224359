"""Killed anywhere and started again, with changed inputs, other workers, or rows that failed: the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.build import clean_part, run
from data_pipelines.build.part_files import PartReader
from qwenvl_jax.runtime.errors import UserError
from tests.support import small_corpus

ROOT = Path(__file__).parents[3]


def part_files(work: Path) -> dict[str, int]:
    """The parts' files, with the times when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (work / "clean").glob("*.part")}


def test_a_finished_output_is_left_alone(run_small: Any, small_folder: Path, contents: Any) -> None:
    output = small_folder.parent / "output"
    run_small(small_folder, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    run_small(small_folder, output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_nothing_is_left_next_to_an_output_without_failures(run_small: Any, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"id": f"{n}", "text": f"text number {n}"}) + "\n" for n in range(20)]
    (tmp_path / "corpus" / "0.jsonl").write_text("".join(lines))
    for _ in range(2):
        assert run_small(tmp_path / "corpus", tmp_path / "output")["kept"] == 20
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "output"]


class Killed(BaseException):
    pass


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**9))
def test_ended_between_any_two_writes_it_continues_to_the_same_bytes(
    built: Path, run_small: Any, contents: Any, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """The process ends at a random write of a file, three times; what it had written so far stays."""
    draw = random.Random(seed)
    output = tmp_path_factory.mktemp("killed") / "output"
    real = os.replace
    for _ in range(3):
        left = draw.randrange(40)

        def replace(*names: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            real(*names)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                run_small(built.parent / "corpus", output)
            except BaseException as error:
                assert isinstance(error, Killed)
    run_small(built.parent / "corpus", output)
    assert contents(output) == contents(built)


def test_only_the_part_whose_file_changed_is_done_again(
    run_small: Any, small_folder: Path, contents: Any, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    run_small(small_folder, output, keep_work=True)
    before = part_files(tmp_path / ".output.work")
    changed = small_folder / "0004.jsonl"
    times = changed.stat()
    text = changed.read_text()
    changed.write_text(text.replace("Red", "Tan"))
    assert changed.stat().st_size == times.st_size and changed.read_text() != text
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    run_small(small_folder, output, keep_work=True)
    after = part_files(tmp_path / ".output.work")
    assert len(set(before) - set(after)) == 1
    assert sum(after.get(name) == when for name, when in before.items()) == 9
    run_small(small_folder, tmp_path / "fresh")
    assert contents(output) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("change", ["replaced", "removed", "added"])
def test_a_picture_that_changed_before_the_end_is_noticed(
    change: str, run_small: Any, small_folder: Path, contents: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"

    def ended(*_: Any) -> None:
        raise UserError("ended before the end")

    monkeypatch.setattr(run, "finish", ended)
    with pytest.raises(UserError, match="ended"):
        run_small(small_folder, output)
    monkeypatch.undo()
    picture = small_folder / "pictures" / ("40.png" if change == "added" else "4.png")
    if change == "removed":
        picture.unlink()
    elif change == "added":
        picture.write_bytes(small_corpus.picture(40))
    else:
        times = picture.stat()
        picture.write_bytes(small_corpus.picture(4).replace(b"IDAT", b"IDAT", 1)[:-1] + b"x")
        assert picture.stat().st_size == times.st_size
        os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    run_small(small_folder, output)
    run_small(small_folder, tmp_path / "fresh")
    assert contents(output) == contents(tmp_path / "fresh")


def test_a_file_that_was_only_touched_costs_nothing(run_small: Any, small_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run_small(small_folder, output, keep_work=True)
    before = part_files(tmp_path / ".output.work")
    for path in small_folder.rglob("*"):
        os.utime(path)
    shutil.rmtree(output)
    run_small(small_folder, output, keep_work=True)
    assert part_files(tmp_path / ".output.work") == before


def test_a_file_that_changes_while_it_is_read_ends_the_run(
    run_small: Any, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clean_part._write_part

    def write(job: Any, part: Any, *rest: Any) -> None:
        real(job, part, *rest)
        if part.number == 3:
            with (small_folder / part.files[0].name).open("a") as file:
                file.write("\n")

    monkeypatch.setattr(clean_part, "_write_part", write)
    with pytest.raises(UserError, match=r"0003.jsonl changed while it was read"):
        run_small(small_folder, tmp_path / "output")
    monkeypatch.undo()
    assert run_small(small_folder, tmp_path / "output")["rows"] == 1001


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**9), rows=st.integers(1, 400), per_file=st.integers(1, 150))
def test_a_retry_gives_the_bytes_of_a_run_without_failures(
    run_small: Any, contents: Any, tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, per_file: int
) -> None:
    """Pictures that were missing are there at the second try; rows that fail for other reasons stay."""
    folder = tmp_path_factory.mktemp("retry")
    small_corpus.write(folder / "corpus", rows, per_file=per_file, seed=seed)
    first = run_small(folder / "corpus", folder / "output")
    small_corpus.add_missing_pictures(folder / "corpus")
    after = run_small(folder / "corpus", folder / "output", retry=True)
    assert "picture missing" not in after["failed"]["reasons"]
    assert after["failed"]["rows"] == first["failed"]["rows"] - first["failed"]["reasons"].get("picture missing", 0)
    run_small(folder / "corpus", folder / "fresh")
    assert contents(folder / "output") == contents(folder / "fresh")
    assert (folder / ".output.work").exists() == bool(after["failed"]["rows"])


def test_a_retry_works_on_the_rows_that_failed_alone(
    run_small: Any, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(small_folder, tmp_path / "output")
    failed = [json.loads(line) for line in (tmp_path / "output" / "failed.jsonl").read_text().splitlines()]
    small_corpus.add_missing_pictures(small_folder)
    seen: list[Any] = []
    real = clean_part._outcome

    def outcome(job: Any, row: Any) -> Any:
        seen.append(row)
        return real(job, row)

    monkeypatch.setattr(clean_part, "_outcome", outcome)
    run_small(small_folder, tmp_path / "output", retry=True)
    assert len(seen) == len(failed)
    work = tmp_path / ".output.work" / "clean"
    assert [path.name.split(".", 1)[1] for path in work.iterdir()] == ["retry-1.part"] * 10
    assert all(PartReader(path).footer["rows"] == 100 for path in work.iterdir())


def test_a_retry_that_is_ended_is_done_again(
    run_small: Any, small_folder: Path, contents: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small(small_folder, tmp_path / "output")
    before = contents(tmp_path / "output")
    small_corpus.add_missing_pictures(small_folder)

    def ended(*_: Any) -> None:
        raise UserError("ended before the end")

    monkeypatch.setattr(run, "finish", ended)
    with pytest.raises(UserError, match="ended"):
        run_small(small_folder, tmp_path / "output", retry=True)
    monkeypatch.undo()
    assert contents(tmp_path / "output") == before
    run_small(small_folder, tmp_path / "output", retry=True)
    run_small(small_folder, tmp_path / "fresh")
    assert contents(tmp_path / "output") == contents(tmp_path / "fresh")
    run_small(small_folder, tmp_path / "output", retry=True)  # nothing changes once more
    assert contents(tmp_path / "output") == contents(tmp_path / "fresh")


def test_another_size_of_shards_cleans_nothing_again(run_small: Any, small_folder: Path, tmp_path: Path) -> None:
    run_small(small_folder, tmp_path / "output", keep_work=True)
    before = part_files(tmp_path / ".output.work")
    manifest = run_small(small_folder, tmp_path / "output", keep_work=True, bytes_per_shard=1 << 20)
    assert part_files(tmp_path / ".output.work") == before
    assert len(manifest["tasks"]["text"]["shards"]) == 1


@pytest.mark.slow
def test_three_processes_write_the_bytes_of_one(built: Path, run_small: Any, contents: Any, tmp_path: Path) -> None:
    run_small(built.parent / "corpus", tmp_path / "output", workers=3)
    assert contents(tmp_path / "output") == contents(built)


def command(corpus: Path, output: Path, *flags: str) -> list[str]:
    module = [sys.executable, "-m", "tests.support.small_corpus"]
    return [*module, f"--input={corpus}", f"--output={output}", "--bytes_per_shard=20000", *flags]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_processes_leave_nothing_behind(workers: int, contents: Any, tmp_path: Path) -> None:
    """SIGKILL at random moments of a real run, with its worker processes, until one run comes to its end."""
    small_corpus.write(tmp_path / "corpus", 2000)
    line = command(tmp_path / "corpus", tmp_path / "output", f"--workers={workers}")
    subprocess.run(command(tmp_path / "corpus", tmp_path / "whole", "--workers=1"), cwd=ROOT, check=True)
    draw = random.Random(workers)
    started = time.monotonic()
    kills = 0
    while kills < 6:
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            code = process.wait(draw.uniform(2.0, 9.0))
            assert code == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    subprocess.run(line, cwd=ROOT, check=True, timeout=120)
    assert time.monotonic() - started < 300
    assert contents(tmp_path / "output") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".output.work",
        ".whole.work",
        "corpus",
        "output",
        "whole",
    ]


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_with_a_sentence(contents: Any, tmp_path: Path) -> None:
    """As when memory runs out: the run says so, its other processes end, and it can be continued."""
    small_corpus.write(tmp_path / "corpus", 30_000)
    line = command(tmp_path / "corpus", tmp_path / "output", "--workers=2")
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        workers: list[int] = []
        while not workers and process.poll() is None:
            time.sleep(0.05)
            if list(tmp_path.glob(".output.work/clean/*.part")):
                workers = [number for number in session(process.pid) if number != process.pid]
        os.kill(workers[-1], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        done = len(list(tmp_path.glob(".output.work/clean/*.part")))
    assert process.returncode == 2 and "a worker process was ended" in errors and errors.count("\n") == 1
    assert done < 200  # of 300: it does not wait for the other worker
    waited = time.monotonic()
    while session(process.pid) and time.monotonic() - waited < 20:
        time.sleep(0.1)
    assert not session(process.pid)
    subprocess.run(line, cwd=ROOT, check=True, timeout=200)
    subprocess.run(command(tmp_path / "corpus", tmp_path / "whole", "--workers=1"), cwd=ROOT, check=True)
    assert contents(tmp_path / "output") == contents(tmp_path / "whole")


def session(leader: int) -> list[int]:
    """The processes of a session, zombies left out."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            members.append(int(path.parent.name))
    return sorted(members)


def test_two_runs_on_one_output_are_refused(run_small: Any, small_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom qwenvl_jax.runtime.folder_lock import locked\n"
        "with locked(sys.argv[1], ''): print('in'); input()"
    )
    work = tmp_path / ".output.work"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    try:
        with pytest.raises(UserError, match="another run works on"):
            run_small(small_folder, tmp_path / "output")
    finally:
        other.kill()
        other.wait()
    assert run_small(small_folder, tmp_path / "output")["rows"] == 1000


def test_damage_in_the_work_folder_is_mended(run_small: Any, small_folder: Path, contents: Any, tmp_path: Path) -> None:
    output = tmp_path / "output"
    run_small(small_folder, output, keep_work=True)
    before = contents(output)
    for path, cut in zip(sorted((tmp_path / ".output.work" / "clean").iterdir()), (0, 3, -1, 100), strict=False):
        path.write_bytes(path.read_bytes()[:cut])
    shutil.rmtree(output)
    run_small(small_folder, output)
    assert contents(output) == before
