"""The line of a log step on the terminal."""

from __future__ import annotations

import dataclasses
import re

import pytest

from qwenvl_jax.data.schema import TRAINING_TASKS
from qwenvl_jax.training.display import SHORT_TASKS, Display, losses, rates
from tests.support import tiny_run

LINE = {"loss": 2.34126, "grad_norm": 0.8123, "learning_rate": 5e-5, "skipped": 0}
TIMING = {
    "seconds_per_step": 1.2044,
    "tokens_per_second": 412_345.0,
    "images_per_second": 1_912.0,
    "data_wait_share": 0.034,
    "mfu": 0.413,
}


def shown(capfd: pytest.CaptureFixture[str], tasks: int = 8, **changes: float) -> str:
    config = tiny_run.make_config(train__steps=19000)
    by_task = {task: 2.0 + number / 7 for number, task in enumerate(TRAINING_TASKS[:tasks])}
    Display(config, 0).show(1200, LINE | changes, by_task, TIMING)
    return capfd.readouterr().out.rstrip("\n")


def test_a_line_has_every_figure_in_160_columns(capfd: pytest.CaptureFixture[str]) -> None:
    text = shown(capfd)
    assert text.startswith("step  1200/19000  loss 2.3413  cap 2.00")
    for part in ("ref 2", "gcap 2", "lr 5.0e-5 vit 4", "norm 0.81", "1.204 s", "412k tok/s", "1.9k img/s", "MFU 41%"):
        assert part in text
    assert text.endswith(" wait 3%  ETA 5:57:18") and "skipped" not in text
    assert len(shown(capfd, tasks=4)) <= 160 and len(text) <= 210  # no stage has all eight tasks
    assert "skipped 3" in shown(capfd, skipped=3)


def test_every_task_has_a_short_name() -> None:
    assert set(SHORT_TASKS) == set(TRAINING_TASKS)
    assert len(set(SHORT_TASKS.values())) == len(SHORT_TASKS)
    assert losses({"text": 2.0}) == ""  # it is the loss
    assert losses({"caption": 2.0, "grounded_caption": None}) == "  cap 2.00 gcap -"


def test_rates_are_shown_by_group() -> None:
    config = tiny_run.make_config()
    layers = config.model.vit.layers
    assert rates(config, 1e-3) == f"1.0e-3 vit {1e-3 * 0.9**layers:.1e}".replace("e-04", "e-4")
    alike = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, vit_layer_decay=1.0))
    assert rates(alike, 1e-3) == "1.0e-3"
    alone = dataclasses.replace(config, train=dataclasses.replace(config.train, trainable=("vit",)))
    assert re.fullmatch(r"vit \S+ to 1\.0e-3", rates(alone, 1e-3))
