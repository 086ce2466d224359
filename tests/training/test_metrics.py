"""The log: one line per window, cut back on resume, and the end of a run that diverged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.runtime import storage
from qwenvl_jax.sharding.mesh import make_mesh
from qwenvl_jax.training.metrics import MetricsWindow, StepValues, losses_by_source_and_task, summarize
from qwenvl_jax.training.metrics_log import MetricsLog
from tests.support import tiny_run


def step_values(loss: float, supervised: float = 10, skipped: int = 0) -> StepValues:
    return {
        "loss": loss,
        "grad_norm": 1.0,
        "learning_rate": 0.1,
        "tokens": 20,
        "supervised_tokens": supervised,
        "images": 2,
        "skipped": skipped,
        "loss_sum_by_source": [loss * supervised, 0.0, 0.0],  # of the sources of the tiny config
        "supervised_by_source": [supervised, 0.0, 0.0],
    }


def test_a_window_weighs_losses_by_tokens_and_leaves_skipped_steps_out() -> None:
    line = summarize([step_values(1.0, 10), step_values(4.0, 30), step_values(float("nan"), 100, skipped=1)])
    assert line["loss"] == pytest.approx((10 + 120) / 40)
    assert (line["images"], line["supervised_tokens"], line["skipped"]) == (6, 140, 1)
    assert all(isinstance(value, int | float) for value in line.values())


def sources(*tasks: str) -> list[SourceConfig]:
    return [SourceConfig(f"source {number}", task, "unused", 1.0) for number, task in enumerate(tasks)]


def by_source(losses: list[float], supervised: list[float], skipped: int = 0) -> StepValues:
    step = step_values(1.0, sum(supervised), skipped)
    return step | {"loss_sum_by_source": losses, "supervised_by_source": supervised}


def test_losses_by_source_and_task_are_per_token_and_leave_skipped_steps_out() -> None:
    steps = [
        by_source([10.0, 2.0, 0.0, 3.0], [10, 1, 0, 1]),
        by_source([50.0, 0.0, 0.0, 5.0], [30, 0, 0, 3]),
        by_source([float("nan"), 1.0, float("nan"), 9.0], [5, 1, 7, 9], skipped=1),
    ]
    losses = losses_by_source_and_task(steps, sources("caption", "vqa", "text", "caption"))
    source_losses = {"source 0": 1.5, "source 1": 2.0, "source 2": None, "source 3": 2.0}
    assert losses["loss_by_source"] == source_losses
    assert losses["supervised_by_source"] == {"source 0": 45, "source 1": 2, "source 2": 7, "source 3": 13}
    assert losses["loss_by_task"] == {"caption": pytest.approx(68 / 44), "vqa": 2.0, "text": None}
    assert losses["supervised_by_task"] == {"caption": 58, "vqa": 2, "text": 7}


def test_a_window_saved_before_there_were_losses_by_source_is_continued() -> None:
    old = {key: value for key, value in step_values(9.0).items() if not key.endswith("by_source")}
    window = MetricsWindow([old])
    window.add({key: jnp.asarray(value) for key, value in by_source([6.0], [3.0]).items()})
    assert summarize(window.values())["supervised_tokens"] == 13
    losses = losses_by_source_and_task(window.values(), sources("text"))
    assert losses["loss_by_task"] == {"text": 2.0} and losses["supervised_by_source"] == {"source 0": 3}
    assert losses_by_source_and_task([old], sources("text"))["loss_by_task"] == {"text": None}


def test_window_fetches_late_and_continues_what_was_saved() -> None:
    window = MetricsWindow([step_values(1.0)])
    window.add({key: jnp.asarray(value) for key, value in step_values(2.0).items()})
    window.wait_for_previous()
    assert [value["loss"] for value in window.values()] == [1.0, 2.0]
    assert json.loads(json.dumps(window.values())) == window.values()
    window.clear()
    assert window.values() == []


COUNTERS = {"images": 30, "shared": 10}  # of the data loader: a quarter of the images that samples show are shared


def open_log(folder: Path, start: int) -> MetricsLog:
    config = tiny_run.make_config()
    return MetricsLog(epath.Path(folder), config, start, make_mesh(config.mesh))


def test_resuming_cuts_the_file_back_to_the_restored_step(tmp_path: Path) -> None:
    with open_log(tmp_path, 0) as writer:
        for step in (5, 10, 15):
            writer.write(step, [step_values(step)], COUNTERS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # cut short by a kill
    with open_log(tmp_path, 12) as writer:
        writer.write(15, [step_values(99.0)], COUNTERS)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(5, 5), (10, 10), (15, 99.0)]
    speeds = {"seconds_per_step", "images_per_second", "tokens_per_second"}
    assert set(lines[0]["timing"]) == speeds | {"data_wait_seconds", "data_wait_share"}
    assert lines[0]["loss_by_source"] == {"caption": 5.0, "vqa": None, "text": None} == lines[0]["loss_by_task"]
    assert lines[0]["supervised_by_task"] == {"caption": 10, "vqa": 0, "text": 0}


def test_the_wait_for_data_counts_from_line_to_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Since the log was opened, at each look at the clock; the ledger looks as often as the log.
    seconds = iter([0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 7.0, 7.0])
    with open_log(tmp_path, 0) as writer:
        monkeypatch.setattr("qwenvl_jax.training.metrics_log.time.monotonic", lambda: writer._clock + next(seconds))
        with writer.waiting_for_data():
            pass
        with pytest.raises(StopIteration), writer.waiting_for_data():
            next(iter(()))
        monkeypatch.undo()
        writer._clock -= 40.0
        writer.write(5, [step_values(1.0)], COUNTERS)
        writer.write(10, [step_values(1.0)], COUNTERS)
    first, second = (json.loads(line)["timing"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first["data_wait_seconds"] == 6.0
    assert first["data_wait_share"] == pytest.approx(6 / (5 * first["seconds_per_step"]))
    assert (second["data_wait_seconds"], second["data_wait_share"]) == (0.0, 0.0)
    shown = capfd.readouterr()
    lines = [line for line in (shown.out + shown.err).splitlines() if line.startswith("step")]
    assert " wait 1" in lines[0] and "wait" not in lines[1]


def test_a_new_run_in_an_old_folder_starts_with_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
    with open_log(tmp_path, 0):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_known_device_has_a_utilisation(tmp_path: Path) -> None:
    from qwenvl_jax.chips import peak_flops

    assert peak_flops("TPU v5p") == 459e12 and peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops(jax.devices("cpu")[0].device_kind) is None


def logged(folder: epath.Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.parametrize("storage_kind", ["disk", "gs"])
def test_every_line_is_there_once_after_stop_kill_and_continue(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, storage_kind: str
) -> None:
    folder = epath.Path(tmp_path if storage_kind == "disk" else request.getfixturevalue("gcs")) / "run"
    with open_log(folder, 0) as writer:
        writer.write(5, [step_values(5.0)], COUNTERS)
        writer.write(10, [step_values(10.0)], COUNTERS)
    killed = open_log(folder, 10)
    killed.write(15, [step_values(15.0)], COUNTERS)
    killed.flush()  # with the checkpoint of step 15
    killed.write(20, [step_values(20.0)], COUNTERS)
    assert logged(folder)[:3] == [(5, 5.0), (10, 10.0), (15, 15.0)]  # while it runs
    again = open_log(folder, 15)  # the other one was killed: it never closes
    again.write(20, [step_values(21.0)], COUNTERS)
    again.flush()
    assert logged(folder) == [(5, 5.0), (10, 10.0), (15, 15.0), (20, 21.0)]
    monkeypatch.setattr("qwenvl_jax.runtime.growing_file.UPLOAD_EVERY", 0)  # the bound has passed
    again.write(25, [step_values(25.0)], COUNTERS)
    assert logged(folder)[-1] == (25, 25.0)
    assert storage.names(folder / "events")


def test_the_first_line_after_a_resume_counts_the_steps_of_its_attempt(tmp_path: Path) -> None:
    window = [step_values(1.0)] * 10
    with open_log(tmp_path, 0) as writer:
        writer.write(10, window, COUNTERS)
    with open_log(tmp_path, 18) as writer:  # stopped after step 18: eight of the ten steps were another attempt's
        writer._clock -= 40.0
        writer.write(20, window, COUNTERS)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["tokens"], line["images"]) == (200, 20)  # of the window
    timing = line["timing"]
    seconds = timing["seconds_per_step"] * 2
    assert 40 <= seconds < 100  # two steps, not ten
    assert timing["tokens_per_second"] * seconds == pytest.approx(40)
    assert timing["images_per_second"] * seconds == pytest.approx(3)  # a quarter is encoded with another sample


def test_event_files_are_what_tensorboard_reads(tmp_path: Path) -> None:
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    with open_log(tmp_path, 4) as writer:
        writer.write(5, [step_values(2.5)], COUNTERS)
    (file,) = (tmp_path / "events").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    payload, events = file.read_bytes(), []
    while payload:
        (length,) = struct.unpack("<Q", payload[:8])
        assert struct.unpack("<I", payload[8:12]) == (masked_crc32c(payload[:8]),)
        body, payload = payload[12 : 12 + length], payload[12 + length :]
        assert struct.unpack("<I", payload[:4]) == (masked_crc32c(body),)
        events.append(event_pb2.Event.FromString(body))
        payload = payload[4:]
    assert events[0].file_version == "brain.Event:2"
    assert events[1].step == 5 and events[1].session_log.status == event_pb2.SessionLog.START  # later ones disowned
    values = {value.tag: value.simple_value for value in events[2].summary.value}
    assert events[2].step == 5 and values["train/loss"] == 2.5 and "timing/seconds_per_step" in values
    assert values["loss_by_source/caption"] == values["loss_by_task/caption"] == 2.5
    assert values["supervised_by_task/vqa"] == 0 and "loss_by_task/vqa" not in values  # it has no loss
