"""The ablations of appendix E: every arm is valid, and differs from the others and from its stage in what it says."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from configs import stage1_pretrain, stage2_multitask
from configs.ablations import convergence, convergence_questions, queries, window_attention
from configs.quickstart import stage1_pretrain as quickstart
from qwenvl_jax.ablation.study import StudyConfig
from qwenvl_jax.checkpoint.lineage import differences
from qwenvl_jax.config import Config, from_config_dict, load_config, to_dict, validate
from qwenvl_jax.data.schema import Batch
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.evaluation import config as evaluation
from tests.data.batches import take
from tests.support.commands import Answer, assert_refused, run_commands

ROOT = Path(__file__).parents[2]
FILES = sorted(path.stem for path in (ROOT / "configs/ablations").glob("*.py"))
STUDIES = [name for name in FILES if name not in ("__init__", "common", "convergence_questions")]
SIZES = ("full", "miniature")


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"configs.ablations.{name}")


def study_of(module: ModuleType, size: str) -> StudyConfig:
    return validate(from_config_dict(StudyConfig, module.STUDIES[size]))


def arms_of(module: ModuleType, size: str) -> dict[str, Config]:
    """The config of every arm by its name."""
    return {
        arm.name: load_config(module.get_config(",".join(filter(None, [arm.arguments, f"size={size}"]))))
        for arm in study_of(module, size).arms
    }


def changed_keys(one: Config, other: Config) -> set[str]:
    return {key for key, *_ in differences(to_dict(one), to_dict(other), "config")}


def test_there_is_a_study_for_every_section() -> None:
    assert STUDIES == ["convergence", "queries", "window_attention"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_is_a_valid_run_that_lasts_long_enough_for_its_figures(name: str, size: str) -> None:
    study = study_of(module_of(name), size)
    for config in arms_of(module_of(name), size).values():
        assert study.initial_steps <= study.late_from < config.train.steps
        assert config.train.log_every <= study.initial_steps


@pytest.mark.parametrize("size", SIZES)
def test_arms_differ_in_nothing_else(size: str) -> None:
    """And no two are the same."""
    allowed = {
        queries: {"config.model.resampler.query_grid", "config.data.sequence_length"},
        window_attention: {"config.data.image_size", "config.model.vit.window"},
    }
    for module, keys in allowed.items():
        first, *others = arms_of(module, size).values()
        assert set().union(*(changed_keys(first, other) for other in others)) == keys
        assert len({str(to_dict(config)) for config in (first, *others)}) == 4


def test_the_arms_are_those_of_the_paper() -> None:
    of_queries = arms_of(queries, "full")
    assert {name: config.model.resampler.queries for name, config in of_queries.items()} == {
        "L64": 64,
        "L144": 144,
        "L256": 256,
        "L400": 400,
    }
    for config in of_queries.values():
        vit = config.model.vit
        assert (config.data.image_size // vit.patch_size) ** 2 == 256
        assert (vit.width, vit.layers, vit.heads, vit.mlp_dim) == (1024, 24, 16, 4096)  # OpenCLIP's ViT-L-14.json
        assert config.data.sequence_length - config.model.resampler.image_tokens == 254
    assert of_queries["L256"].data.sequence_length == 512  # of stage 1

    of_windows = arms_of(window_attention, "full")
    assert list(of_windows) == ["global_448", "window_448", "global_896", "window_896"]
    for name, config in of_windows.items():
        vit = config.model.vit
        attention, pixels = name.split("_")
        assert config.data.image_size == int(pixels)
        assert vit.window * vit.patch_size == (224 if attention == "window" else 0)
        layers = vit.windowed_layers(int(pixels) // vit.patch_size)
        assert sum(layers) == (36 if attention == "window" else 0) and not any(layers[3::4])


def test_miniatures_keep_the_proportions_of_the_paper() -> None:
    def per_patch(size: str) -> list[float]:
        configs = arms_of(queries, size).values()
        return [c.model.resampler.queries / (c.data.image_size // c.model.vit.patch_size) ** 2 for c in configs]

    def windows(size: str) -> list[float]:
        configs = arms_of(window_attention, size).values()
        return [c.data.image_size / (c.model.vit.window * c.model.vit.patch_size or np.inf) for c in configs]

    assert per_patch("miniature") == per_patch("full")
    assert windows("miniature") == windows("full") == [0, 2, 0, 4]


def test_arms_are_the_stages_with_what_the_ablation_needs() -> None:
    stage1 = load_config(stage1_pretrain.get_config(data="d", runs="r"))
    stage2 = load_config(stage2_multitask.get_config(data="d", runs="r"))
    assert changed_keys(load_config(convergence.get_config(data="d", runs="r")), stage1) == {"config.evaluation.every"}
    run = {"config.train.steps", "config.train.log_every", "config.init.partial"}
    vit = {f"config.model.vit.{key}" for key in ("width", "layers", "mlp_dim")}
    large = load_config(queries.get_config(data="d", runs="r"))
    assert changed_keys(large, stage1) == run | vit | {"config.model.name", "config.init.vit"}
    assert changed_keys(load_config(window_attention.get_config(data="d", runs="r")), stage2) == run
    small = load_config(convergence.get_config(size="miniature", data="d", runs="r"))
    assert [source.name for source in small.data.mixture] == ["caption"]  # its answers are zero-shot
    assert changed_keys(small, load_config(quickstart.get_config(data="d", runs="r"))) == {
        *("config.evaluation.every", "config.data.mixture", "config.data.images_per_row"),
        "config.train.steps",
    }


@pytest.mark.parametrize("size", SIZES)
def test_what_convergence_asks_are_captions_and_questions(size: str) -> None:
    values = convergence_questions.get_config(size=size, data="d", runs="r")
    config = evaluation.validate(from_config_dict(evaluation.EvalConfig, values))
    names = [item.name for item in config.benchmarks]
    assert names == (["flickr30k_karpathy_test", "vqav2_val"] if size == "full" else ["vqa", "caption"])
    assert all(item.limit and item.records.startswith("d/") for item in config.benchmarks)


def test_all_numbers_of_queries_are_taught_the_same_in_the_same_steps(tiny_data: Path, tmp_path: Path) -> None:
    for task in ("caption", "vqa"):
        shutil.copytree(tiny_data / task, tmp_path / task)
    (tmp_path / "vocabulary").mkdir()
    shutil.copy(tiny_data / "tiny.model", tmp_path / "vocabulary/quickstart.model")

    def batches(count: float) -> list[Batch]:
        config = load_config(queries.get_config(queries=count, size="miniature", data=str(tmp_path)))
        return take(config, load_tokenizer(config.tokenizer), 3)

    for few, many in zip(batches(16.0), batches(100.0), strict=True):
        np.testing.assert_array_equal(few.images, many.images)
        np.testing.assert_array_equal(few.targets[few.loss_mask > 0], many.targets[many.loss_mask > 0])
        assert few.loss_mask.any()


MISTAKES = {
    "queries.py:queries=65": ("queries=65", "no square number", "64 or 81"),
    "queries.py:queries=2.5": ("queries=2.5", "whole number"),
    "queries.py:size=tiny": ("'tiny'", "full, miniature"),
    "queries.py:size=miniature,mesh=v5p": ("runs on CPUs", "mesh=v5p"),
    "window_attention.py:window=100": ("window=100", "14 pixels of a patch"),
    "window_attention.py:pixels=462,window=224": ("window 16", "33 patches"),
    "window_attention.py:pixels=450": ("image_size 450", "patch size 14"),
}


def test_mistakes_are_one_sentence() -> None:
    lines = [[f"--config=configs/ablations/{config}", "--dry_run"] for config in MISTAKES]
    for answer, words in zip(run_commands("qwenvl_jax.train", lines), MISTAKES.values(), strict=True):
        assert_refused(answer, *words)


def test_arms_are_launched_with_what_they_are_asked() -> None:
    arm = "configs/ablations/convergence.py:data=gs://b/d,runs=gs://b/r"
    questions = "configs/ablations/convergence_questions.py:data=gs://b/d"
    flags = ["--topology=v5p:8x8x8", "--workdir=gs://b/r/convergence/stage1", "--zone=us-east5-a"]
    command = [sys.executable, "-m", "launch", "tpu_vm", "run", f"--config={arm}", *flags]
    run = subprocess.run([*command, f"--benchmarks={questions}"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with_mesh = arm.replace(":", ":mesh=v5p,", 1)
    asked = f"--config={with_mesh} --workdir=gs://b/r/convergence/stage1 --benchmarks={questions}"
    assert f"python -m qwenvl_jax.train {asked}" in run.stdout
    run = subprocess.run([*command, "--benchmarks=configs/none.py"], cwd=ROOT, capture_output=True, text=True)
    assert_refused(Answer(run.returncode, run.stderr), "configs/none.py cannot be read")
