"""Runs that are watched elsewhere: Weights & Biases, and goodput in Google Cloud's logs."""

from __future__ import annotations

import datetime
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from qwenvl_jax.config import WatchingConfig
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training.goodput import account_of
from qwenvl_jax.training.goodput_export import GoodputExport
from qwenvl_jax.training.ledger import Ledger, check_exports
from qwenvl_jax.training.wandb_writer import WandbWriter
from tests.support import tiny_run
from tests.training.test_ledger import line, start, write

LINES = [
    start(1000, 0),
    line(1000, 1030, 0, 0, initialisation=30),
    line(1030, 1070, 0, 0, compilation=40),
    line(1070, 1170, 0, 100, step=90, data=10),
    line(1170, 1180, 100, 100, checkpoint=10),
    line(1180, 1280, 100, 200, step=100),
    start(1300, 100),  # killed after step 200, continued after step 100
    line(1300, 1320, 100, 100, initialisation=20),
    line(1320, 1520, 100, 300, step=200),
    {"event": "end", "at": 1520, "code": 0, "reason": "finished"},
]


class Recorder:
    """Notes what is recorded, by the names of the library's methods."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self.calls.append((name, *values))


def test_every_step_and_every_other_activity_is_recorded() -> None:
    recorder = Recorder()
    export = GoodputExport("job", recorder)
    for each in LINES:
        export.add(each)
    steps = [
        (step, at.timestamp()) for name, step, at in (c for c in recorder.calls if c[0] == "record_step_start_time")
    ]
    assert [step for step, _ in steps] == [*range(1, 201), *range(101, 301)]
    assert steps[0] == (1, 1030) and steps[1][1] == pytest.approx(1071)  # the first step begins with its compilation
    assert all(before[1] < after[1] for before, after in itertools.pairwise(steps))
    names = [call[0] for call in recorder.calls]
    assert names.count("record_job_start_time") == 2 and names[-2:] == ["record_job_end_time", "flush"]
    assert (
        "record_custom_badput_event_start_time",
        datetime.datetime.fromtimestamp(1170, datetime.UTC),
        "checkpoint",
    ) in (recorder.calls)


class Log:
    """In place of the library's log on Google Cloud: keeps the entries."""

    job_start_time = None

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def write_cloud_logging_entry(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)

    def read_cloud_logging_entries(self, *window: Any) -> tuple[list[dict[str, Any]], tuple[None, None]]:
        return self.entries, (None, None)

    def flush(self) -> None:
        pass


def test_the_library_comes_to_the_same_goodput(tmp_path: Path) -> None:
    goodput = pytest.importorskip("ml_goodput_measurement").goodput
    log = Log()
    export = GoodputExport("job", goodput.GoodputRecorder("job", "log", logging_enabled=True, cloud_logger=log))
    for each in LINES:
        export.add(each)
    calculator = goodput.GoodputCalculator("job", "log", cloud_logger=log, cache_dir=str(tmp_path))
    share, _, last_step = calculator.get_job_goodput()
    assert last_step == 300
    assert share == pytest.approx(100 * account_of(write(*LINES)).goodput, abs=3)


@pytest.mark.parametrize(
    ("key", "package"), [("wandb", "wandb"), ("goodput_job", "ml-goodput-measurement")], ids=lambda value: value
)
def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, key: str, package: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_exports(WatchingConfig())
    with pytest.raises(UserError, match=rf"config\.watching\.{key} needs the package {package}; install"):
        check_exports(WatchingConfig(**{key: "name"}))  # type: ignore[arg-type]


def test_an_export_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def __init__(self, job: str) -> None:
            del job

        def add(self, line: Any) -> None:
            raise ConnectionError("no logs here")

    monkeypatch.setattr("qwenvl_jax.training.ledger.GoodputExport", Failing)
    with Ledger().kept(epath.Path(tmp_path), 0, 1, "job"):
        pass
    assert capfd.readouterr().out.count("no longer exported (no logs here)") == 1
    assert (tmp_path / "ledger.jsonl").read_text().count("\n") == 3


@pytest.mark.slow
def test_all_starts_are_one_run_of_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_run.make_config(watching__wandb="project")
    for step in (5, 10):
        writer = WandbWriter(epath.Path(tmp_path / "run"), config)
        writer.add(step, {"train/loss": 1.0 / step})
        writer.close()
    run_id = (tmp_path / "run/wandb_run").read_text()
    assert len(list((tmp_path / "run/wandb").glob(f"offline-run-*-{run_id}"))) == 2
    assert "wandb" in sys.modules
