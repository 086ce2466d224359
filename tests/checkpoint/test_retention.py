"""Which checkpoints are written and which stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.checkpoint import retention
from qwenvl_jax.checkpoint.local import LocalCheckpoints
from qwenvl_jax.checkpoint.manager import Checkpoints
from qwenvl_jax.checkpoint.schedule import Schedule
from qwenvl_jax.checkpoint.steps import finished_steps
from qwenvl_jax.config import CheckpointConfig, load_config, to_dict
from qwenvl_jax.runtime.errors import UserError
from tests.checkpoint.saved_run import state
from tests.support import tiny_run


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(1, 60), unique=True).map(sorted),
    newest=st.integers(1, 4),
    every=st.integers(0, 12),
    best=st.integers(0, 4),
    figures=st.dictionaries(st.integers(1, 60), st.floats(-5, 5), max_size=60),
    highest=st.booleans(),
)
def test_only_what_no_rule_keeps_goes(
    steps: list[int], newest: int, every: int, best: int, figures: dict[int, float], highest: bool
) -> None:
    rules = CheckpointConfig(keep_every=every, keep_best=best, best_is="highest" if highest else "lowest")
    gone = retention.superfluous(steps, newest, rules, figures)
    kept = [step for step in steps if step not in gone]
    assert kept[-newest:] == steps[-newest:]
    assert not every or all(step in kept for step in steps if step % every == 0)
    measured = [step for step in steps if step in figures]
    if best:
        assert len([step for step in measured if step in kept]) >= min(best, len(measured))
    for step in gone:
        better = [
            other
            for other in measured
            if step in figures and (figures[other] >= figures[step] if highest else figures[other] <= figures[step])
        ]
        assert step not in figures or len([other for other in better if other != step]) >= best


def test_the_best_by_a_figure_of_the_logs_stay(tmp_path: Path) -> None:
    measured = {2: 3.0, 4: 1.0, 6: 2.0, 8: 5.0, 10: 4.0}
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in measured.items()]
    (tmp_path / "evaluations.jsonl").write_text("\n".join([*lines, '{"step": 12, "lo']))
    rules = CheckpointConfig(keep_best=2, best_by="evaluation/loss", keep_every=8)
    with Checkpoints(tmp_path, keep=1, rules=rules) as checkpoints:
        for step in (2, 4, 5, 6, 8, 10):
            checkpoints.save(step, *state(step), {})
    assert finished_steps(tmp_path) == [4, 6, 8, 10]


def test_a_checkpoint_has_the_training_figure_of_the_last_line(tmp_path: Path) -> None:
    lines = [{"step": 5, "loss": 2.0}, {"step": 10, "loss": float("nan")}, {"step": 15, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for text in ('{"step": 1e999, "loss": 1}', '{"step": 16, "loss": true}', "[" * 100_000, '{"step": 17, "loss": 1'):
        (tmp_path / "metrics.jsonl").write_text((tmp_path / "metrics.jsonl").read_text() + text + "\n")
    steps = [4, 5, 7, 14, 15, 16, 17]
    figures = retention.figures_of(epath.Path(tmp_path), steps, "train/loss")
    assert figures == {5: 2, 7: 2, 15: 1}  # 14 came after a step that was not finite
    rules = CheckpointConfig(keep_best=1)
    assert 14 in retention.superfluous(steps, 1, rules, figures)


def test_a_figure_that_nothing_measures_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 2.0, "images": 3, "timing": {}}\n')
    for _ in range(2):
        assert retention.figures_of(epath.Path(tmp_path), [5], "train/no_such") == {}
    said = capsys.readouterr().out.replace("\n", " ")
    assert said.count("has train/no_such, so config.checkpoint.keep_best keeps no") == 1
    assert "one of these: images, loss" in said
    retention.figures_of(epath.Path(tmp_path), [5], "evaluation/loss")  # nothing was evaluated yet
    assert capsys.readouterr().out == ""


def test_what_is_no_figure_is_refused() -> None:
    with pytest.raises(UserError, match="best_by is 'loss'; name a figure as TensorBoard does"):
        tiny_run.make_config(checkpoint__best_by="loss")
    with pytest.raises(UserError, match=r"is measured every config\.evaluation\.every steps, which is 0"):
        tiny_run.make_config(checkpoint__keep_best=1, checkpoint__best_by="evaluation/loss")


def test_a_config_without_these_keys_is_as_before() -> None:
    values = to_dict(tiny_run.make_config())
    del values["checkpoint"]
    assert load_config(values).checkpoint == CheckpointConfig()


class Clock:
    """A clock and a writer that a test moves by hand."""

    name = "checkpoint"

    def __init__(self) -> None:
        self.now = 0.0
        self.writing: int | None = None

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("qwenvl_jax.checkpoint.schedule.time", clock)
    return clock


def due_steps(schedule: Schedule, clock: Clock, steps: range, seconds: float) -> list[int]:
    due = []
    for step in steps:
        clock.now += seconds
        if schedule.due(step):
            due.append(step)
    return due


def test_every_rule_by_number_makes_a_checkpoint(clock: Clock) -> None:
    config = tiny_run.make_config(train__checkpoint_every=8, checkpoint__keep_every=12)
    writer: Any = clock
    assert due_steps(Schedule(config, writer), clock, range(1, 25), 1.0) == [8, 12, 16, 24]


def test_the_next_begins_when_the_last_is_written_and_old_enough(clock: Clock) -> None:
    config = tiny_run.make_config(train__checkpoint_every=1000, checkpoint__minutes=1.0)
    writer: Any = clock
    schedule = Schedule(config, writer)
    assert due_steps(schedule, clock, range(1, 15), 10.0) == [6, 12]
    clock.writing = 12
    assert due_steps(schedule, clock, range(15, 40), 10.0) == []
    clock.writing = None
    assert due_steps(schedule, clock, range(40, 43), 10.0) == [40]


def test_local_checkpoints_have_rules_of_their_own(clock: Clock) -> None:
    keys: dict[str, Any] = dict(train__checkpoint_every=8, checkpoint__keep_every=12, checkpoint__minutes=0.01)
    local = LocalCheckpoints("disk", "run")
    by_number = tiny_run.make_config(**keys, checkpoint__local="disk", checkpoint__local_every=5)
    assert due_steps(Schedule(by_number, local), clock, range(1, 25), 10.0) == [5, 10, 15, 20]
    by_time = tiny_run.make_config(**keys, checkpoint__local="disk", checkpoint__local_minutes=1.0)
    assert due_steps(Schedule(by_time, local), clock, range(1, 15), 10.0) == [6, 12]
    assert due_steps(Schedule(tiny_run.make_config(**keys), local), clock, range(1, 50), 10.0) == []
