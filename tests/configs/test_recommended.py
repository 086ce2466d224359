"""Numbers that docs and configs recommend pass the checks of the recipes they are meant for; the passes to expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

from configs import stage2_multitask
from qwenvl_jax.config import Config, load_config
from qwenvl_jax.runtime import log
from qwenvl_jax.sharding.batch import check_batch
from qwenvl_jax.sharding.mesh import AXES, mesh_shape
from qwenvl_jax.training.summary import expected_passes, show_passes
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]
CHIPS = {"cpu": 1, "gpu": 64, "v4": 512, "v5e": 256, "v5p": 512, "v6e": 256}
ONE_PASS = {"data.rows_per_step": 1024}
ACCUMULATION = {"v4": 2, "v5e": 4}


def stage_2(mesh: str, changes: dict[str, int]) -> Config:
    values = stage2_multitask.get_config(mesh=mesh)
    values.update_from_flattened_dict(changes)
    return load_config(values)


@pytest.mark.parametrize("mesh", CHIPS)
def test_one_pass_of_stage_2_runs_on_every_recipe(mesh: str) -> None:
    changes = ONE_PASS | ({"data.accumulation": ACCUMULATION[mesh]} if mesh in ACCUMULATION else {})
    config = stage_2(mesh, changes)
    check_batch(config.data.rows_per_microbatch, AbstractMesh(mesh_shape(config.mesh, CHIPS[mesh]), AXES))
    assert all(0.9 < passes < 1.2 for _, passes in expected_passes(config, None).values())


def test_no_other_number_of_rows_is_recommended() -> None:
    texts = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "configs").glob("*.py")]
    numbers = [
        int(number)
        for path in texts
        for number in re.findall(r"(?:--config\.data\.rows_per_step=|set this to )(\d+)", path.read_text())
    ]
    assert numbers and set(numbers) == {ONE_PASS["data.rows_per_step"]}
    words = (ROOT / "docs" / "architecture.md").read_text()
    for mesh, number in ACCUMULATION.items():
        assert re.search(rf"`(?:--config\.data\.accumulation)?={number}` on {mesh}", words)


def test_passes_follow_from_records_where_they_are_known(tmp_path: Path) -> None:
    config = tiny_run.make_config(tmp_path, train__steps=24)  # 8 rows of 3 images: 576 samples, half of them captions
    passes = expected_passes(config, {"caption": 144, "vqa": 60, "text": 600})
    assert passes["caption"] == (288, 2.0) and passes["vqa"] == (144, 2.4) and passes["text"] == (144, 0.24)


def test_more_than_two_passes_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_run.make_config(tmp_path, train__steps=24)
    log.console.cache_clear()
    show_passes(config, {"caption": 1000, "vqa": 1000, "text": 1000})
    calm = capsys.readouterr().out
    log.console.cache_clear()
    show_passes(config, {"caption": 1000, "vqa": 10, "text": 20})
    text = capsys.readouterr().out
    log.console.cache_clear()
    assert "warning" not in calm and "an estimate" in calm and "not opened" not in calm
    assert "warning: about 14.4 passes over vqa are expected, more than 2 over 2 sources" in " ".join(text.split())
