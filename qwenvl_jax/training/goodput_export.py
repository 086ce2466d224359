"""Hands the ledger on to `ml-goodput-measurement`, which keeps it in Google Cloud's logs.

The library records moments: when a job, a step, or another activity began or ended. The lines of the ledger say how
long everything took, so the steps within a line are taken as equally long. A job has one name over all its starts.
"""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Mapping
from typing import Any

from qwenvl_jax.runtime import exit_codes
from qwenvl_jax.runtime.errors import UserError

PACKAGE = "ml_goodput_measurement"
# The kinds of the ledger that the library knows only as events of a type of their own.
_EVENTS = ("checkpoint", "evaluation", "other")


def check_installed() -> None:
    """Refuses a job name without the package.

    Raises:
      UserError: if it is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            "config.watching.goodput_job needs the package ml-goodput-measurement; install what requirements-watch.txt "
            "lists, or leave the key empty"
        )


class GoodputExport:
    """Takes the lines of one start of the ledger, in order.

    Args:
      job: the name of the job; the log has the name `goodput_JOB`.
      recorder: a `GoodputRecorder`; by default one that writes to the logs of this project on Google Cloud.
    """

    def __init__(self, job: str, recorder: Any = None) -> None:
        if recorder is None:
            from ml_goodput_measurement import goodput

            recorder = goodput.GoodputRecorder(job, f"goodput_{job}", logging_enabled=True)
        self._recorder = recorder
        self._begun = 0  # the last step whose beginning is recorded

    def add(self, line: Mapping[str, Any]) -> None:
        """Records what a line of the ledger says."""
        event = line.get("event")
        if event == "start":
            self._begun = int(line["step"])
            self._recorder.record_job_start_time(_utc(line["at"]))
        elif event == "end":
            if line["code"] == exit_codes.FINISHED:
                self._recorder.record_job_end_time(_utc(line["at"]))
            self._recorder.flush()
        else:
            self._add_interval(float(line["from"]), float(line["to"]), line["steps"], line["seconds"])

    def _add_interval(self, begin: float, end: float, steps: list[int], seconds: Mapping[str, float]) -> None:
        first, last = steps
        recorder = self._recorder
        if "compilation" in seconds:  # the library counts the first step's time above the others' as its own start-up
            self._begin_step(last + 1, begin)
        for number in range(first, last):
            self._begin_step(number + 1, begin + (end - begin) * (number - first) / (last - first))
        at = begin
        if "initialisation" in seconds:
            recorder.record_training_preparation_start_time(_utc(at))
            at += seconds["initialisation"]
            recorder.record_training_preparation_end_time(_utc(at))
        if "data" in seconds:
            recorder.record_data_loading_start_time(_utc(at))
            at += seconds["data"]
            recorder.record_data_loading_end_time(_utc(at))
        for kind in _EVENTS:
            if kind in seconds:
                recorder.record_custom_badput_event_start_time(_utc(at), kind)
                at += seconds[kind]
                recorder.record_custom_badput_event_end_time(_utc(at), kind)

    def _begin_step(self, step: int, at: float) -> None:
        if step > self._begun:
            self._begun = step
            self._recorder.record_step_start_time(step, _utc(at))


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
