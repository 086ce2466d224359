"""`plan --paper`: every line against arithmetic of its own, and the stored predictions against recipes and compiler."""

from __future__ import annotations

import dataclasses
import functools
import html
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from configs import stage1_pretrain, stage2_multitask, stage3_sft
from configs.evaluation.common import TABLES
from qwenvl_jax.chips import CHIPS, parse_topology
from qwenvl_jax.config import Config, load_config
from qwenvl_jax.planning import candidates, predictions
from qwenvl_jax.planning.candidates import Candidate
from qwenvl_jax.planning.paper import evaluation, plan
from qwenvl_jax.planning.paper.lines import Line
from qwenvl_jax.planning.prediction import Prediction
from qwenvl_jax.planning.predictions import Decoding, Step
from qwenvl_jax.runtime.errors import UserError
from tests.support.commands import assert_refused, run_commands

MODULES = {"pretrain": stage1_pretrain, "multitask": stage2_multitask, "sft": stage3_sft}
STEPS = {"pretrain": 50_000, "multitask": 19_000, "sft": 8_000}  # paper, Table 8
KINDS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
STORED = json.loads(predictions.PREDICTIONS.read_text())


@functools.cache
def config_of(stage: str, kind: str) -> Config:
    return load_config(MODULES[stage].get_config(mesh=kind))


def sums(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["name"].startswith("all ") or line["name"] == "the whole paper"]


def test_the_sums_are_the_arithmetic_of_their_formulas(tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text('{"v5p": 2.0, "v4": 1.0, "core": 0.1, "storage": 0.0, "h200": 4.0}')
    line = ["--paper", "--topology=v5p:8x8x8,v4:8x8x8", f"--prices={prices}"]
    commands = [[*line, "--json"], [*line, f"--html={tmp_path / 'paper.html'}"]]
    machine, person = run_commands("qwenvl_jax.plan", commands, needs_config=False)
    assert machine.code == person.code == 0, machine.text + person.text
    plans = json.loads(machine.text)
    assert list(plans) == ["v5p:8x8x8", "v4:8x8x8"]
    page = html.unescape((tmp_path / "paper.html").read_text())
    for kind, price, costs in zip(("v5p", "v4"), (2.0, 1.0), plans.values(), strict=True):
        lines = {one["name"]: one for one in costs["lines"]}
        for stage, number in zip(STEPS, "123", strict=True):
            stored = STORED[f"{number} {kind}"]
            chips = parse_topology(stored["topology"]).chips
            hours = STEPS[stage] * stored["step_seconds_roofline"] * chips / 3600
            one = lines[f"{stage} on {stored['topology']}"]
            assert one["chip_hours"][0] == pytest.approx(hours)
            assert one["dollars"][0] == pytest.approx(price * hours)
            assert one["days"][0] == pytest.approx(hours / chips / 24)
        score = 5e9 / 4706 / 3600  # hours of an H200 with 16 cores
        assert lines["CLIP score"]["dollars"] == pytest.approx([score * 5.6] * 2)
        parts = [one for one in costs["lines"] if one not in sums(costs["lines"])]
        for key, end in itertools.product(("dollars", "days", "chip_hours"), (0, 1)):
            assert lines["the whole paper"][key][end] == pytest.approx(sum(one[key][end] for one in parts))
        assert lines["the whole paper"]["core_hours"] == pytest.approx(sum(one["core_hours"] for one in parts))
        for one in costs["lines"]:
            dollars = f"{one['dollars'][0]:,.0f}" if max(one["dollars"]) >= 100 else f"{one['dollars'][0]:.2f}"
            for text in (page, person.text):
                assert one["formula"] in text and (dollars in text or not any(one["dollars"])), one
    for words in ("the whole paper", "multitask on v5p:8x8x8", "predicted, not measured"):
        assert words in page and words in person.text, words


def dollars_of(formula: str, end: int) -> float:
    """What a printed formula comes to, with the first or the last value of its ranges."""
    text = re.sub(r"\([^()]*(?:measured|assumed|predicted)\)|, a month|, assumed|^.* = |[$,]", "", formula)
    text = re.sub(r"([\d.]+(?:e-?\d+)?) - ([\d.]+(?:e-?\d+)?)", lambda match: match[1 + end], text)
    text = text.replace("TFLOP/s", "").replace(" x ", " * ")
    return float(eval(re.sub(r"[A-Za-z][A-Za-z0-9' ]*", "", text)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_printed_formula_comes_to_its_dollars(kind: str) -> None:
    topology = predictions.slice_of(kind, "pretrain")
    assert topology is not None
    prices = {chip.kind: chip.price for chip in CHIPS.values()} | {"core": 0.05, "storage": 0.02, "h200": 10.0}
    lines, steps = plan.plan(topology, prices, config_of)
    assert list(steps) == list(STEPS)
    spent = [line for line in lines if not line.formula.startswith(("the sum", "all "))]
    assert len(spent) == 6 + 3 + len(evaluation.TABLE_9)
    for line in spent:
        for end in (0, 1):
            assert dollars_of(line.formula, end) == pytest.approx(line.dollars[end], rel=0.006), line


def test_a_benchmark_costs_its_prompts_and_its_tokens() -> None:
    decoding = Decoding("v5p:1x1x1", 32, (0.01, 0.02))
    found = evaluation.lines("v5p", config_of("sft", "v5p"), Step((1.0, 1.0), (0.5, 0.25)), decoding, 3.0)
    lines: dict[str, Line] = {line.name.removesuffix(" on v5p:1x1x1"): line for line in found}
    assert list(lines) == [asked.name for asked in evaluation.TABLE_9]
    seconds = {name: line.days[0] * 86400 for name, line in lines.items()}
    prompt = seconds["OKVQA val"] / (2 * 5_046) - 4 * 0.01 / 32
    assert seconds["TouchStone en, zh"] == pytest.approx(1_816 * (prompt + 200 * 0.01 / 32))  # the chat model alone
    assert seconds["ScienceQA-Img test"] == pytest.approx(2 * 2_017 * prompt)  # likelihoods: no token is written
    video = seconds["SEED-Bench, videos"] / (2 * 5_009)
    assert 3.5 * prompt < video < 4 * prompt  # four pictures, one question
    # One picture of 448 px and 300 tokens: 1.9B and 6.5B parameters, two operations per parameter and position.
    assert prompt * 0.5 * 459e12 == pytest.approx(2 * (1.9e9 * 1024 + 6.5e9 * 300), rel=0.15)


def test_table_9_has_the_benchmarks_of_the_sweep() -> None:
    """All of the paper's tables 4 to 7; `val` stands for the hidden `test` in those that Table 9 does not name."""
    asked = {name for one in evaluation.TABLE_9 for name in one.benchmarks} | set(evaluation.LEFT_OUT)
    swept = {name for table in "4567" for name in TABLES[table]}
    assert swept - asked == {"vqav2_val", "vizwiz_val", "docvqa_val", "ocrvqa_val"} and not asked - swept
    # Table 7 of the paper has one figure over all questions of SEED-Bench, and one of images and of videos.
    images, videos = (one.questions for one in evaluation.TABLE_9 if "seed_bench" in one.benchmarks)
    for whole, of_images, of_videos in ((56.3, 62.3, 39.1), (58.2, 65.4, 37.8)):
        assert (of_images * images + of_videos * videos) / (images + videos) == pytest.approx(whole, abs=0.06)


@pytest.mark.parametrize(("stage", "kind"), list(itertools.product(STEPS, KINDS)))
def test_what_is_stored_was_compiled_for_the_recipe_of_today(stage: str, kind: str) -> None:
    topology = predictions.slice_of(kind, stage)
    assert topology is not None
    number = 1 + list(STEPS).index(stage)
    stored = STORED[f"{number} {kind}"]
    step = predictions.step_of(config_of(stage, kind), topology)  # without a compiler: it raises if the row is stale
    assert step.seconds == (stored["step_seconds_roofline"], stored["step_seconds_cycles"])
    assert predictions.decoding_of(kind, config_of("sft", kind)).batch == 32


CHANGES = {
    "data.sequence_length": 1024,
    "data.image_size": 224,
    "data.images_per_row": 3.0,
    "data.accumulation": 2,
    "data.image_groups": 0,
    "model.decoder.layers": 31,
    "model.vit.window": 8,
    "mesh.data": 1,
    "compute.remat_vit": "full",
    "compute.compute_dtype": "float32",
    "compute.xla_options": (),
    "optimizer.first_moment_dtype": "bfloat16",
    "optimizer.moments_memory": "pinned_host",
    "optimizer.kind": "muon",
    "train.trainable": ("decoder",),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_row_of_another_config_is_not_used(key: str) -> None:
    values = stage3_sft.get_config(mesh="v5p")
    values.update_from_flattened_dict({key: CHANGES[key]})
    words = predictions.changes(STORED["3 v5p"]["config"], load_config(values), predictions.compiled_settings)
    assert words.startswith(f"config.{key} is ") and " instead of " in words


def test_what_only_counts_elsewhere_keeps_a_row() -> None:
    values = stage3_sft.get_config(mesh="v5p")
    values.update_from_flattened_dict({"train.steps": 9000, "optimizer.peak_learning_rate": 2e-5, "data.seed": 9})
    stored = dict(STORED["3 v5p"]["config"])
    assert not predictions.changes(stored, load_config(values), predictions.compiled_settings)
    del stored["compute.frozen_kernels"]  # a key that came later, and had its default
    assert not predictions.changes(stored, load_config(values), predictions.compiled_settings)
    unknown = predictions.changes({**stored, "compute.gone": 1}, load_config(values), predictions.compiled_settings)
    assert "no key 'gone'" in unknown


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="with libtpu it is compiled")
def test_a_step_that_is_not_stored_names_what_has_changed() -> None:
    config = config_of("sft", "v5p")
    topology = parse_topology("v5p:2x2x4")
    other = dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat_decoder="full"))
    with pytest.raises(UserError, match=r"config.compute.remat_decoder is full instead of matmuls_saved.*libtpu"):
        predictions.step_of(other, topology)
    with pytest.raises(UserError, match=r"sft on v5p:2x2x2 is missing, and libtpu"):
        predictions.step_of(config, parse_topology("v5p:2x2x2"))
    wide = dataclasses.replace(config.model, decoder=dataclasses.replace(config.model.decoder, width=2048))
    with pytest.raises(UserError, match=r"decoding on v5p:1x1x1 is of another config \(config.model.decoder.width"):
        predictions.decoding_of("v5p", dataclasses.replace(config, model=wide))


def test_a_slice_that_does_not_suit_the_recipe_is_refused_with_one_that_does() -> None:
    candidate = Candidate("multitask", config_of("multitask", "v5p"), parse_topology("v5p:2x2x4"))
    with pytest.raises(UserError, match=r"recipe of multitask does not run on v5p:2x2x4 \(.*\); .* such as v5p:8x8x8$"):
        predictions.compiled(candidate)


def test_a_chip_without_stored_predictions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name: row for name, row in STORED.items() if "tpu7x" not in name}
    (tmp_path / "predictions.json").write_text(json.dumps(others))
    monkeypatch.setattr(predictions, "PREDICTIONS", tmp_path / "predictions.json")
    topology = parse_topology("tpu7x:4x4x8")
    with pytest.raises(UserError, match="no prediction of pretrain, multitask, sft on tpu7x is stored; plan one of"):
        plan.plan(topology, dict.fromkeys(("tpu7x", "core", "storage", "h200"), 1.0), config_of)


def test_stage_3_takes_no_larger_slice_than_its_recipe() -> None:
    for chosen, taken in (("v5p:8x8x8", "v5p:2x2x4"), ("v5p:4x4x4", "v5p:2x2x4"), ("v5p:2x2x2", "v5p:2x2x2")):
        assert plan.stage_slice("sft", parse_topology(chosen)).name == taken
        assert plan.stage_slice("multitask", parse_topology(chosen)).name == chosen


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    contents = {
        '{"v5p": NaN}': "price of v5p",
        '{"v5p": Infinity}': "price of v5p",
        f'{{"v5p": 1{"0" * 400}}}': "price of v5p",
        '{"v5p": -1}': "not -1",
        '{"v5p": "3"}': "not '3'",
        '{"v4": 1}': "no price of v5p",
        "[]": "must be a JSON object",
        "null": "must be a JSON object",
        "": "not valid JSON",
    }
    line = ["--paper", "--topology=v5p:8x8x8"]
    lines = {}
    for number, (content, words) in enumerate(contents.items()):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        lines[*line, f"--prices={path}"] = words
    for topology, words in {
        "v5p:3x3x3": "multiple of 4",
        "v5p:8x8x8,": "has not the form",
        "v5p": "has not the form",
    }.items():
        lines["--paper", f"--topology={topology}"] = words
    lines[*line, "--batch=3"] = lines[*line, "--jobs=2"] = "takes only"
    answers = run_commands("qwenvl_jax.plan", list(lines), needs_config=False)
    for answer, words in zip(answers, lines.values(), strict=True):
        assert_refused(answer, words)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_compiler_says_what_is_stored() -> None:
    stored = STORED["3 v5p"]
    outcome = candidates.run(Candidate("stage 3", config_of("sft", "v5p"), parse_topology(stored["topology"])))
    assert isinstance(outcome, Prediction), outcome
    for name in ("step_seconds_roofline", "step_seconds_cycles", "mfu_roofline", "mfu_cycles", "hbm_gib"):
        assert getattr(outcome, name) == pytest.approx(stored[name], rel=0.01), name
