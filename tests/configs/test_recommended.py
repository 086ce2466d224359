"""Numbers that docs and configs recommend pass the checks of the recipes they are meant for; the passes to expect."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jax.sharding import AbstractMesh

from configs import base, stage1_pretrain, stage2_multitask, stage3_sft
from qwenvl_jax.config import Config, load_config
from qwenvl_jax.data.passes import ALL, expected_passes, rows_of_one_pass
from qwenvl_jax.runtime import log
from qwenvl_jax.sharding.batch import check_batch, check_streams
from qwenvl_jax.sharding.mesh import AXES, mesh_shape
from qwenvl_jax.training.summary import show_passes
from tests.support import tiny_run
from tests.support.chips import chips, grid_mesh

ROOT = Path(__file__).parents[2]
STAGES = {"pretrain": stage1_pretrain, "multitask": stage2_multitask, "sft": stage3_sft}
# The topologies that recipes and docs name, beside their GPUs and the CPU; the first of a stage is that of its recipe.
TOPOLOGIES = {
    ("v4", "sft"): (2, 2, 4),
    ("v5p", "sft"): (2, 2, 4),
    ("v5e", "sft"): (4, 8, 1),
    ("v6e", "sft"): (4, 4, 1),
    ("tpu7x", "sft"): (2, 2, 1),
    "v4": (8, 8, 8),
    "v5p": (8, 8, 8),
    "v5e": (16, 16, 1),
    "v6e": (16, 16, 1),
    "tpu7x": (4, 4, 8),
}
DEVICE_KINDS = {"v4": "TPU v4", "v5p": "TPU v5", "v5e": "TPU v5 lite", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}
DEVICES = {"cpu": 1, "gpu": 16}
PAPER_BATCH = {"pretrain": 30_720, "multitask": 4096, "sft": 128}
SAMPLES_PER_ROW = {"pretrain": 1.0, "multitask": 4.4, "sft": 4.0}  # benchmarks/packing.py and the configs' comments


def shipped() -> Iterator[tuple[str, str, str]]:
    """All stages x meshes x batches."""
    for stage, mesh in itertools.product(STAGES, base.MESHES):
        for batch in ("samples",) if stage == "pretrain" else ("samples", "rows"):
            yield stage, mesh, batch


def load(stage: str, mesh: str, batch: str) -> Config:
    options = {} if stage == "pretrain" else {"batch": batch}
    return load_config(STAGES[stage].get_config(mesh=mesh, **options))


@pytest.mark.parametrize(("stage", "mesh", "batch"), list(shipped()))
def test_every_batch_of_every_recipe_runs_on_its_chips(stage: str, mesh: str, batch: str) -> None:
    config = load(stage, mesh, batch)
    if mesh in DEVICES:
        sizes = mesh_shape(config.mesh, DEVICES[mesh])
        check_batch(config.data.rows_per_microbatch, AbstractMesh(sizes, AXES))
        return
    sides = TOPOLOGIES.get((mesh, stage)) or TOPOLOGIES[mesh]
    grid = grid_mesh(config.mesh, chips(sides, kind=DEVICE_KINDS[mesh]))
    check_batch(config.data.rows_per_microbatch, grid)
    check_streams(config.data, grid)  # no two hosts read, decode and pack the same


@pytest.mark.parametrize(("stage", "mesh", "batch"), list(shipped()))
def test_batches_count_what_their_name_says(stage: str, mesh: str, batch: str) -> None:
    """And rows, images and streams of an image group do not depend on the chip or the reading of the batch."""
    data = load(stage, mesh, batch).data
    per_row = SAMPLES_PER_ROW[stage] if batch == "samples" else 1.0
    assert data.rows_per_step * per_row == pytest.approx(PAPER_BATCH[stage], rel=0.11)
    v5p = load(stage, "v5p", "samples").data
    assert (data.group_rows, data.group_images) == (v5p.group_rows, v5p.group_images)
    assert data.groups % data.streams == 0


def family(stage: str, mesh: str, batch: str) -> tuple[str, int, int, int]:
    """What two runs must have in common to continue one another."""
    data = load(stage, mesh, batch).data
    return stage, data.rows_per_step, data.streams, data.group_rows


@pytest.mark.parametrize("batch", ["samples", "rows"])
def test_which_recipes_continue_the_runs_of_others(batch: str) -> None:
    """As docs/sharding.md says it."""
    tpus = tuple(DEVICE_KINDS)
    assert len({family("pretrain", mesh, "samples") for mesh in base.MESHES}) == 1
    assert len({family("multitask", mesh, batch) for mesh in tpus if (mesh, batch) != ("v5e", "rows")}) == 1
    assert len({family("sft", mesh, batch) for mesh in tpus}) == 1
    for stage in ("multitask", "sft"):
        assert family(stage, "gpu", batch) == family(stage, "cpu", batch) != family(stage, "v5p", batch)
    assert family("multitask", "v5e", "rows") != family("multitask", "v5p", "rows")


def test_one_pass_over_the_mixture_of_the_paper_and_three_over_its_dialogues() -> None:
    samples = {"pretrain": 0, "multitask": 76_800_000, "sft": 350_000}
    for stage, passes in (("multitask", 1.1), ("sft", 2.9)):
        config = load(stage, "v5p", "samples")
        expected = expected_passes(config, SAMPLES_PER_ROW[stage])
        assert expected[ALL].passes == pytest.approx(passes, abs=0.05)
        assert all(one.passes == pytest.approx(expected[ALL].passes) for one in expected.values())
        rows = rows_of_one_pass(config, SAMPLES_PER_ROW[stage], {"all": samples[stage]})
        assert rows == -(-samples[stage] // int(config.train.steps * SAMPLES_PER_ROW[stage]))
    assert rows_of_one_pass(load("multitask", "v5p", "samples"), 4.4, {"all": 76_800_000}) == 919


def test_settings_that_the_docs_recommend_fit_the_recipes() -> None:
    """Every `--config.data.rows_per_step=N` in a text must pass the checks of each recipe of its stage 2."""
    texts = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "configs").rglob("*.py")]
    numbers = {int(number) for path in texts for number in re.findall(r"data\.rows_per_step=(\d+)", path.read_text())}
    assert numbers <= {1024, 4096}  # those of the two batches, which the tests above try on every recipe
    words = (ROOT / "docs" / "architecture.md").read_text()
    for batch in ("samples", "rows"):
        rows = [load(stage, "v5p", batch).data.rows_per_step for stage in ("multitask", "sft")]
        assert re.search(rf"`batch={batch}`.*\| {rows[0]:,} \| {rows[1]:,} \|", words), batch


@pytest.mark.parametrize("stage", ["multitask", "sft"])
def test_another_batch_is_refused(stage: str) -> None:
    with pytest.raises(ValueError, match="the batch 'tokens' is not one of samples, rows"):
        STAGES[stage].get_config(batch="tokens")


def test_passes_follow_from_samples_where_they_are_known(tmp_path: Path) -> None:
    config = tiny_run.make_config(tmp_path, train__steps=24)  # 8 rows of 3 samples: 576 samples, half of them captions
    passes = expected_passes(config, 3.0, {"caption": 144, "vqa": 60, "text": 600})
    assert passes["caption"] == (288, 2.0) and passes["vqa"] == (144, 2.4) and passes["text"] == (144, 0.24)
    assert passes[ALL] == (576, 576 / 804)


def test_a_source_that_begins_later_counts_with_its_highest_weight(tmp_path: Path) -> None:
    config = tiny_run.make_config(tmp_path, train__steps=24)
    first, *rest = config.data.mixture
    later = dataclasses.replace(first, weight=0.0, schedule=((100.0, 2.0),))
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, mixture=(later, *rest)))
    assert expected_passes(changed, 3.0) == expected_passes(config, 3.0)


def shown(capsys: pytest.CaptureFixture[str], config: Config, *known: Any) -> str:
    log.console.cache_clear()
    show_passes(config, *known)
    text = capsys.readouterr().out
    log.console.cache_clear()
    return " ".join(text.split())


def test_more_than_two_passes_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_run.make_config(tmp_path, train__steps=24)
    calm = shown(capsys, config, 3.0, {"caption": 1000, "vqa": 1000, "text": 1000})
    assert "warning" not in calm and "estimate" not in calm and "not opened" not in calm and "all sources" in calm
    text = shown(capsys, config, 3.0, {"caption": 1000, "vqa": 10, "text": 20})
    assert "warning: about 14.4 passes over vqa are expected, more than 2 over 2 sources" in text
    assert "an estimate; records are not opened" in shown(capsys, config)
