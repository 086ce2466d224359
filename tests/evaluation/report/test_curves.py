"""Curves over steps and shots, and the events that TensorBoard reads."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from qwenvl_jax.evaluation.report.curves import over_shots, over_steps, shots_section, steps_section
from qwenvl_jax.evaluation.report.scalars import FOLDER, write_scalars
from tests.evaluation.report.entries import entry, small_sweep


def test_checkpoints_of_one_run_make_a_curve_with_intervals() -> None:
    charts = over_steps(small_sweep())
    points = charts["VQAv2 val"]["stage2_multitask"]
    assert [(point.x, round(point.y, 6)) for point in points] == [(1000, 70.0), (2000, 71.2)]
    assert (points[0].low, points[0].high) == (63.0, 77.0)
    assert "VQAv2 test-dev" not in charts  # only a server can score it
    page = steps_section(small_sweep())
    assert page.count("<svg") == len(charts) and page.count("<polygon") == len(charts)


def test_one_checkpoint_makes_no_curve() -> None:
    assert over_steps([each for each in small_sweep() if each.step == 1000]) == {}
    assert steps_section([]) == shots_section([]) == ""


def test_runs_with_the_same_name_are_told_apart_by_their_folder() -> None:
    entries = [dataclasses.replace(each, run=f"{user}/stage2") for user in "ab" for each in small_sweep()]
    assert set(over_steps(entries)["MMBench dev"]) == {"a/stage2", "b/stage2"}


def test_figure_4_has_one_chart_per_benchmark_and_a_curve_per_checkpoint() -> None:
    entries = [
        dataclasses.replace(
            entry("okvqa_val", "vqa_accuracy", 0.5 + shots / 100, step=step), shots=shots, label=f"okvqa_{shots}"
        )
        for step in (1000, 2000)
        for shots in (4, 0, 8)
    ]
    odd = dataclasses.replace(entries[0], shots=16, prompt="<img>{question}")
    charts = over_shots([*entries, odd, *small_sweep()])
    assert list(charts) == ["OKVQA val"] and set(charts["OKVQA val"]) == {"step1000", "step2000"}
    assert [point.x for point in charts["OKVQA val"]["step1000"]] == [0, 4, 8]
    page = shots_section(entries)
    assert "<th>8-shot</th>" in page and "<td>54.00</td>" in page


def events_of(folder: Path) -> list[event_pb2.Event]:
    (path,) = folder.iterdir()
    payload = path.read_bytes()
    events = []
    while payload:
        (length,) = struct.unpack("<Q", payload[:8])
        events.append(event_pb2.Event.FromString(payload[12 : 12 + length]))
        payload = payload[16 + length :]
    return events


def test_scalars_have_the_step_of_their_checkpoint(tmp_path: Path) -> None:
    for _ in range(2):  # the second time replaces the first
        write_scalars(epath.Path(tmp_path), small_sweep())
    events = events_of(tmp_path / FOLDER / "stage2_multitask")[1:]
    assert [event.step for event in events] == [1000, 2000]
    values = {value.tag: value.simple_value for value in events[1].summary.value}
    assert round(values["vqav2_val/vqa_accuracy"], 3) == 71.2
    assert round(values["vqav2_val/vqa_accuracy.low"], 3) == 64.08
    assert round(values["seed_bench/choice_accuracy/video"], 3) == 30.0
    assert round(values["mme/mme/perception"], 3) == 1200.0


@given(st.text(max_size=300), st.text(max_size=30))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_becomes_a_tag_and_a_folder(tmp_path: Path, label: str, run: str) -> None:
    entries = [dataclasses.replace(each, label=label, run=run) for each in small_sweep()[:2]]
    write_scalars(epath.Path(tmp_path), entries)
    (folder,) = (tmp_path / FOLDER).iterdir()
    tags = [value.tag for event in events_of(folder) for value in event.summary.value]
    assert tags and all(len(tag) < 400 and tag.isprintable() for tag in tags)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER]
