"""`plan --paper`: every line against arithmetic of its own, and the stored predictions against recipes and compiler."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import pytest

from configs import stage1_pretrain, stage2_multitask, stage3_sft
from qwenvl_jax.chips import parse_topology
from qwenvl_jax.config import load_config
from qwenvl_jax.planning import candidates, paper
from qwenvl_jax.planning.candidates import Candidate
from qwenvl_jax.planning.prediction import Prediction
from tests.support.commands import run_commands

MODULES = {"pretrain": stage1_pretrain, "multitask": stage2_multitask, "sft": stage3_sft}
STEPS = {"pretrain": 50_000, "multitask": 19_000, "sft": 8_000}  # paper, Table 8
STORED = json.loads(paper.PREDICTIONS.read_text())


def test_the_sums_are_the_arithmetic_of_their_formulas(tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text('{"v5p": 2.0, "v4": 1.0, "core": 0.1, "storage": 0.0, "h200": 4.0}')
    line = ["--paper", "--topology=v5p:8x8x8,v4:8x8x8", f"--prices={prices}"]
    commands = [[*line, "--json"], [*line, f"--html={tmp_path / 'paper.html'}"]]
    machine, person = run_commands("qwenvl_jax.plan", commands, needs_config=False)
    assert machine.code == person.code == 0, machine.text + person.text
    plans = json.loads(machine.text)
    assert list(plans) == ["v5p:8x8x8", "v4:8x8x8"]
    for kind, price, plan in zip(("v5p", "v4"), (2.0, 1.0), plans.values(), strict=True):
        lines = {one["name"]: one for one in plan["lines"]}
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
        parts = [one for one in lines.values() if one["name"] not in ("the whole paper",) and "all " not in one["name"]]
        for key in ("dollars", "days", "chip_hours"):
            assert lines["the whole paper"][key][1] == pytest.approx(sum(one[key][1] for one in parts))
    page = (tmp_path / "paper.html").read_text()
    for words in ("the whole paper", "multitask on v5p:8x8x8", "19,000 steps of 1,024 rows", "predicted, not measured"):
        assert words in page, words
        assert words in person.text, words


def test_a_benchmark_costs_its_prompts_and_its_tokens() -> None:
    config = load_config(stage3_sft.get_config(mesh="v5p"))
    step = paper.Step((1.0, 1.0), (0.5, 0.25))
    lines = {line.name: line for line in paper.evaluation("v5p", config, step, STORED, 3.0)}
    assert set(lines) == set(paper.QUESTIONS)
    few, many = (lines[name] for name in ("OKVQA val", "TouchStone en, zh"))
    seconds = {"OKVQA val": 2 * 5_046 * 4, "TouchStone en, zh": 2 * 1_816 * 200}
    token = STORED["decode v5p"]["step_seconds_roofline"] / 32
    prompts = few.days[0] * 86400 - seconds["OKVQA val"] * token
    assert many.days[0] * 86400 == pytest.approx(seconds["TouchStone en, zh"] * token + prompts * 1_816 / 5_046)
    # One picture of 448 px and 300 tokens: 1.9B and 7.2B parameters, two operations per parameter and position.
    assert prompts / (2 * 5_046) * 0.5 * 459e12 == pytest.approx(2 * (1.9e9 * 1024 + 6.5e9 * 300), rel=0.15)


@pytest.mark.parametrize(("stage", "kind"), list(itertools.product(STEPS, ("v4", "v5e", "v5p", "v6e"))))
def test_what_is_stored_was_compiled_for_the_recipe_of_today(stage: str, kind: str) -> None:
    number = 1 + list(STEPS).index(stage)
    config = load_config(MODULES[stage].get_config(mesh=kind))
    stored = STORED[f"{number} {kind}"]
    assert {name: stored[name] for name in paper.settings_of(config)} == paper.settings_of(config)
    assert stored["stage"] == config.train.stage


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_compiler_says_what_is_stored() -> None:
    stored = STORED["3 v5p"]
    config = load_config(stage3_sft.get_config(mesh="v5p"))
    outcome = candidates.run(Candidate("stage 3", config, parse_topology(stored["topology"])))
    assert isinstance(outcome, Prediction), outcome
    for name in ("step_seconds_roofline", "step_seconds_cycles", "mfu_roofline", "mfu_cycles", "hbm_gib"):
        assert getattr(outcome, name) == pytest.approx(stored[name], rel=0.01), name
