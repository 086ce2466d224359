"""Keeps the report of a run up to date while it trains, and says at the end where its time went."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from etils import epath

from qwenvl_jax.checkpoint.layout import REPORT
from qwenvl_jax.runtime import artifacts, distributed, log
from qwenvl_jax.runtime.errors import one_line
from qwenvl_jax.training.goodput import read_account
from qwenvl_jax.training.report.facts import read_facts
from qwenvl_jax.training.report.page import page


def write_report(workdir: epath.Path) -> epath.Path:
    """Writes `report.html` of a run's folder, whole or not at all, and returns its path.

    Raises:
      UserError: if it is not the folder of a run.
    """
    artifacts.write_text(workdir / REPORT, page(read_facts(workdir)))
    return workdir / REPORT


@contextlib.contextmanager
def reported(workdir: epath.Path, minutes: float) -> Iterator[None]:
    """Writes the report every so many minutes while the block runs, from a thread of process 0, and at its end.

    At the end a line says where the time went. A report that cannot be written never ends a run.

    Args:
      workdir: the run's folder.
      minutes: between two reports; 0 writes none.
    """
    if not distributed.is_primary():
        yield
        return
    stop = threading.Event()
    complaints: list[str] = []

    def write() -> None:
        try:
            write_report(workdir)
        except Exception as error:  # whatever is wrong with it, training goes on
            if not complaints:
                log.line(f"warning: {workdir / REPORT} cannot be written ({one_line(error)}); training goes on")
            complaints.append(one_line(error))

    def write_until_the_end() -> None:
        while not stop.wait(60 * minutes):
            write()

    thread = threading.Thread(target=write_until_the_end, name="report", daemon=True)
    if minutes:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if minutes:
            thread.join()
            write()
        with contextlib.suppress(Exception):
            log.line(read_account(workdir).sentence())
