"""Zones, prices and dollars per sample; the chain of stages and the checks of its hand-offs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from launch import finished, stage_config, stages, where, zones
from launch.job import CAPACITIES, Job
from launch.paths import PATHS
from launch.stages import Stage
from qwenvl_jax.chips import CHIPS, parse_topology
from qwenvl_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
TOPOLOGY = parse_topology("v5p-1024")


def test_every_chip_has_zones_and_a_way_to_be_bought() -> None:
    assert list(zones.ZONES) == list(CHIPS)
    for kind in CHIPS:
        topology = parse_topology({"v4": "v4-32", "tpu7x": "tpu7x-32"}.get(kind, f"{kind}-16"))
        launchable = [name for name, path in PATHS.items() if path.zoned and not where.refusal(name, topology, "spot")]
        assert launchable, kind


def test_paths_and_capacities_of_chips() -> None:
    def ways(name: str) -> set[tuple[str, str]]:
        topology = parse_topology(name)
        zoned = [path for path in PATHS if PATHS[path].zoned]
        return {
            (path, capacity) for path in zoned for capacity in CAPACITIES if not where.refusal(path, topology, capacity)
        }

    assert ("gce", "on_demand") not in ways("v4-32")
    assert {path for path, _ in ways("tpu7x-32")} == {"gce", "gke"}
    assert ("queued_resource", "flex_start") in ways("v6e-16")
    assert ("tpu_vm", "flex_start") not in ways("v6e-16")
    assert ("tpu_vm", "spot") not in ways("v6e-16@2")


def test_prices_order_zones_and_the_most_particular_counts(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"v6e": 2.5, "v6e/europe-west4": 1.0, "v6e/us-east5/spot": 0.5}))
    prices = zones.read_prices(str(file))
    assert zones.by_price("v6e", "on_demand", prices)[0] == "europe-west4-a"
    assert zones.by_price("v6e", "spot", prices)[:2] == ["us-east5-a", "us-east5-b"]
    assert zones.price("v6e", "us-east5-a", "spot", prices) == 0.5
    assert zones.price("v6e", "us-east5-a", "on_demand", prices) == 2.5
    assert zones.price("v6e", "us-central1-b", "spot", prices) is None
    assert zones.price("v6e", "us-central1-b", "on_demand", {}) == CHIPS["v6e"].price
    assert zones.price("v6e", "europe-west4-a", "on_demand", {}) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "must hold a JSON object"),
        ("{", "cannot be read"),
        ('{"v5q": 1}', "did you mean 'v5p'"),
        ('{"v5p/us-east5/cheap": 1}', "CHIP/REGION/CAPACITY"),
        ('{"v5p": -1}', "dollars per chip and hour, not -1"),
        ('{"v5p": true}', "not True"),
    ],
)
def test_bad_prices(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(UserError, match=words):
        zones.read_prices(str(tmp_path / "prices.json"))


def test_dollars_per_million_samples(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"step_seconds_roofline": 3.6, "step_seconds_cycles": 7.2}))
    pace = where.read_pace(str(file), 4000.0)
    assert pace is not None
    # 3.6 s per 4,000 samples are 900 s per million; 512 chips of $4.20 cost $2150.4 per hour.
    assert where.cost_range(512 * 4.2, pace) == "538 to 1,075"
    assert "538 to 1,075" in where.report(TOPOLOGY, {}, pace)
    file.write_text(json.dumps({"step_seconds_roofline": None, "fits": False}))
    with pytest.raises(UserError, match="no prediction of a step that fits"):
        where.read_pace(str(file), 4000.0)


def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    """The quickstart's stages 0 to 3 with workdirs below a temporary folder."""
    monkeypatch.chdir(ROOT)
    made = []
    for file in stages.files("configs/quickstart", 0, 3):
        read = stage_config.read(f"{file}:runs={tmp_path}", {}, TOPOLOGY, fit=False)
        workdir = f"{tmp_path}/{file.stem}"
        job = Job(name="quick", topology=TOPOLOGY, command=read.command(workdir), workdir=workdir, zones=("z-a",))
        made.append(Stage(file.stem, read.config, job))
    return made


def finish(stage: Stage, step: int | None = None) -> None:
    """Pretends a complete checkpoint."""
    last = stage.config.train.steps if step is None else step
    folder = Path(stage.job.workdir) / "checkpoints" / str(last)
    folder.mkdir(parents=True)
    (folder / "commit_success.txt").touch()


def test_stages_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chain(tmp_path, monkeypatch)
    names = ["stage0_text", "stage1_pretrain", "stage2_multitask", "stage3_sft"]
    assert [stage.name for stage in made] == names
    sentences = stages.check_handoffs(made)
    assert sentences[1] == (
        f"stage2_multitask starts from {tmp_path}/stage1_pretrain; 42 px, then 63 px: positions are interpolated."
    )
    commands = stages.commands(PATHS["tpu_vm"], made)
    kinds = ["wait" if command.until else "run" for command in commands]
    assert kinds == ["run", "wait"] * 4
    assert all(name in command.shell for name, command in zip(names, commands[::2], strict=True))
    later = stages.commands(PATHS["tpu_vm"], made, "stage2_multitask")
    assert later == commands[3:]


def test_hand_offs_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chain(tmp_path, monkeypatch)
    init = dataclasses.replace(made[2].config.init, vit="gs://elsewhere/run")
    elsewhere = made[2]._replace(config=dataclasses.replace(made[2].config, init=init))
    with pytest.raises(UserError, match=r"config\.init\.vit of stage2_multitask is 'gs://elsewhere/run'"):
        stages.check_handoffs([*made[:2], elsewhere])
    with pytest.raises(UserError, match="starts from a run of the stage 'multitask', but the one before it"):
        stages.check_handoffs([made[1], made[3]])
    vit = dataclasses.replace(made[2].config.model.vit, layers=made[2].config.model.vit.layers + 1)
    model = dataclasses.replace(made[2].config.model, vit=vit)
    other = made[2]._replace(config=dataclasses.replace(made[2].config, model=model))
    with pytest.raises(UserError, match="have different models"):
        stages.check_handoffs([*made[:2], other])


def test_a_chain_continues_after_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chain(tmp_path, monkeypatch)
    assert stages.left(made) == made
    finish(made[0])
    finish(made[1], step=100)
    assert [stage.name for stage in stages.left(made)] == ["stage1_pretrain", "stage2_multitask", "stage3_sft"]


def test_how_far_a_run_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = chain(tmp_path, monkeypatch)[0]
    workdir = stage.job.workdir
    steps = stage.config.train.steps
    assert finished.progress(workdir, steps) == "no checkpoint"
    finish(stage, step=500)
    (Path(workdir) / "checkpoints" / "700").mkdir()  # cut short: its mark is missing
    assert finished.progress(workdir, steps) == f"step 500 of {steps}"
    finished.note_end(workdir, "host-1", 2)
    assert finished.progress(workdir, steps) == finished.ENDED
    assert finished.ends(workdir) == ["host-1: exit code 2"]
    finished.forget_ends(workdir)
    finished.note_end(workdir, "host-1", 0)
    assert finished.progress(workdir, steps) == f"step 500 of {steps}"
    finish(stage)
    assert finished.progress(workdir, steps) == finished.FINISHED


def test_folders_without_stages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no file stageN_NAME\.py"):
        stages.files(str(tmp_path), 1, 3)
    (tmp_path / "stage1_a.py").touch()
    (tmp_path / "stage1_b.py").touch()
    with pytest.raises(UserError, match="are both stage 1; rename one"):
        stages.files(str(tmp_path), 1, 3)
