"""Checkpoints on the hosts' own disks, written more often than those in the folder of the run.

Every process writes what it holds below `<config.checkpoint.local>/run_<digest>/process_<index>/checkpoints/<step>`, in
the background and without a word from the others: all of them together are one local checkpoint. It is of use only if
as many processes find all parts of it again, so the folder of the run stays the one that counts. `local_files` says
what a process writes, `steps` which steps are finished. A failure to write costs a line, never the training.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import checksums, failures, file_checksums, lineage, local_files, steps
from qwenvl_jax.checkpoint.failures import DamagedError
from qwenvl_jax.checkpoint.layout import METRICS
from qwenvl_jax.checkpoint.manager import SUMS, WINDOW, check_state
from qwenvl_jax.checkpoint.retention import logged_steps
from qwenvl_jax.params import Params
from qwenvl_jax.runtime import distributed, log, phases, storage
from qwenvl_jax.runtime.errors import StorageError, one_line

KEPT = 2  # finished local checkpoints; one more while one is written
_RUN = "run_"  # begins the name of the folder of a run
_FACTS = "facts.json"
# Of a part: its step, how many processes wrote one, how often the run had gone back, step of the last line of the log.
_KEYS = ("step", "processes", "returns", "logged")
_PROGRESS = "progress.json"  # process 0 writes it
_FAILURES = (OSError, StorageError, MemoryError)
State = tuple[Params, Any, dict[str, Any]]  # (params, opt_state, progress)


class LocalCheckpoints:
    """The local checkpoints of a run; all processes call the methods together.

    Args:
      root: `config.checkpoint.local`; "" if there are none, then no method does anything.
      workdir: the run's folder.
    """

    name = "local checkpoint"  # for messages

    def __init__(self, root: str, workdir: epath.PathLike) -> None:
        self._root = storage.absolute(root) if root else None
        self._workdir = workdir
        self._returns: list[int] = []
        self._home: epath.Path | None = None
        self._step: int | None = None  # of the local checkpoint that was begun last, until it has been waited for
        self._writing: Future[None] | None = None
        self._warned = False

    def steps(self) -> list[int]:
        """The steps that all processes have, oldest first."""
        return sorted(step for step, reason in self._listed() if not reason)

    def newest_state(
        self, after: int | None, params: Params, opt_state: Any
    ) -> tuple[int, Params, Any, dict[str, Any]] | None:
        """The newest local checkpoint that is whole on all processes; a line says which is taken, or why none is.

        Args:
          after: the step of the newest checkpoint in the folder of the run, or None; older local ones are left alone.
          params: shapes, dtypes and shardings of the trained parameters.
          opt_state: of the optimiser's state.

        Returns:
          (step, params, opt_state, progress).
        """
        refused: dict[int, str] = {}
        taken = None
        for step, listed in self._listed():
            if after is not None and step <= after:
                break
            restored, reason = (None, listed) if listed else self.read_and_check(step, params, opt_state)
            if restored is not None:
                taken = step, *restored
                break
            refused[step] = reason
        if refused:
            whys = "; ".join(f"step {step}: {why}" for step, why in refused.items())
            log.line(f"local checkpoints in {self._root} cannot be used ({whys})")
        if taken:
            log.line(f"the local checkpoint of step {taken[0]} in {self._root} is the newest one")
        return taken

    def read_and_check(self, step: int, params: Params, opt_state: Any) -> tuple[State | None, str]:
        """As `restore.read_and_check`: the state and "", or None and why it cannot be used; alike on all processes."""
        restored = None
        reason = ""
        try:
            restored = self._read(step, params, opt_state)
        except (DamagedError, *_FAILURES) as error:
            reason = one_line(error)
        reason = _first_reason(reason)
        if reason or restored is None:
            return None, reason
        (params, opt_state), progress = restored
        progress = distributed.from_primary(lambda: progress)
        try:
            check_state(params, opt_state, progress)
        except DamagedError as error:  # the same on all processes: the sums are over the whole arrays
            return None, str(error)
        return (params, opt_state, progress), ""

    @contextlib.contextmanager
    def after(self, step: int) -> Iterator[LocalCheckpoints]:
        """Allows to save in the block; local checkpoints later than `step`, from which the run goes on, are removed.

        At the end it waits until everything is written.
        """
        if self._root is None:
            yield self
            return
        self._find_home(create=True)
        with self._failures_told():
            self._clear(step)
        self._thread = ThreadPoolExecutor(1)
        try:
            yield self
            self.wait()
        finally:
            self._thread.shutdown()

    @phases.phase("local checkpoint", unlimited=True)
    def save(self, step: int, params: Params, opt_state: Any, progress: dict[str, Any]) -> None:
        """Starts to write a local checkpoint; returns once the values are copied, so that the arrays may be donated."""
        self.wait()
        self._step = step
        with self._failures_told():
            sums = {"params": checksums.start(params), "optimizer": checksums.start(opt_state)}
            leaves = local_files.held((params, opt_state))
            self._writing = self._thread.submit(self._write, step, leaves, sums, progress)
        if self._writing is None:  # it has failed
            self._step = None

    @property
    def writing(self) -> int | None:
        """The step of the local checkpoint that this process is writing, None if there is none."""
        writing = self._writing
        return None if writing is not None and writing.done() else self._step

    @phases.phase("local checkpoint", unlimited=True)
    def wait(self) -> None:
        """Waits until the last one is written, or has failed."""
        try:
            if self._writing is not None:
                self._writing.result()
        finally:
            self._step = self._writing = None

    def remove(self) -> None:
        """Removes those of a run that is finished; those of other runs stay."""
        self._find_home()
        if self._home is not None:
            with self._failures_told():
                storage.remove(self._home)
                with contextlib.suppress(OSError):  # other processes may use the same disk
                    os.rmdir(self._home.parent)

    def _find_home(self, *, create: bool = False) -> None:
        """Asks process 0 which run this is, and what it has gone back to."""
        if self._root is None:
            return
        name, self._returns = distributed.from_primary(lambda: lineage.identity(self._workdir, create=create))
        self._home = self._root / f"{_RUN}{name}" / f"process_{distributed.process_index()}" if name else None

    def _listed(self) -> list[tuple[int, str]]:
        """(step, why it cannot be used) of the steps that any process has, newest first; alike on all processes."""
        self._find_home()
        if self._home is None:
            return []
        mine: dict[str, str] = {}
        with self._failures_told():
            mine = {str(step): self._unfit(step) for step in steps.finished_steps(self._home)}
        everyones = distributed.gather(mine)

        def judge() -> list[tuple[int, str]]:
            known = sorted({int(step) for theirs in everyones for step in theirs}, reverse=True)
            return [(step, _why_not(str(step), everyones)) for step in known]

        return [(step, reason) for step, reason in distributed.from_primary(judge)]

    def _unfit(self, step: int) -> str:
        """Why this process's part of a step is not of this run as it is now; "" if it is."""
        try:
            facts = json.loads(storage.read_bytes(self._folder(step) / _FACTS))
            written, processes, returns, logged = (int(facts[key]) for key in _KEYS)
        except (*_FAILURES, ValueError, LookupError, TypeError) as error:
            return one_line(error)
        if written != step:
            return f"it is that of step {written} under another name"
        if processes != distributed.process_count():
            return f"{processes} processes wrote it, and there are {distributed.process_count()} now"
        if any(step > to for to in self._returns[returns:]):
            return "the run has gone back to an older one since"
        if logged and distributed.is_primary() and logged not in logged_steps(storage.path(self._workdir)):
            return f"the run has gone on from an older one since, and {METRICS} has no line of step {logged}"
        return ""

    def _folder(self, step: int) -> epath.Path:
        assert self._home is not None
        return steps.folder_of(self._home, step)

    def _read(self, step: int, params: Params, opt_state: Any) -> tuple[tuple[Params, Any], dict[str, Any]]:
        """The state, and on process 0 its progress with the sums of the arrays."""
        folder = self._folder(step)
        with failures.reading(folder), file_checksums.verifying(folder):
            if not file_checksums.has_any(folder):
                raise DamagedError(f"{file_checksums.NAME} is missing")
            state = local_files.read(folder, (params, opt_state))
            if not distributed.is_primary():
                return state, {}
            progress = json.loads(storage.read_bytes(folder / _PROGRESS))
            return state, {**progress, SUMS: file_checksums.values_of(folder)}

    def _write(
        self, step: int, leaves: dict[str, local_files.HeldLeaf], sums: dict[str, Any], progress: dict[str, Any]
    ) -> None:
        values = {item: checksums.fetch(started) for item, started in sums.items()}
        with self._failures_told():
            assert self._home is not None
            folder = self._folder(step)
            unfinished = steps.temporary_of(folder)
            try:
                local_files.write(unfinished, leaves)
                logged = step - len(progress[WINDOW]) if WINDOW in progress else 0
                facts = dict(zip(_KEYS, (step, distributed.process_count(), len(self._returns), logged), strict=True))
                storage.write_bytes(unfinished / _FACTS, json.dumps(facts).encode())
                if distributed.is_primary():
                    storage.write_bytes(unfinished / _PROGRESS, json.dumps(progress).encode())
                storage.write_bytes(unfinished / steps.MARKER, b"")
                file_checksums.write(unfinished, late=True, values=values)
                storage.rename(unfinished, folder)
            except BaseException:
                with contextlib.suppress(*_FAILURES):
                    storage.remove(unfinished)
                raise
            for old in steps.finished_steps(self._home)[:-KEPT]:
                steps.remove(self._home, old)

    def _clear(self, step: int) -> None:
        """Removes what the run will write again, and names the runs that have left something here."""
        assert self._root is not None and self._home is not None
        steps.clear_unfinished(self._home)
        for later in steps.finished_steps(self._home):
            if later > step:
                steps.remove(self._home, later)
        names = storage.names(self._root) if storage.is_folder(self._root) else []
        others = [name for name in names if name.startswith(_RUN) and name != self._home.parent.name]
        if others:
            log.line(
                f"{self._root} has local checkpoints of other runs as well ({', '.join(others)}); remove those of runs "
                "that will not be continued"
            )

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Makes one line, on the host that is concerned, of everything that the local disk refuses."""
        try:
            yield
        except _FAILURES as error:
            if not self._warned:
                self._warned = True
                where = f"{distributed.named([distributed.process_index()])} has no local checkpoint"
                print(
                    f"warning: {where} in {self._root} ({one_line(error)}); the run goes on with those in "
                    f"{self._workdir} and tries again",
                    file=sys.stderr,
                    flush=True,
                )


def _why_not(step: str, everyones: list[dict[str, str]]) -> str:
    """Why a step cannot be used, from what every process says about its own part; "" if all have it."""
    missing = [index for index, theirs in enumerate(everyones) if step not in theirs]
    if missing:
        return f"{distributed.named(missing)} {'have' if len(missing) > 1 else 'has'} none of it"
    return next((theirs[step] for theirs in everyones if theirs[step]), "")


def _first_reason(reason: str) -> str:
    """What one of the processes says, for all of them; "" if none says anything."""
    return max(distributed.from_primary(functools.partial(list, distributed.gather(reason))))
