"""The log: one line per window, cut back on resume, and the end of a run that diverged."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny_run
from etils import epath

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.metrics import MAX_SKIPPED, Log, Window, summarize


def step_values(loss: float, supervised: float = 10, skipped: int = 0) -> dict[str, float]:
    return {
        "loss": loss,
        "grad_norm": 1.0,
        "learning_rate": 0.1,
        "tokens": 20,
        "supervised_tokens": supervised,
        "images": 2,
        "skipped": skipped,
    }


def test_a_window_weighs_losses_by_tokens_and_leaves_skipped_steps_out() -> None:
    line = summarize([step_values(1.0, 10), step_values(4.0, 30), step_values(float("nan"), 100, skipped=1)])
    assert line["loss"] == pytest.approx((10 + 120) / 40)
    assert (line["images"], line["supervised_tokens"], line["skipped"]) == (6, 140, 1)


def test_window_fetches_late_and_continues_what_was_saved() -> None:
    window = Window([step_values(1.0)])
    window.add({key: jnp.asarray(value) for key, value in step_values(2.0).items()})
    window.wait_for_previous()
    assert [value["loss"] for value in window.values()] == [1.0, 2.0]
    assert json.loads(json.dumps(window.values())) == window.values()
    window.clear()
    assert window.values() == []


def open_log(folder: Path, start: int) -> Log:
    config = tiny_run.make_config(Path("unused"))
    return Log(epath.Path(folder), config, start, make_mesh(config.mesh))


def test_resuming_cuts_the_file_back_to_the_restored_step(tmp_path: Path) -> None:
    with open_log(tmp_path, 0) as writer:
        for step in (5, 10, 15):
            writer.write(step, [step_values(step)], {})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # cut short by a kill
    with open_log(tmp_path, 12) as writer:
        writer.write(15, [step_values(99.0)], {})
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in found] == [(5, 5), (10, 10), (15, 99.0)]
    assert set(found[0]["timing"]) == {"seconds_per_step", "images_per_second", "tokens_per_second"}


def test_a_new_run_in_an_old_folder_starts_with_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    with open_log(tmp_path, 0):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_run_that_stays_non_finite_is_given_up(tmp_path: Path) -> None:
    bad = [step_values(float("nan"), skipped=1)]
    with open_log(tmp_path, 0) as writer:
        writer.write(MAX_SKIPPED - 1, bad * (MAX_SKIPPED - 1), {})
        writer.write(MAX_SKIPPED, [step_values(1.0)], {})
        writer.write(2 * MAX_SKIPPED - 1, bad * (MAX_SKIPPED - 1), {})
        with pytest.raises(UserError, match="not finite for 20 steps in a row"):
            writer.write(2 * MAX_SKIPPED, bad, {})


def test_a_known_device_has_a_utilisation(tmp_path: Path) -> None:
    from qwenvl_jax.perf.flops import peak_flops

    assert peak_flops("TPU v5p") == 459e12 and peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops(jax.devices("cpu")[0].device_kind) is None
