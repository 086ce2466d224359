"""How much the quickstart's scores depend on chance: several seeds, and both sets of fonts.

Usage: python benchmarks/quickstart_spread.py OUTPUT [--seeds=0,1,2] [--fonts=dejavu] [--scale=1]

A run is a whole quickstart without its release, in OUTPUT/FONTS_SEED; its records are in OUTPUT/data_FONTS. The seed is
that of fresh weights. A finished run is not repeated, and one that was killed continues. Other seeds and fonts of the
same scale may follow, also at the same time once the records are there. At the end it prints the lowest and the highest
score of all finished runs in OUTPUT, and writes them to OUTPUT/spread.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwenvl_jax import quickstart
from qwenvl_jax.runtime import artifacts

FIGURES = ("referring_acc", "ocr_char_acc", "vqa_acc", "caption_cider", "dialogue_acc")


def commands(output: Path, fonts: str, seed: int, scale: float) -> list[list[str]]:
    """The commands of a run: those of the quickstart up to its scores, with a seed and a set of fonts."""
    steps = quickstart.plan(f"{output}/{fonts}_{seed}", f"{output}/data_{fonts}", "auto", scale)
    changes = {"data": [f"--fonts={fonts}"], **{name: [f"--config.train.seed={seed}"] for name in quickstart.STAGES}}
    wanted = ("data", *quickstart.STAGES, "evaluation")
    return [[*step.command, *changes.get(step.key, [])] for step in steps if step.key in wanted]


def scores_of(run: Path) -> dict[str, Any] | None:
    """The scores of a run, or None as long as some are missing: they are written one by one."""
    path = run / "scores.json"
    scores = artifacts.read_json(path) if path.exists() else {}
    whole = all(figure in scores.get(stage, {}) for stage in quickstart.STAGES for figure in FIGURES)
    return scores if whole else None


def spread(output: Path) -> dict[str, Any]:
    """The lowest and the highest of every figure after stages 2 and 3, over all finished runs."""
    folders = {folder.name: scores_of(folder) for folder in sorted(output.iterdir())}
    runs = {name: scores for name, scores in folders.items() if scores is not None}
    if not runs:
        raise SystemExit(f"{output} has no finished run")
    answer: dict[str, Any] = {"runs": list(runs)}
    for stage in quickstart.STAGES[2:]:
        values = {figure: [scores[stage][figure] for scores in runs.values()] for figure in FIGURES}
        answer[stage] = {figure: [min(each), max(each)] for figure, each in values.items()}
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--fonts", default="dejavu", help="sets of fonts: dejavu, liberation")
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    for fonts in arguments.fonts.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            if scores_of(arguments.output / f"{fonts}_{seed}") is not None:
                continue
            for command in commands(arguments.output, fonts, seed, arguments.scale):
                print(f"{fonts}, seed {seed}: {command[0]} {command[1]}", flush=True)
                subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    answer = spread(arguments.output)
    artifacts.write_json(arguments.output / "spread.json", answer)
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
