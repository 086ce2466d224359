"""The configs of evaluations: every name is a benchmark, every folder that of its corpus, every mesh has room."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest

from configs.evaluation import common, few_shot, paper_tables, pure_text
from configs.quickstart import eval as quickstart_eval
from configs.quickstart import eval_finetune, eval_taste
from data_pipelines.build import benchmarks as build_benchmarks
from qwenvl_jax import chips
from qwenvl_jax.config import from_config_dict
from qwenvl_jax.evaluation.benchmarks.held_out.registry import HELD_OUT
from qwenvl_jax.evaluation.benchmarks.registry import PUBLISHED
from qwenvl_jax.evaluation.config import EvalConfig, SpreadConfig, validate
from qwenvl_jax.runtime.errors import UserError

MODULES = {"paper_tables": paper_tables, "few_shot": few_shot, "pure_text": pure_text}
WEIGHTS = 2 * 9_656_935_168  # bytes in bfloat16


def load(module: ModuleType, **arguments: object) -> EvalConfig:
    return validate(from_config_dict(EvalConfig, module.get_config(**arguments)))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("mesh", common.MESHES)
def test_configs_pass_the_checks(name: str, mesh: str) -> None:
    config = load(MODULES[name], mesh=mesh, data="gs://b/data", runs="gs://b/runs", limit=5.0)
    assert config.output == f"gs://b/runs/evaluation/{name}"
    assert {item.limit for item in config.benchmarks} == {5}
    assert all(item.records.startswith("gs://b/data/") for item in config.benchmarks)


def test_the_quickstart_passes_the_checks() -> None:
    assert {item.name for item in load(quickstart_eval).benchmarks} == set(HELD_OUT)
    assert {item.name for item in load(eval_taste).benchmarks} == set(eval_taste.TASKS) <= set(HELD_OUT)
    assert len(load(eval_finetune).checkpoints) == 2


def test_a_spread_has_its_lower_value_first() -> None:
    config = load(quickstart_eval)
    wrong = dataclasses.replace(config, spread=(SpreadConfig("stage3_sft", "vqa_acc", 0.8, 0.7),))
    with pytest.raises(UserError, match=r"vqa_acc of stage3_sft lies between 0.8 and 0.7; give the lower value first"):
        validate(wrong)
    with pytest.raises(UserError, match=r"lies between nan and 0.7"):
        validate(dataclasses.replace(config, spread=(SpreadConfig("stage3_sft", "vqa_acc", float("nan"), 0.7),)))


def test_the_tokenisation_of_the_quickstart_is_that_of_captions_alone() -> None:
    figures = [key for item in load(quickstart_eval).benchmarks for key in item.benchmark.score([])]
    assert {"caption_cider", "vqa_acc", "referring_acc"} <= set(figures)


def test_all_published_benchmarks_are_swept() -> None:
    names = [item.name for item in load(paper_tables).benchmarks]
    assert sorted(names) == sorted(PUBLISHED)


def test_tables_and_folders_are_those_of_the_benchmarks() -> None:
    for table, folders in common.TABLES.items():
        for name, folder in folders.items():
            benchmark = PUBLISHED[name]
            assert folder == f"{benchmark.corpus}_{benchmark.split}", name
            if table == "more":
                assert not benchmark.paper
                assert not benchmark.paper_figures
            else:
                assert benchmark.table == table


def test_one_command_builds_the_records_of_all() -> None:
    """Also the exemplars that benchmarks show by default; training splits are built by a command of their own."""
    built = {f"{corpus}_{split}" for corpus, splits in build_benchmarks.BENCHMARKS.items() for split in splits}
    wanted = {folder for folders in common.TABLES.values() for folder in folders.values()}
    assert wanted | set(common.EXEMPLARS.values()) <= built


def test_examinations_have_their_exemplars() -> None:
    config = load(pure_text, data="d")
    assert [item.exemplar_count for item in config.benchmarks] == [5, 5, 5]
    for item in config.benchmarks:
        assert item.exemplars == f"d/{item.benchmark.corpus}_{item.benchmark.exemplar_split}/evaluation"
    with_exemplars = {name for name, benchmark in PUBLISHED.items() if benchmark.shots}
    assert with_exemplars == set(common.EXEMPLARS)


def test_shots_of_figure_4() -> None:
    config = load(few_shot, data="d")
    names = ("okvqa_val", "vizwiz_val", "textvqa_val", "flickr30k_karpathy_test")
    assert [(item.name, item.exemplar_count) for item in config.benchmarks] == [
        (name, shots) for name in names for shots in (0, 1, 2, 4, 8)
    ]
    assert not any(item.leak for item in config.benchmarks)
    for item in config.benchmarks:
        if item.exemplar_count:
            assert item.exemplars == f"d/{item.benchmark.corpus}_{item.benchmark.exemplar_split}/evaluation"


def test_the_leak_of_the_release_is_one_word() -> None:
    config = load(few_shot, leak="yes", seed=3.0)
    leaking = [item for item in config.benchmarks if item.leak]
    assert {(item.name, item.exemplars == item.records, item.exemplar_split) for item in leaking} == {
        ("flickr30k_karpathy_test", True, "test")
    }
    assert len(leaking) == 4
    assert {item.seed for item in config.benchmarks if item.exemplar_count} == {3}


def test_some_tables_or_benchmarks() -> None:
    assert {item.benchmark.table for item in load(paper_tables, tables="4+6").benchmarks} == {"4", "6"}
    names = [item.name for item in load(paper_tables, benchmarks="mme+gqa_testdev").benchmarks]
    assert names == ["mme", "gqa_testdev"]
    for arguments, message in (
        ({"tables": "4+8"}, "the table '8' is not one of 4, 5, 6, 7, 11, more"),
        ({"benchmarks": "mmee"}, "the benchmark 'mmee' is not one of"),
        ({"mesh": "v2"}, "the mesh 'v2' is not one of"),
    ):
        with pytest.raises(ValueError, match=message):
            paper_tables.get_config(**arguments)


def test_checkpoints_are_below_the_runs_unless_they_are_paths() -> None:
    config = load(paper_tables, runs="r", checkpoints="stage2_multitask+gs://b/imported/")
    assert [(item.name, item.workdir) for item in config.checkpoints] == [
        ("stage2_multitask", "r/stage2_multitask"),
        ("imported", "gs://b/imported/"),
    ]
    assert load(paper_tables).tokenizer.kind == "qwen"
    assert load(paper_tables, vocabulary="v.model").tokenizer.kind == "sentencepiece"


@pytest.mark.parametrize("mesh", sorted(set(common.MESHES) - {"cpu", "gpu"}))
def test_weights_leave_half_of_the_memory_free(mesh: str) -> None:
    """For the cache, the logits and the pictures."""
    sharing = common.MESHES[mesh]["tensor"]
    chip = chips.CHIPS[mesh]
    assert WEIGHTS / sharing < chip.device.hbm_bytes / 2
    assert chips.CHIPS_PER_HOST * chip.devices % sharing == 0
