"""The cost of the whole paper: corpora, three stages and the evaluation of Table 9, each line with its formula.

Steps of the stages and of decoding come from `predictions.json`, which `benchmarks/plan_figures.py` writes, as long as
the recipe is the one that was compiled; for another recipe or slice the step is compiled now. Nothing is measured on a
TPU. Rates of data work are measured on CPUs and one H200 (docs/pipelines.md, docs/ocr.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenvl_jax.chips import CHIPS, Topology, parse_topology
from qwenvl_jax.config import Config
from qwenvl_jax.models.flops import Work, forward_flops
from qwenvl_jax.planning import aot, candidates
from qwenvl_jax.planning.candidates import Candidate, Failure
from qwenvl_jax.planning.prediction import SECONDS_PER_HOUR, misfit_text
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

PREDICTIONS = Path(__file__).with_name("predictions.json")
STAGES = ("pretrain", "multitask", "sft")
SFT_CHIPS = 128  # stage 3 has 32 rows per step, so that it takes the slice of its recipe instead of a larger one

PAIRS = 5e9  # before cleaning (paper, Table 2)
RATES = {  # pairs or pages per second: of one core, and of one H200 (docs/pipelines.md, docs/ocr.md)
    "read, open pictures, compare pairs, write": 3390,
    "rules on texts, sizes and shapes": 1036,
    "OCR pages": 6.8,
}
CLIP_PAIRS = 4706
CLIP_CORES = 16
STORED = {  # what is stored -> pictures in millions (paper, Tables 2 and 3), and assumed kB per picture
    "records of stage 1": (1417.4, 30),
    "records of stage 2": (0.81 * 69.0, 145),  # 0.81 pictures per sample (docs/input.md), none of 7.8M texts
}
OCR_PAGES = 24.8e6  # paper, Table 3

PROMPT_TOKENS = 300  # 258 of the picture and a short question; assumed
# Benchmark of Table 9 -> questions as published, and tokens of an answer, which are assumed.
QUESTIONS = {
    "Nocaps val": (4_500, 16),
    "Flickr30K karpathy-test": (1_000, 16),
    "VQAv2 test-dev": (107_394, 4),
    "OKVQA val": (5_046, 4),
    "GQA test-balanced": (12_578, 4),
    "ScienceQA-Img test": (2_017, 4),
    "VizWiz test-dev": (8_000, 4),
    "TextVQA val": (5_000, 8),
    "DocVQA test": (5_188, 12),
    "ChartQA test": (2_500, 8),
    "OCRVQA test": (100_424, 12),
    "AI2Diagram test": (3_088, 4),
    "RefCOCO val, testA, testB": (21_586, 20),
    "RefCOCO+ val, testA, testB": (21_373, 20),
    "RefCOCOg val, test": (14_498, 20),
    "TouchStone en, zh": (1_816, 200),
    "MME": (2_374, 4),
    "SEED-Bench": (19_242, 4),
}
LEFT_OUT = "GRiT, whose number of questions this table does not have"
CHECKPOINTS = 2  # of stages 2 and 3


@dataclasses.dataclass(frozen=True)
class Line:
    """One cost; a range goes from the roofline to the compiler's cycles.

    Attributes:
      part: `corpora`, `stages` or `evaluation`.
      name, formula: what it is, and how it is reckoned.
      chips: that run it.
      chip_hours, core_hours, days, dollars: what it takes.
    """

    part: str
    name: str
    formula: str
    chips: int
    chip_hours: tuple[float, float]
    core_hours: float
    days: tuple[float, float]
    dollars: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Step:
    """A predicted step of a stage: seconds and MFU, roofline first."""

    seconds: tuple[float, float]
    mfu: tuple[float, float]


def topologies(names: str) -> list[Topology]:
    """The slices of `--topology`, separated by commas.

    Raises:
      UserError: for a name that is no slice that the cloud has.
    """
    found = [parse_topology(name) for name in names.split(",")]
    for topology in found:
        topology.check_rentable()
    return found


def check_prices(named: Mapping[str, Any] | None, kinds: Sequence[str]) -> None:
    """Raises UserError if a price file is given and lacks the price of a chip that is planned."""
    for kind in kinds:
        if named is not None and kind not in named:
            raise UserError(f"the price table has no price of {kind}; add it in dollars per chip and hour")


def plan(
    chosen: Topology, prices: Mapping[str, float], config_of: Callable[[str, str], Config]
) -> tuple[list[Line], dict[str, Step]]:
    """All lines for one kind of chip, and the predicted steps by stage.

    Args:
      chosen: the slice of stages 1 and 2.
      prices: dollars per chip-hour by kind, and those of `assumptions.SERVICES`.
      config_of: the config of a stage with the recipe of a chip.

    Raises:
      UserError: if there is no recipe for the chip, or a step does not fit.
    """
    kind = chosen.chip.kind
    known = artifacts.read_json(PREDICTIONS)
    if kind not in {parse_topology(one["topology"]).chip.kind for one in known.values()}:
        raise UserError(f"there is no recipe of {kind} (configs/meshes); plan one of the other chips")
    lines = [*corpora(prices)]
    steps = {}
    for stage in STAGES:
        config = config_of(stage, kind)
        topology = chosen
        if stage == "sft" and chosen.chips > SFT_CHIPS:
            topology = next(
                parse_topology(one["topology"])
                for one in known.values()
                if one.get("stage") == stage and one["topology"].startswith(f"{kind}:")
            )
        steps[stage] = step_of(stage, config, topology, known)
        lines.append(stage_line(stage, config, topology, steps[stage], prices[kind]))
    lines += evaluation(kind, config_of("sft", kind), steps["sft"], known, prices[kind])
    return lines, steps


def settings_of(config: Config) -> dict[str, Any]:
    """What a stored prediction must have in common with a config to stand for it."""
    return dict(
        rows_per_step=config.data.rows_per_step,
        images_per_row=config.data.images_per_row,
        accumulation=config.data.accumulation,
        fsdp=config.mesh.fsdp,
        tensor=config.mesh.tensor,
        remat_vit=config.compute.remat_vit,
        remat_decoder=config.compute.remat_decoder,
        loss_chunk=config.compute.loss_chunk,
    )


def step_of(stage: str, config: Config, topology: Topology, known: Mapping[str, Any]) -> Step:
    """The stored prediction of this recipe on this slice, or a new one.

    Raises:
      UserError: if it must be compiled, and there is no compiler or the step does not fit.
    """
    settings = settings_of(config)
    for one in known.values():
        same = one.get("stage") == stage and one["topology"] == topology.name
        if same and all(one[name] == value for name, value in settings.items()):
            return Step(
                (one["step_seconds_roofline"], one["step_seconds_cycles"]), (one["mfu_roofline"], one["mfu_cycles"])
            )
    aot.check_compiler()
    outcome = candidates.run(Candidate(stage, config, topology))
    if isinstance(outcome, Failure):
        raise UserError(f"{stage} on {topology.name}: {outcome.reason}")
    if not outcome.fits:
        raise UserError(misfit_text(outcome))
    fast, slow, high, low = (
        outcome.step_seconds_roofline,
        outcome.step_seconds_cycles,
        outcome.mfu_roofline,
        outcome.mfu_cycles,
    )
    assert fast and slow and high and low
    return Step((fast, slow), (high, low))


def corpora(prices: Mapping[str, float]) -> Iterator[Line]:
    """Cleaning of the pairs, OCR pages, and a month of storage."""
    for name, rate in RATES.items():
        count, unit = (OCR_PAGES, "pages") if name == "OCR pages" else (PAIRS, "pairs")
        hours = count / rate / SECONDS_PER_HOUR
        formula = f"{count:,.0f} {unit} / {rate:,} per second of a core (measured) / 3,600 x ${prices['core']:g}"
        yield _line("corpora", name, formula, core_hours=hours, dollars=hours * prices["core"])
    hours = PAIRS / CLIP_PAIRS / SECONDS_PER_HOUR
    cost = hours * (prices["h200"] + CLIP_CORES * prices["core"])
    yield _line(
        "corpora",
        "CLIP score",
        f"{PAIRS:,.0f} pairs / {CLIP_PAIRS:,} per second of an H200 with {CLIP_CORES} cores (measured) / 3,600 x "
        f"(${prices['h200']:g} + {CLIP_CORES} x ${prices['core']:g})",
        core_hours=CLIP_CORES * hours,
        dollars=cost,
    )
    for name, (millions, kilobytes) in STORED.items():
        size = millions * kilobytes  # GB
        formula = (
            f"{millions:,.1f}M pictures x {kilobytes} kB (assumed) = {size:,.0f} GB x ${prices['storage']:g}, a month"
        )
        yield _line("corpora", f"storage, {name}", formula, dollars=size * prices["storage"])


def _line(part: str, name: str, formula: str, *, core_hours: float = 0.0, dollars: float = 0.0) -> Line:
    return Line(part, name, formula, 0, (0.0, 0.0), core_hours, (0.0, 0.0), (dollars, dollars))


def stage_line(stage: str, config: Config, topology: Topology, step: Step, price: float) -> Line:
    """The cost of a stage without restarts and stalls."""
    fast, slow = (config.train.steps * seconds for seconds in step.seconds)
    formula = (
        f"{config.train.steps:,} steps of {config.data.rows_per_step:,} rows x {step.seconds[0]:.2f} - "
        f"{step.seconds[1]:.2f} s (predicted) x {topology.chips} chips / 3,600 x ${price:g}"
    )
    return _on_chips("stages", f"{stage} on {topology.name}", formula, topology.chips, (fast, slow), price)


def _on_chips(part: str, name: str, formula: str, chips: int, seconds: tuple[float, float], price: float) -> Line:
    hours = (seconds[0] * chips / SECONDS_PER_HOUR, seconds[1] * chips / SECONDS_PER_HOUR)
    days = (seconds[0] / SECONDS_PER_HOUR / 24, seconds[1] / SECONDS_PER_HOUR / 24)
    return Line(part, name, formula, chips, hours, 0.0, days, (hours[0] * price, hours[1] * price))


def evaluation(kind: str, config: Config, step: Step, known: Mapping[str, Any], price: float) -> Iterator[Line]:
    """Every benchmark of Table 9 for both checkpoints on the slice whose decoding was predicted.

    A prompt takes the operations of its forward pass at the MFU of stage 3, an answer its tokens' share of a step.
    """
    stored = next((one for one in known.values() if "batch" in one and one["topology"].startswith(f"{kind}:")), None)
    if stored is None:
        yield _line("evaluation", f"no prediction of decoding on {kind}", "run plan --decode and add it")
        return
    topology = parse_topology(stored["topology"])
    flops = sum(product.forward for product in forward_flops(config, Work(PROMPT_TOKENS, PROMPT_TOKENS, 1, 1)))
    peak = CHIPS[kind].peak_flops * topology.chips
    for name, (questions, tokens) in QUESTIONS.items():
        asked = questions * CHECKPOINTS
        seconds = []
        for mfu, decoding in zip(
            step.mfu, (stored["step_seconds_roofline"], stored["step_seconds_cycles"]), strict=True
        ):
            seconds.append(asked * (flops / (mfu * peak) + tokens * decoding / stored["batch"]))
        formula = (
            f"{questions:,} questions x {CHECKPOINTS} checkpoints x ({flops / 1e12:.1f} TFLOP of the prompt at "
            f"stage 3's MFU + {tokens} tokens (assumed) x {1e3 * stored['step_seconds_roofline']:.1f} - "
            f"{1e3 * stored['step_seconds_cycles']:.1f} ms (predicted) / {stored['batch']} rows) on {topology.name}"
        )
        yield _on_chips("evaluation", name, formula, topology.chips, (seconds[0], seconds[1]), price)


def total(lines: Sequence[Line], name: str) -> Line:
    """The sum of lines; days are those of one after another."""

    def both(values: list[tuple[float, float]]) -> tuple[float, float]:
        return sum(first for first, _ in values), sum(second for _, second in values)

    return Line(
        lines[0].part if lines else "",
        name,
        "the sum of the lines above",
        max((line.chips for line in lines), default=0),
        both([line.chip_hours for line in lines]),
        sum(line.core_hours for line in lines),
        both([line.days for line in lines]),
        both([line.dollars for line in lines]),
    )


def summed(lines: Sequence[Line]) -> list[Line]:
    """The lines with a sum after every part and one of all at the end."""
    result: list[Line] = []
    for part in dict.fromkeys(line.part for line in lines):
        of_part = [line for line in lines if line.part == part]
        result += [*of_part, total(of_part, f"all {part}")]
    return [*result, total(lines, "the whole paper")]
