"""The watchdog: what counts as a hang, who is named, and what is left. Real processes, threads and sockets."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from qwenvl_jax.config import WatchdogConfig
from qwenvl_jax.runtime import phases
from qwenvl_jax.training.watchdog import Watchdog, stacks
from tests.runtime.processes import Parent, joined, parents

__all__ = ["parent"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """Starts processes that have imported JAX."""
    yield from parents(tmp_path_factory.mktemp("processes"))


class Noted(Watchdog):
    """A watchdog that notes the end of the run instead of ending it."""

    def __init__(self, config: WatchdogConfig, workdir: Path) -> None:
        super().__init__(config, epath.Path(workdir))
        self.fired = threading.Event()
        self.overdue = ""

    def _end(self, overdue: str) -> None:
        self.overdue = overdue
        self.fired.set()


class Disk:
    """A writer whose checkpoints a test begins and ends."""

    name = "checkpoint"

    def __init__(self) -> None:
        self.writing: int | None = None


def test_only_a_long_wait_between_steps_is_a_hang(tmp_path: Path) -> None:
    with Noted(WatchdogConfig(factor=2.0, least_seconds=1.0, first_step_seconds=60.0), tmp_path) as watchdog:
        assert not watchdog.fired.wait(2.0)  # the first step compiles
        for step in (1, 2, 3):
            watchdog.step(step)
            assert not watchdog.fired.wait(0.2)
        with phases.phase("checkpoint", unlimited=True), phases.phase("next batch"):
            assert not watchdog.fired.wait(2.0)
        assert watchdog.fired.wait(20)


def test_the_limit_follows_the_steps(tmp_path: Path) -> None:
    watchdog = Noted(WatchdogConfig(factor=10.0, least_seconds=5.0, first_step_seconds=60.0), tmp_path)
    assert watchdog.limit == 60.0
    watchdog.step(1)
    assert watchdog.limit == 5.0
    for step, seconds in enumerate((0.1, 2.0, 3.0), start=2):
        watchdog._lapse.seconds = seconds
        watchdog.step(step)
    assert watchdog.limit == 20.0


def test_a_checkpoint_has_a_limit_of_its_own_while_the_steps_go_on(tmp_path: Path) -> None:
    config = WatchdogConfig(factor=2.0, least_seconds=1.0, first_step_seconds=60.0, first_checkpoint_seconds=4.0)
    disk = Disk()
    with Noted(config, tmp_path) as watchdog:
        watchdog.watch(disk)
        for step in range(4):
            disk.writing = 0  # the first may take longer than all others
            watchdog.step(step)
            assert not watchdog.fired.wait(0.6)
        for step in (10, 20, 30):
            disk.writing = step
            watchdog.step(step)
            assert not watchdog.fired.wait(0.6)
        disk.writing = None
        with phases.phase("checkpoint", unlimited=True):
            assert not watchdog.fired.wait(2.0)  # none is written
            disk.writing = 40
            assert watchdog.fired.wait(20)
    assert re.fullmatch("the checkpoint of step 40 is not written after [1-9] s", watchdog.overdue)


def test_a_watchdog_can_be_turned_off(tmp_path: Path) -> None:
    before = threading.active_count()
    with Noted(WatchdogConfig(least_seconds=0.0, first_step_seconds=0.1), tmp_path) as watchdog:
        assert threading.active_count() == before
        assert not watchdog.fired.wait(0.5)


def test_stacks_name_the_threads_and_where_they_are() -> None:
    stop = threading.Event()

    def wait_for_the_reader() -> None:
        stop.wait()

    thread = threading.Thread(target=wait_for_the_reader, name="reader 7")
    thread.start()
    try:
        text = stacks()
    finally:
        stop.set()
        thread.join()
    assert text.index("thread MainThread") < text.index("thread reader 7")
    assert "in wait_for_the_reader" in text and "in test_stacks_name_the_threads_and_where_they_are" in text


# A loop in which process `hung` comes to step 4 and waits for a batch; the others wait for it after step 6.
HANG = """
import sys, time
from etils import epath
from qwenvl_jax.config import WatchdogConfig
from qwenvl_jax.runtime import commandline, distributed, phases
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.watchdog import Watchdog
hung, phase, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.argv = sys.argv[:1]
def wait_for_ever():
    time.sleep(1000)
class Disk:
    name, writing = "checkpoint", None
def main():
    distributed.initialize()
    with distributed.together(), Watchdog(WatchdogConfig(2.0, 2.0, 60.0, 5.0), epath.Path(workdir)) as watchdog:
        me = distributed.process_index()
        watchdog.watch(disk := Disk())
        for step in range(1, 5 if me == hung else 7):
            watchdog.step(step)
            if step < 4:
                distributed.agree({"step": "done"})
        with phases.phase(phase, unlimited=phase != "next batch" and me == hung):
            if phase == "save" and me == hung:
                disk.writing = 4
            if phase == "checkpoint" and me == hung:
                time.sleep(8)
                raise UserError("the checkpoint is written")
            wait_for_ever()
commandline.run(main)
"""


@pytest.mark.parametrize(("count", "hung"), [(1, 0), (3, 0), (3, 2)])
def test_a_hang_leaves_stacks_and_names_who_did_not_come(parent: Parent, tmp_path: Path, count: int, hung: int) -> None:
    ended = parent.run(HANG, joined(count, QWENVL_SILENCE_SECONDS="10"), str(hung), "next batch", str(tmp_path))
    for one in ended:
        assert one.code == 42, one
        assert one.err.count("\n") == 1 and one.err.startswith("error: the run hangs: no step has ended for"), one.err
        assert "in the phase 'next batch'" in one.err
        if count > 1:
            assert re.search(rf"process {hung} \(host .+\) did not come beyond step 4", one.err), one.err
        else:
            assert "after step 4" in one.err
    files = sorted((tmp_path / "stacks").iterdir())
    assert [path.name.rpartition("_")[2] for path in files] == [f"process{index}.txt" for index in range(count)]
    for path in files:
        assert "in wait_for_ever" in path.read_text() and "phase: next batch" in path.read_text()


def test_a_checkpoint_of_one_process_may_take_any_time(parent: Parent, tmp_path: Path) -> None:
    ended = parent.run(HANG, joined(2, QWENVL_SILENCE_SECONDS="10"), "1", "checkpoint", str(tmp_path))
    for one in ended:
        assert one.code == 2 and "error: the checkpoint is written" in one.err, one
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize("count", [1, 3])
def test_a_checkpoint_that_one_process_cannot_write_ends_all(parent: Parent, tmp_path: Path, count: int) -> None:
    hung = count - 1
    ended = parent.run(HANG, joined(count, QWENVL_SILENCE_SECONDS="10"), str(hung), "save", str(tmp_path))
    where = rf" on process {hung} \(host .+\)" if count > 1 else ""
    for one in ended:
        assert one.code == 42, one
        assert re.search(
            rf"^error: the run hangs: the checkpoint of step 4 is not written after \d s{where}", one.err
        ), one
        assert one.err.count("\n") == 1, one.err
    assert len(list((tmp_path / "stacks").iterdir())) == count
