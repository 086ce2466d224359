"""Entries of a small sweep: two checkpoints of one run, several benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from qwenvl_jax.evaluation.results.entries import Entry
from qwenvl_jax.evaluation.results.figures import Comparison, Figure


def figure(value: float, questions: int = 1000, unit: float = 100.0) -> Figure:
    """A figure with an interval of plus and minus a tenth of its value."""
    return Figure(
        value,
        unit,
        questions,
        questions // 5,
        error=value / 20,
        low=value * 0.9,
        high=value * 1.1,
        smallest=value / 5,
        right=value * questions if unit == 100.0 else None,
    )


def change(value: float, p: float, unit: float = 100.0) -> Comparison:
    """A difference with an interval of plus and minus a hundredth of the unit."""
    return Comparison(value, unit, 990, 198, 10, error=0.005, low=value - 0.01, high=value + 0.01, p=p, smallest=0.014)


def entry(
    benchmark: str,
    main: str,
    value: float,
    *,
    step: int = 2000,
    further: Mapping[str, float] | None = None,
    unit: float = 100.0,
    p: float = 0.03,
    gain: float = 0.012,
) -> Entry:
    """One benchmark of one checkpoint; the first one, of step 1000, has no baseline."""
    figures = {name: figure(each, 300, unit) for name, each in (further or {}).items()}
    changes = {name: change(gain, 0.5, unit) for name in figures}
    first = step == 1000
    return Entry(
        checkpoint=f"step{step}",
        run="runs/stage2_multitask",
        step=step,
        benchmark=benchmark,
        label=benchmark,
        shots=0,
        leak=False,
        prompt="",
        baseline="" if first else "step1000",
        judge="",
        questions=1000,
        unanswered=0 if first else 3,
        seconds=61.25,
        tokens=4210,
        figures={main: dataclasses.replace(figure(value, unit=unit), figures=figures)} if main else {},
        comparisons={} if first or not main else {main: dataclasses.replace(change(gain, p, unit), figures=changes)},
    )


def small_sweep() -> list[Entry]:
    """Benchmarks of five tables."""
    entries = []
    for step, gain in ((1000, 0.0), (2000, 0.012)):
        vqa = entry("vqav2_val", "vqa_accuracy", 0.7 + gain, step=step)
        main = dataclasses.replace(
            vqa.figures["vqa_accuracy"],
            upstream_exact=figure(0.69),
            reason="the released evaluator normalises annotated answers only in part",
            clean=figure(0.68 + gain, 120),
        )
        entries += [
            entry("seed_bench", "choice_accuracy", 0.5 + gain, step=step, further={"image": 0.6, "video": 0.3}),
            dataclasses.replace(vqa, figures={"vqa_accuracy": main}),
            entry("vqav2_testdev", "", 0.0, step=step),
            entry("chartqa_test_human", "relaxed_accuracy", 0.4 + gain, step=step, p=0.00001),
            entry("chartqa_test_augmented", "relaxed_accuracy", 0.6 + gain, step=step),
            entry("mmbench_dev", "mmbench", 0.3 + gain, step=step),
            entry("mme", "mme", 1500.0 + gain, step=step, unit=1.0, further={"perception": 1200.0, "OCR": 100.0}),
        ]
    return entries
