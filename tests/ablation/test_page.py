"""Figures and page of a study: from runs that are finished, go on, or have not begun."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from qwenvl_jax.ablation.figures import read_figures
from qwenvl_jax.ablation.page import page, status
from qwenvl_jax.ablation.study import Study, read_study
from qwenvl_jax.ablation.training import write_page
from qwenvl_jax.checkpoint import lineage
from qwenvl_jax.config import TOWERS
from qwenvl_jax.html.charts import LINE_HEIGHT, WIDTH, running_mean
from qwenvl_jax.runtime.errors import UserError
from tests.support.commands import assert_refused, run_commands

STUDY = "tests/support/tiny_study.py"
ROOT = Path(__file__).parents[2]
LOSSES = [6.0, 5.0, 7.0, 4.0, 3.0, 3.5, 2.0, 2.5, 2.0, 1.0, 1.5, 1.0]


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def write_run(study: Study, number: int, steps: int) -> None:
    """The folder of an arm's run after some steps, as a run leaves it."""
    arm = study.arms[number]
    lineage.write(arm.workdir, arm.config, dict.fromkeys(TOWERS))
    lines = [
        {"step": step, "loss": LOSSES[step - 1] + number, "timing": {"seconds_per_step": 9.0 if step == 1 else 0.5}}
        for step in range(1, steps + 1)
    ]
    measured = [{"step": s, "loss": 3.0, "loss_by_task/vqa": 1.0, "vqa_score": s / 100} for s in (6, 12) if s <= steps]
    for name, values in (("metrics.jsonl", lines), ("evaluations.jsonl", measured)):
        (arm.workdir / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    if steps == arm.config.train.steps:
        (arm.workdir / f"checkpoints/{steps}").mkdir(parents=True)
        (arm.workdir / f"checkpoints/{steps}/commit_success.txt").write_text("")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Arm L1 is finished, L4 has taken 7 of 12 steps."""
    found = read_study(STUDY, {}, tmp_path / "study")
    write_run(found, 0, 12)
    write_run(found, 1, 7)
    return read_study(STUDY, {}, tmp_path / "study")


def test_figures_are_means_of_the_first_and_of_the_late_steps(study: Study) -> None:
    figures = read_figures(study)
    first, second = figures["L1"], figures["L4"]
    assert (first.step, first.finished, second.step, second.finished) == (12, True, 7, False)
    assert first.initial_loss == np.mean(LOSSES[:4]) and first.late_loss == np.mean(LOSSES[8:])
    assert second.initial_loss == np.mean(LOSSES[:4]) + 1 and np.isnan(second.late_loss)
    assert first.seconds_per_step == 0.5  # the first line has the compilation
    assert first.scores == {"held-out loss": [(6, 3.0), (12, 3.0)], "vqa_score": [(6, 0.06), (12, 0.12)]}


def test_an_arm_that_is_trained_but_not_evaluated_is_not_finished(study: Study) -> None:
    log = study.arms[0].workdir / "evaluations.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    assert not read_figures(study)["L1"].finished


def test_the_page_shows_all_arms_and_needs_nothing_else(study: Study) -> None:
    html = page(study, read_figures(study), 0.0)
    assert status(read_figures(study)) == "1 of 2 arms are finished."
    for text in ("loss, steps 1 to 4", "loss after step 8", "vqa_score", "held-out loss", "1970-01-01", "7 of 12"):
        assert text in html
    for arm in study.arms:
        assert arm.command_line in html
    assert "Nothing &lt;is&gt; claimed." in html and "<is>" not in html
    assert not re.search(r'(src|href)="(?!#|data:)', html) and "nan" not in html
    assert html.count("<section") == html.count("</section>") == 3


def test_the_curve_of_an_arm_is_smoothed_as_the_page_says(study: Study) -> None:
    """The polyline against sums over all pairs of points, scaled to the axes by a fit of two of its points."""
    html = page(study, read_figures(study))
    drawn = re.search(r'aria-label="loss">.*?<polyline points="([^"]+)"', html)
    assert drawn
    pixels = np.array([[float(n) for n in point.split(",")] for point in drawn[1].split()])
    index = np.arange(len(LOSSES))
    near = np.abs(index[:, None] - index[None, :]) <= len(LOSSES) // 12
    smooth = near @ np.array(LOSSES) / near.sum(axis=1)
    slope, offset = np.polyfit(smooth, pixels[:, 1], 1)
    np.testing.assert_allclose(slope * smooth + offset, pixels[:, 1], atol=0.1)
    assert slope < 0 and pixels.min() >= 0 and pixels[:, 0].max() <= WIDTH and pixels[:, 1].max() <= LINE_HEIGHT


@pytest.mark.parametrize("reach", [0, 1, 3, 50])
def test_running_means_are_those_of_a_convolution(reach: int) -> None:
    values = np.random.default_rng(0).normal(size=40)
    kernel = np.ones(2 * reach + 1)
    padded = np.convolve(values, kernel)[reach : reach + 40] / np.convolve(np.ones(40), kernel)[reach : reach + 40]
    np.testing.assert_allclose(running_mean(list(values), reach), padded)


def test_arms_may_have_been_trained_elsewhere_but_not_with_other_settings(study: Study) -> None:
    """What a run may change when it is continued, it may be trained with."""
    moved = {
        "train.checkpoint_every": 2,
        "compute.remat_vit": "full",
        "data.mixture": study.arms[0].config.data.mixture,
    }
    del moved["data.mixture"]
    assert write_page(read_study(STUDY, moved, study.workdir)).exists()
    with pytest.raises(UserError, match=r"L1 was started with config.optimizer.clip_norm = 1.0, not 0.5"):
        read_study(STUDY, {"optimizer.clip_norm": 0.5}, study.workdir)


def test_commands_of_arms_have_the_arguments_and_overrides_of_the_study(tmp_path: Path) -> None:
    read = read_study(f"{STUDY}:data=my data", {"train.seed": 3}, tmp_path)
    assert [arm.config.train.seed for arm in read.arms] == [3, 3]
    assert read.arms[0].config.model.resampler.queries == 1
    assert read.arms[0].config.data.mixture[0].records == "my data/caption"
    assert read.arms[0].command_line == (
        "python -m qwenvl_jax.train '--config=tests/support/tiny_study.py:grid=1,data=my data' "
        f"--workdir={tmp_path}/L1 --config.train.seed=3"
    )
    asked = read_study("configs/ablations/convergence.py:size=miniature,data=d", {}, tmp_path).arms[0].command
    assert asked[-1] == "--benchmarks=configs/ablations/convergence_questions.py:size=miniature,data=d"


def test_mistakes_are_one_sentence_and_no_device_is_used(study: Study, tmp_path: Path) -> None:
    workdir = f"--workdir={study.workdir}"
    lines = {
        (f"--config={STUDY}",): ("--workdir is missing",),
        (f"--config={STUDY}", f"--workdir={tmp_path}/none", "--page_only"): ("none of the arms L1, L4",),
        (f"--config={STUDY}:steps=20", workdir): ("L1 was started with config.train.steps = 12, not 20",),
        (f"--config={STUDY}:grid=2", workdir): ("'grid'", "leave it out"),
        (f"--config={STUDY}:size=large", workdir): ("no study of size 'large'", "tiny, twice"),
        (f"--config={STUDY}:size=twice", workdir): ("share a name",),
        (f"--config={STUDY}", workdir, "--config.train.step=3"): ("no key 'step'", "'steps'"),
        (f"--config={STUDY}", f"--workdir={tmp_path}/new", "--config.model.resampler.query_grid=1"): (
            "config.model.resampler.query_grid is what the arms",
            "leave it out",
        ),
        ("--config=configs/ablations/queries.py:queries=nan", workdir): ("queries=nan", "whole number"),
        ("--config=configs/ablations/window_attention.py:window=inf", workdir): ("window=inf", "whole number"),
        ("--config=configs/stage1_pretrain.py", workdir): ("declares no arms", "configs/ablations/queries.py"),
        ("--config=configs/ablations/queries.py:size=tiny", workdir): ("'tiny'", "full, miniature"),
    }
    used = "from jax._src import xla_bridge; assert not xla_bridge._backends"
    drawn = [f"--config={STUDY}", workdir, "--page_only"]
    *answers, page_only = run_commands("qwenvl_jax.ablate", [*lines, drawn], at_end=used)
    for answer, words in zip(answers, lines.values(), strict=True):
        assert_refused(answer, *words)
    assert page_only.code == 0 and f"page: {study.workdir}/ablation.html" in page_only.text, page_only
    assert "7 of 12" in page_only.text and not (tmp_path / "none").exists()
