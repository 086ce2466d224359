"""`python -m qwenvl_jax.plan` as a user types it, and what it is made of where no TPU compiler is needed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import stage2_multitask
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.config import Config, load_config
from qwenvl_jax.planning import aot, candidates, tables
from qwenvl_jax.planning.assumptions import read_prices
from qwenvl_jax.planning.candidates import Candidate, Failure, Outcome
from qwenvl_jax.planning.prediction import (
    Prediction,
    capacity_text,
    cost,
    expected_work,
    loss_chunks,
    misfit_text,
)
from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError
from tests.support.commands import assert_refused, run_commands

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT / 'tests' / 'support' / 'tiny_config.py'}"
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None

# The planner where libtpu cannot be imported, wherever this test runs.
WITHOUT_LIBTPU = """
import sys
sys.modules["libtpu"] = None
from qwenvl_jax.runtime import commandline
from qwenvl_jax import plan
sys.argv[0] = "plan"
commandline.run(plan.main)
"""

STAGE_2, STAGE_3 = "--config=configs/stage2_multitask.py", "--config=configs/stage3_sft.py"
DUMP = "--dump_sharding={tmp}/sharding.json"
MISTAKES = {
    "no topology": ([TINY], "--topology is missing"),
    "unknown chip": ([TINY, "--topology=v9:2x2"], "a chip that is not one of"),
    "bad form": ([TINY, "--topology=v5e/4"], "KIND:AxB"),
    "bad accelerator type": ([TINY, "--topology=v5e-5"], "there is no slice 'v5e-5'"),
    "no config": (["--topology=v5e:2x2"], "--config is missing"),
    "a page without the paper": ([TINY, "--topology=v5e:2x2", "--html={tmp}/a.html"], "--html belongs to --paper"),
    "the paper of one config": ([TINY, "--paper", "--topology=v5p:8x8x8"], "--paper takes only --topology"),
    "the paper on no slice": (["--paper", "--topology=v5p:8x8x8,v5p:1x1x1"], "the smallest slice of v5p is 2x2x1"),
    "the paper without a price": (
        ["--paper", "--topology=v5p:8x8x8,v4:8x8x8", "--prices={tmp}/some.json"],
        "the price table has no price of v4",
    ),
    "unknown flag": ([TINY, "--topolgy=v5e:2x2"], "did you mean 'topology'"),
    "two modes": ([TINY, "--topology=v5e:2x2", "--json", "--search"], "exclude one another"),
    "no price file": ([TINY, "--topology=v5e:2x2", "--prices={tmp}/none.json"], "none.json does not exist"),
    "bad price": ([TINY, "--topology=v5e:2x2", "--prices={tmp}/bad.json"], "the price table names 'v9'"),
    "bad comparison": ([TINY, "--topology=v5e:2x2", "--compare=v5e:2"], "write v5e:AxB"),
    "bad setting": ([TINY, "--topology=v5e:2x2", "--compare=data.acumulation=2"], "did you mean 'accumulation'"),
    "bad value": ([TINY, "--topology=v5e:2x2", "--compare=data.accumulation=two"], "cannot be 'two'"),
    "bad side": (
        [TINY, "--topology=v5p:3x4x4"],
        "a side of a slice of v5p is 1, 2 or a multiple of 4 chips long, not 3",
    ),
    "compile or not": ([TINY, "--topology=v5e:2x2", "--json", "--dump_sharding=x"], "exclude one another"),
    "no such folder": ([TINY, "--topology=v5e:1x1", "--dump_sharding=/dev/null/x.json"], "/dev/null"),
    "mesh": ([TINY, "--topology=v5e:2x2", DUMP, "--config.mesh.data=3"], "devices"),
    "rows": ([STAGE_3, "--topology=v5e:16x16", DUMP, "--config.mesh.fsdp=64"], "a microbatch of 32 rows"),
    "rows of slices": (
        [STAGE_2, "--topology=v5p:8x8x8@4", DUMP],
        "cannot be split over data x fsdp = 2048 devices",
    ),
    "heads": (
        [STAGE_3, "--topology=v5p:8x8x8", DUMP, "--config.mesh.fsdp=16", "--config.mesh.tensor=32"],
        "config.mesh.tensor 32 does not divide the attention heads of every tower",
    ),
    "width": (
        [STAGE_2, "--topology=v5e:16x16", DUMP, "--config.mesh.fsdp=256", "--config.mesh.data=1"],
        "cannot be split 256 ways over fsdp",
    ),
    "nothing split": ([STAGE_2, "--topology=v5p:8x8x8", DUMP, "--config.mesh.fsdp=1"], "is held whole by every device"),
    "no such kernel": (
        [STAGE_2, "--topology=v5p:8x8x8", DUMP, "--config.compute.attention=cudnn"],
        "does not run on the backend 'tpu'",
    ),
    "bad config": (["--config=configs/stage2_multitask.py", "--topology=v5p:2x2x1", "--config.train.steps=0"], "steps"),
    "stray argument": ([TINY, "v5e:2x2"], "unexpected argument"),
}
if not HAS_COMPILER:
    MISTAKES["no compiler"] = ([TINY, "--topology=v5e:2x2"], "pip install -r requirements-tpu.txt")


def test_mistakes_end_with_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"v9": 1}')
    (tmp_path / "some.json").write_text('{"v5p": 1}')
    lines = [[argument.replace("{tmp}", str(tmp_path)) for argument in line] for line, _ in MISTAKES.values()]
    for answer, (_, words) in zip(
        run_commands("qwenvl_jax.plan", lines, needs_config=False), MISTAKES.values(), strict=True
    ):
        assert_refused(answer, words)
    assert not (tmp_path / "sharding.json").exists()


@pytest.mark.parametrize(
    ("config", "topology", "golden"),
    [("stage1_pretrain", "v5p:8x8x8", "stage1_v5p_8x8x8"), ("stage3_sft", "v5p:2x2x4", "stage3_v5p_2x2x4")],
)
def test_shardings_are_written_without_a_compiler(config: str, topology: str, golden: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_LIBTPU, f"--config=configs/{config}.py", f"--topology={topology}"]
    command += [f"--dump_sharding={tmp_path / 'out' / 'sharding.json'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = ROOT / "tests" / "golden" / "sharding" / f"{golden}.json"
    assert (tmp_path / "out" / "sharding.json").read_text() == expected.read_text()
    for words in ("vit_head", "resampler", "decoder", "all parameters", "optimiser", "fsdp"):
        assert words in run.stdout, words


def test_the_environment_keeps_what_is_set() -> None:
    environment = {"JAX_PLATFORMS": "tpu"}
    aot.compiler_environment(environment)
    assert environment["JAX_PLATFORMS"] == "tpu"
    assert environment["TPU_SKIP_MDS_QUERY"] == "1"


def test_a_comparison_takes_topologies_and_settings() -> None:
    code = """
import sys
from qwenvl_jax import plan
from qwenvl_jax.planning import requests
from qwenvl_jax.runtime import commandline
commandline.parse(sys.argv)
for changes in ("", "v6e:16x16", "compute.remat_vit=full config.data.accumulation=2", "v4:8x8x8 mesh.fsdp=32"):
    candidate = requests.candidate("v5p:8x8x8", changes)
    config = candidate.config
    print(
        candidate.topology.name,
        config.mesh.fsdp,
        config.compute.remat_vit,
        config.data.accumulation,
        candidate.name,
    )
"""
    run = subprocess.run([sys.executable, "-c", code, STAGE_2], cwd=ROOT, capture_output=True, text=True, check=True)
    path = "configs/stage2_multitask.py"
    assert run.stdout.splitlines() == [
        f"v5p:8x8x8 64 matmuls_saved 1 {path}:mesh=v5p on v5p:8x8x8",
        f"v6e:16x16 16 attention_saved 1 {path}:mesh=v6e on v6e:16x16",
        f"v5p:8x8x8 64 full 2 {path}:mesh=v5p on v5p:8x8x8, compute.remat_vit=full, config.data.accumulation=2",
        f"v4:8x8x8 32 attention_saved 1 {path}:mesh=v4 on v4:8x8x8, mesh.fsdp=32",
    ]


def test_a_quickstart_config_is_planned_for_any_chip(tmp_path: Path) -> None:
    """It takes no `mesh`, so the chip changes nothing in it."""
    command = [sys.executable, "-m", "qwenvl_jax.plan", "--config=configs/quickstart/stage2_multitask.py:data=d"]
    command += ["--topology=v5p:2x2x1", f"--dump_sharding={tmp_path}/sharding.json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "sharding.json").read_text())


def full_size(**data: Any) -> Config:
    config = load_config(stage2_multitask.get_config(mesh="v5p", batch="rows"))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def test_expected_work_of_stage_2() -> None:
    work = expected_work(full_size(images_per_row=7.0, accumulation=4))
    assert (work.tokens, work.images) == (4096 * 2048, 4096 * 7)
    assert work.supervised == 4096 * (2048 - 7 * 258)
    # 2 rows per device and microbatch, 242 supervised tokens each, in one chunk of 1024.
    assert loss_chunks(full_size(images_per_row=7.0, accumulation=4), work, 512) == 1


FITTING = Prediction(
    topology="v5p:8x8x8",
    chips=512,
    hosts=128,
    settings={"accumulation": 4},
    steps=1000,
    tokens=8_000_000,
    images=28_000,
    fits=True,
    hbm_gib=45.0,
    hbm_capacity_gib=95.0,
    hbm_parts_gib={"arguments": 1.0},
    model_flops=7e17,
    compile_seconds=100.0,
    hardware_flops=7.2e17,
    kernel_flops=1e16,
    hbm_bytes=1e12,
    collective_bytes={"all-gather": 1e11},
    collective_seconds=0.7,
    exposed_seconds=0.4,
    step_seconds_roofline=4.5,
    step_seconds_cycles=5.4,
    mfu_roofline=0.66,
    mfu_cycles=0.55,
    parts={"matmul": 4.0, "exposed": 0.4},
)
TOO_BIG = dataclasses.replace(
    FITTING, fits=False, hbm_gib=120.0, step_seconds_roofline=None, step_seconds_cycles=None, hardware_flops=None
)


def test_cost_of_a_stage() -> None:
    stage = cost(FITTING, 2.0)
    assert stage is not None
    assert stage.days == pytest.approx((4500 / 86400, 5400 / 86400))
    assert stage.chip_hours == pytest.approx((512 * 4500 / 3600, 512 * 5400 / 3600))
    assert stage.dollars == pytest.approx((2 * stage.chip_hours[0], 2 * stage.chip_hours[1]))
    assert cost(TOO_BIG, 2.0) is None


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    for outcome in (FITTING, TOO_BIG):
        tables.show(dataclasses.replace(outcome, remedies=("more chips",)), 4.2)
    tables.show_comparison(
        "all", [("a", FITTING), ("b", TOO_BIG), ("c", Failure("it crashed", False))], read_prices({})
    )
    text = capsys.readouterr().out
    for words in ("0.400 (8.9% of the step)", "25.0 GiB too much", "more chips", "it crashed", "1.029"):
        assert words in text, words
    assert capacity_text(FITTING) == "45.0 of 95 GiB"


def test_a_step_that_does_not_fit_says_by_how_much_and_what_would_help() -> None:
    text = misfit_text(dataclasses.replace(TOO_BIG, remedies=("config.data.accumulation=8", "more chips")))
    assert text == (
        "the step does not fit v5p:8x8x8: a chip needs 120.0 of 95 GiB, 25.0 GiB too much; "
        "what would make it smaller: config.data.accumulation=8, or more chips"
    )


@pytest.mark.parametrize(
    ("message", "total", "capacity"),
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 120.50G of 95.74G hbm. Exceeded", 120.5, 95.74),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.", 0.5, 15.75),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (146.36G) "
            "exceeds available HBM (15.75G).",
            146.36,
            15.75,
        ),
    ],
)
def test_what_the_compiler_says_of_a_step_that_does_not_fit(message: str, total: float, capacity: float) -> None:
    memory = aot.misfit(message)
    assert memory is not None and not memory.fits
    assert (memory.total, memory.capacity) == pytest.approx((total, capacity))


def test_other_errors_of_the_compiler_are_no_misfit() -> None:
    assert aot.misfit("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem.") is None
    assert aot.misfit("INTERNAL: Used 120.50G of 95.74G hbm") is None


def test_a_run_that_would_be_refused_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    for refusal in ("", "128 processes share 64 logical streams"):
        log.console.cache_clear()
        tables.show(dataclasses.replace(FITTING, refusal=refusal), 4.2)
        text = capsys.readouterr().out
        assert ("warning: a run would be refused: 128 processes share" in text) == bool(refusal)


def test_host_memory_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(dataclasses.replace(FITTING, host_gib=3.625), 4.2)
    assert re.search(r"host memory of one chip, GiB.*3\.6", capsys.readouterr().out)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_comparison_is_never_cut(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "140")
    name = "data 16 x fsdp 32 x tensor 1, accumulation 1, remat attention_saved"
    prices = {FITTING.topology.partition(":")[0]: 4.2}
    log.console.cache_clear()
    tables.show_comparison("fastest first", [(name, FITTING)], prices)
    shown = capsys.readouterr().out
    log.console.cache_clear()
    assert "…" not in shown
    assert all(str(cell) in shown for cell in tables.comparison_row(name, FITTING, prices)[1:])
    assert terminal == (name not in shown)  # on the narrow terminal it takes several lines


def test_search_grows_accumulation_until_it_fits() -> None:
    tried = []

    def attempt(candidate: Candidate) -> Outcome:
        tried.append(candidate)
        compute, accumulation = candidate.config.compute, candidate.config.data.accumulation
        if candidate.config.mesh.fsdp == 8:
            return Failure("the compiler crashed with SIGFPE", False)
        seconds = {"matmuls_saved": 4.0, "attention_saved": 4.5, "full": 5.0}[compute.remat_vit] + 0.1 * accumulation
        fits = accumulation >= 4 or compute.remat_vit == "full"
        return dataclasses.replace(FITTING if fits else TOO_BIG, step_seconds_roofline=seconds)

    outcomes = candidates.search(full_size(), parse_topology("v5p:8x8x8"), attempt)
    best = candidates.ranked(outcomes)
    assert [which for which, _ in outcomes] == tried
    assert candidates.search(full_size(), parse_topology("v5p:8x8x8"), attempt, jobs=3) == outcomes
    assert best[0][0].config.data.accumulation == 4
    assert best[0][0].config.compute.remat_decoder == "matmuls_saved"
    assert {which.config.mesh.fsdp for which, _ in outcomes} == {8, 32, 64}
    assert all(outcome.fits for _, outcome in best)
    assert 16 not in {which.config.data.accumulation for which in tried}  # 8 rows per shard at most are left


def test_another_accumulation_keeps_the_image_groups() -> None:
    data = full_size().data
    for accumulation in (1, 2, 4, 8, 16, 64):
        changed = aot.with_accumulation(data, accumulation)
        assert changed is not None
        dataclasses.replace(full_size(), data=changed).data.check("config.data")
        assert (changed.accumulation, changed.rows_per_step) == (accumulation, data.rows_per_step)
        assert (changed.group_rows, changed.group_images) == (data.group_rows, data.group_images)
    assert aot.with_accumulation(data, 3) is None  # not whole rows
    assert aot.with_accumulation(data, 2048) is None  # 2 rows are no group of 4
    whole = dataclasses.replace(data, image_groups=0, streams=1)
    assert aot.with_accumulation(whole, 8) == dataclasses.replace(whole, accumulation=8)
    one = dataclasses.replace(data, image_groups=1, streams=1)
    assert aot.with_accumulation(one, 8) == dataclasses.replace(one, accumulation=8)


def test_a_search_needs_whole_rows() -> None:
    config = full_size()
    rows = dataclasses.replace(config, data=dataclasses.replace(config.data, rows_per_step=128))
    with pytest.raises(UserError, match=r"no mesh of v5e:16x16 with config.mesh.tensor 1 gives every chip whole rows"):
        candidates.search(rows, parse_topology("v5e:16x16"), lambda candidate: pytest.fail(candidate.name))


def test_remedies_name_what_is_left() -> None:
    from jax.sharding import AbstractMesh

    mesh = AbstractMesh((8, 64, 1), ("data", "fsdp", "tensor"))
    config = full_size(accumulation=4)
    assert aot.remedies(config, mesh) == [
        "config.data.accumulation=8 with config.data.image_groups=256",
        "config.compute.remat_decoder=attention_saved",
        "config.compute.remat_vit=attention_saved",
        "config.optimizer.moments_memory=pinned_host",
        "config.mesh.fsdp=128",
        "more chips",
    ]


@pytest.mark.parametrize(("sizes", "slices"), [((2, 128, 1), 1), ((4, 64, 1), 4)])
def test_remedies_name_no_mesh_that_is_none(sizes: tuple[int, int, int], slices: int) -> None:
    """1664 = 13 * 128 does not divide by 256; the axis that slices multiply cannot be given to fsdp."""
    from jax.sharding import AbstractMesh

    config = full_size()
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=slices))
    changes = aot.remedies(config, AbstractMesh(sizes, ("data", "fsdp", "tensor")))
    assert not any("fsdp" in remedy for remedy in changes) and changes[-1] == "more chips"
