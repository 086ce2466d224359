"""The quickstart as one command, at a hundredth of its length, on rendered pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from configs.quickstart import sizes
from qwenvl_jax import quickstart
from qwenvl_jax.config import to_dict
from qwenvl_jax.runtime import folder_lock
from tests.support import tiny_run

METRICS = {"referring_acc", "ocr_char_acc", "vqa_acc", "caption_cider"}


def test_every_step_is_a_command_that_can_be_run_by_hand() -> None:
    steps = quickstart.plan("runs/q", "data/q", "auto", 1.0)
    assert [step.key for step in steps] == ["data", *quickstart.STAGES, "evaluation", "release", "report"]
    assert [step.key for step in steps if step.beside] == ["release"]
    assert all(step.command[0].split(".")[0] in ("data_pipelines", "qwenvl_jax") for step in steps)
    assert "--config=configs/quickstart/stage2_multitask.py:data=data/q,runs=runs/q" in steps[3].command


def test_fine_tuning_begins_from_the_finished_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = quickstart.plan_finetune("runs/q", "data/q", 0.5)
    assert [step.key for step in steps] == ["data", quickstart.FINETUNE, "evaluation", "report"]
    assert steps[0].command[1:] == ("--input=data/q", "--output=data/q_catalogue", "--train=2000", "--heldout=50")
    assert "--config=configs/quickstart/finetune_catalogue.py:data=data/q,runs=runs/q,scale=0.5" in steps[1].command
    run = tmp_path / quickstart.STAGES[-1]

    def refusal() -> str:
        with pytest.raises(SystemExit) as stopped:
            quickstart.main(["--finetune", f"--workdir={tmp_path}"])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "run `make quickstart` first" in refusal()
    run.mkdir()
    assert "run `make quickstart` first" in refusal(), "a folder is no model"
    for damaged in ("", "[]", "{}", '{"train": {"steps": 250}}'):
        (run / "config.json").write_text(damaged)
        assert f"error: {run / 'config.json'} is not" in refusal()
    (run / "config.json").write_text(json.dumps(to_dict(tiny_run.make_config(tmp_path, train__steps=250))))
    assert "run `make quickstart` first" in refusal(), "no checkpoint yet"
    (run / "checkpoints/200").mkdir(parents=True)
    for mark in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (run / "checkpoints/200" / mark).write_text("{}")
    assert "is trained up to step 200 of 250; run `make quickstart` again" in refusal()


def test_a_taste_has_folders_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    steps = quickstart.plan_taste("runs/t", "data/t", "auto", 1.0)
    assert [step.key for step in steps] == ["data", quickstart.TASTE, "evaluation", "report"]
    assert "--train=2500" in steps[0].command and "--scene.max_objects=1" in steps[0].command
    assert "--config=configs/quickstart/taste.py:data=data/t,runs=runs/t" in steps[1].command
    with pytest.raises(SystemExit) as stopped:
        quickstart.main(["--taste", "--finetune"])
    assert stopped.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_larger_quickstart_names_its_size_in_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert quickstart.SIZES == sizes.SIZES
    steps = quickstart.plan("runs/q", "data/q", "auto", 1.0, "100m")
    configs = [part for step in steps for part in step.command if part.startswith("--config=")]
    assert len(configs) == 5 and all(part.endswith(":data=data/q,runs=runs/q,size=100m") for part in configs)
    for variant in ("--taste", "--finetune"):
        with pytest.raises(SystemExit) as stopped:
            quickstart.main([variant, "--size=100m"])
        assert stopped.value.code == 2
        assert "--size is for the whole quickstart" in capsys.readouterr().err


def test_a_taste_and_a_quickstart_keep_out_of_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stage0_text").mkdir()
    for argument, words in (("--taste", "holds a run of stage0_text"), ("--scale=nan", "must be above 0")):
        with pytest.raises(SystemExit) as stopped:
            quickstart.main([argument, f"--workdir={tmp_path}", f"--data={tmp_path}/data"])
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
    (tmp_path / "stage0_text").rename(tmp_path / quickstart.TASTE)
    with pytest.raises(SystemExit) as stopped:
        quickstart.main([f"--workdir={tmp_path}", f"--data={tmp_path}/data"])
    assert stopped.value.code == 2
    assert "holds a run of taste" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_a_taste_draws_boxes_and_captions(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qwenvl_jax.quickstart", "--taste", "--scale=0.02", "--source=rendered"]
    command += [f"--workdir={tmp_path}/runs", f"--data={tmp_path}/data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads((tmp_path / "runs/scores.json").read_text())
    assert set(scores) == {quickstart.TASTE} and {"referring_acc", "caption_cider"} <= set(scores[quickstart.TASTE])
    page = (tmp_path / "runs/report.html").read_text()
    assert "data:image/" in page and 'id="ref_grounding"' in page


@pytest.mark.slow
@pytest.mark.timeout(2000)  # seven minutes on two busy cores
def test_whole_quickstart_runs_and_a_second_run_reuses_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qwenvl_jax.quickstart", "--scale=0.01", "--source=rendered"]
    command += [f"--workdir={tmp_path}/runs", f"--data={tmp_path}/data"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert first.returncode == 0, first.stderr[-2000:]

    runs = tmp_path / "runs"
    scores = json.loads((runs / "scores.json").read_text())
    assert set(scores) == set(quickstart.STAGES)
    assert all(set(values) >= METRICS for values in scores.values())
    assert "<svg" in (runs / "report.html").read_text()
    manifest = json.loads((runs / "release" / "manifest.json").read_text())
    assert json.loads((runs / "release" / "parity.json").read_text())["passed"] is True
    assert manifest

    written = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.jsonl")}
    second = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert second.returncode == 0, second.stderr[-2000:]
    assert written == {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.jsonl")}

    tuned = subprocess.run([*command, "--finetune"], capture_output=True, text=True, timeout=1500)
    assert tuned.returncode == 0, tuned.stderr[-2000:]
    scores = json.loads((runs / "finetune" / "scores.json").read_text())
    assert set(scores) == {quickstart.STAGES[-1], quickstart.FINETUNE}
    assert all(set(values) >= {"catalogue.dialogue_acc", "dialogue_acc", *METRICS} for values in scores.values())
    assert 'id="catalogue"' in (runs / "finetune" / "report.html").read_text()
    evaluations = (runs / quickstart.FINETUNE / "evaluations.jsonl").read_text().splitlines()
    steps = json.loads((runs / quickstart.FINETUNE / "config.json").read_text())["train"]["steps"]
    assert [json.loads(line)["step"] for line in evaluations] == [steps * quarter // 4 for quarter in (1, 2, 3, 4)]


def test_the_first_failing_step_ends_the_quickstart_with_its_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = quickstart.Step(
        "data", "records", ("data_pipelines.quickstart", "--source=nowhere", f"--output={tmp_path}/d")
    )
    never = quickstart.Step("stage0_text", "training", ("qwenvl_jax.train", "--config=none.py"))
    with pytest.raises(SystemExit) as stopped:
        quickstart.run([bad, never], epath.Path(tmp_path))
    assert stopped.value.code == 2
    assert "training" not in capfd.readouterr().out


def test_steps_beside_each_other_run_at_the_same_time_and_leave_the_devices_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "meets.py").write_text(
        "import os, pathlib, sys, time\n"
        "here = pathlib.Path(__file__).parent\n"
        "(here / sys.argv[1]).touch()\n"
        "for _ in range(3000):\n"
        "    time.sleep(0.01)\n"
        "    if (here / sys.argv[2]).exists():\n"
        "        print(sys.argv[1], 'on', os.environ['JAX_PLATFORMS'])\n"
        "        sys.exit(int(sys.argv[3]))\n"
        "sys.exit('the other one has not begun')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    steps = [
        quickstart.Step("evaluation", "scores", ("meets", "a", "b", "0")),
        quickstart.Step("release", "to PyTorch", ("meets", "b", "a", "0"), beside=True),
        quickstart.Step("report", "pages", ("meets", "c", "c", "0")),
    ]
    quickstart.run(steps, epath.Path(tmp_path))
    lines = capfd.readouterr().out.split("\n")
    assert [line for line in lines if " on " in line] == ["a on tpu", "b on cpu", "c on tpu"]
    assert "    JAX_PLATFORMS=cpu python -m meets b a 0" in lines, "a command that can be run by hand"
    timings = tmp_path / "timings.json"
    assert list(json.loads(timings.read_text())) == ["evaluation", "release", "report", "total"]

    timings.unlink()
    steps[1] = dataclasses.replace(steps[1], command=("meets", "b", "a", "2"))
    with pytest.raises(SystemExit) as stopped:
        quickstart.run(steps, epath.Path(tmp_path))
    shown = capfd.readouterr()
    assert stopped.value.code == 2 and "to PyTorch ended with exit code 2; run the same command again" in shown.err
    assert "b on cpu" in shown.err and "c on tpu" not in shown.out and not timings.exists()


def test_a_running_quickstart_does_not_keep_its_own_evaluation_out(tmp_path: Path) -> None:
    workdir = f"{tmp_path}/runs"
    steps = quickstart.plan(workdir, f"{tmp_path}/data", "rendered", 1.0)
    outputs = {
        step.key: [part.removeprefix("--output=") for part in step.command if part.startswith("--output=")]
        for step in steps
    }
    assert outputs["evaluation"] == [workdir], "the evaluation writes into the folder of the quickstart"
    with folder_lock.locked(quickstart.running_folder(workdir), ""):
        for together in (["data"], ["evaluation", "release"], ["report"]):
            with contextlib.ExitStack() as stack:
                for output in [folder for key in together for folder in outputs[key]]:
                    stack.enter_context(folder_lock.locked(output, f"{output} is locked"))


def test_a_second_quickstart_in_the_same_folder_is_refused_before_it_touches_any_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--scale=0.01", f"--workdir={tmp_path}/runs", f"--data={tmp_path}/data"]
    with folder_lock.locked(quickstart.running_folder(f"{tmp_path}/runs"), ""):
        with pytest.raises(SystemExit) as stopped:
            quickstart.main(command)
        assert (tmp_path / "runs" / "running").exists(), "the lock would be lost with it"
    assert stopped.value.code == 2
    assert f"error: another quickstart works in {tmp_path}/runs; wait for its end" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
