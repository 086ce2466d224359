"""The full-size training step on NVIDIA GPUs: this code against PyTorch, alternated in one run.

    python benchmarks/gpu_step.py --stage=1 [--rows=64] [--accumulation=1] [--remat=full] [--repeat=5]
    python benchmarks/gpu_step.py --stage=lora                              # configs/finetune/lora.py

Needs requirements-gpu.txt, requirements-convert.txt and a CUDA build of the same torch. The step is the one that
`qwenvl_jax.train` takes for configs/stage*.py:mesh=gpu, on all GPUs of the machine; PyTorch's side is `torch_peer.py`,
eager and compiled. Rows are full: as many samples as the stage has images per row, all text supervised. Prints a table,
and as the last line one JSON object: per side seconds per step (best and median), tokens and images per second,
utilisation (operations by `models/flops.py`, the context of a sample, recomputation not counted, against the dense
bfloat16 peak) and peak memory of one device. A side that does not fit says so.

With `--stage=lora` PyTorch's adapters are those of `peft`, beside frozen bfloat16 weights on one GPU, under autocast
as in transformers' Trainer. Queries, keys and values, one projection in this model and its release, are three in
Qwen2, each with an A of its own; so PyTorch trains 15 % more parameters, 0.2 % of the operations.

Stage 2 keeps first moments in bfloat16; PyTorch's fused AdamW cannot. `--moments_memory=pinned_host` moves this code's
moments to the host between steps. The default rows leave this code room on one H200 (`gpu_memory.py`: 52, 126 and 121
GiB in stages 1, 2 and 3); accumulation needs a second copy of the gradients, which stages 2 and 3 have no room for.

`--size=tiny` is a small model on whatever there is, to try every line of this without a GPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import sys
import tempfile
from typing import Any

import steps

from configs import model as models
from configs import stage1_pretrain, stage2_multitask, stage3_sft
from configs.finetune import lora
from qwenvl_jax.chips import peak_flops
from qwenvl_jax.config import REMAT_POLICIES, Config, load_config
from qwenvl_jax.models.flops import Work, training_flops
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

STAGES = {"1": stage1_pretrain, "2": stage2_multitask, "3": stage3_sft, "lora": lora}
ROWS = {"1": 64, "2": 2, "3": 4, "lora": 8}  # of one microbatch on one H200
SIDES = ("jax", "torch", "torch_compile")
WARM_UP = 3

# Both sides may take nearly all of a GPU's memory (JAX by itself takes three quarters), and neither loses it to gaps.
ENVIRONMENT = {"XLA_CLIENT_MEM_FRACTION": "0.96", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}


def config_of(arguments: argparse.Namespace, devices: int, attention: str) -> Config:
    """The config of the stage with the changes that the arguments name."""
    values = STAGES[arguments.stage].get_config(mesh="gpu")
    tiny = arguments.size == "tiny"
    if tiny:
        values.model = models.tiny()
        # Twice the side of the position table, so that it is interpolated, and room for four samples.
        values.data.update(dict(image_size=56, sequence_length=64))
        if arguments.stage == "lora":
            values.lora.rank = 8  # at most the model's width
    rows = (arguments.rows or (2 if tiny else ROWS[arguments.stage])) * devices
    values.data.update(
        dict(
            rows_per_step=rows * arguments.accumulation,
            accumulation=arguments.accumulation,
            image_groups=math.gcd(values.data.image_groups, rows),
            streams=1,
            images_per_row=float(round(values.data.images_per_row)),
        )
    )
    values.compute.update(dict(remat_vit=arguments.remat, remat_decoder=arguments.remat, attention=attention))
    values.optimizer.moments_memory = arguments.moments_memory
    if arguments.stage == "2":
        values.optimizer.first_moment_dtype = "bfloat16"
    return load_config(values)


def make(arguments: argparse.Namespace) -> steps.Side:
    """One side, on all GPUs of this machine."""
    if arguments.side == "jax":
        import jax

        from qwenvl_jax.models.attention import resolve_attention

        backend = jax.default_backend()
        _check_backend(arguments, backend == "gpu", "JAX", "requirements-gpu.txt")
        config = config_of(arguments, jax.device_count(), resolve_attention("auto", backend))
        return steps.jax_side(config, steps.full_batch(config))
    import torch

    _check_backend(arguments, torch.cuda.is_available(), "PyTorch", "a CUDA build of torch")
    from torch_peer import run_on_all_gpus, torch_side

    run_on_all_gpus()
    config = config_of(arguments, max(torch.cuda.device_count(), 1), "auto")
    return torch_side(config, steps.full_batch(config), compiled=arguments.side == "torch_compile")


def _check_backend(arguments: argparse.Namespace, available: bool, framework: str, remedy: str) -> None:
    if not available and arguments.size == "full":
        raise UserError(f"{framework} sees no GPU; install {remedy} on a machine with one, or try --size=tiny")


def work_of(config: Config) -> Work:
    """What `steps.full_batch` holds."""
    batch = steps.full_batch(config)
    return Work(
        tokens=batch.tokens.size,
        context=int(batch.positions.max()) + 1,
        supervised=float(batch.loss_mask.sum()),
        images=batch.images.shape[0] * batch.images.shape[1],
    )


def figures(runs: list[dict[str, Any]], work: Work, flops: float) -> dict[str, Any]:
    """JSON values of one side, or only `error`."""
    if "error" in runs[-1]:
        return {"error": runs[-1]["error"]}
    best, median = steps.best_and_median(runs)
    peak = peak_flops(runs[0]["device"])
    return {
        "seconds_best": best,
        "seconds_median": median,
        "tokens_per_second": work.tokens / median,
        "images_per_second": work.images / median,
        "mfu": flops / median / (peak * runs[0]["devices"]) if peak else None,
        "peak_gib": max(run["peak_gib"] for run in runs),
        "first_seconds": [run["first_seconds"] for run in runs],
        "loss": runs[-1]["loss"],
        "seconds": [run["seconds"] for run in runs],
    }


def table(result: dict[str, Any]) -> str:
    """The figures for people, medians."""
    rows = [("side", "s/step", "best", "tokens/s", "images/s", "MFU", "peak, GiB")]
    for side, figures_of_side in result["sides"].items():
        if "error" in figures_of_side:
            rows.append((side, figures_of_side["error"], "", "", "", "", ""))
            continue
        mfu = "unknown" if figures_of_side["mfu"] is None else f"{figures_of_side['mfu']:.3f}"
        rows.append(
            (
                side,
                f"{figures_of_side['seconds_median']:.4f}",
                f"{figures_of_side['seconds_best']:.4f}",
                f"{figures_of_side['tokens_per_second']:.0f}",
                f"{figures_of_side['images_per_second']:.1f}",
                mfu,
                f"{figures_of_side['peak_gib']:.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all sides, each in a process of its own."""
    options = [f"--{name}={value}" for name, value in vars(arguments).items() if name not in ("side", "sides")]
    command = [sys.executable, __file__, *(option for option in options if not option.endswith("=None"))]
    with tempfile.TemporaryDirectory() as cache:  # as PyTorch does, JAX finds what it compiled an alternation before
        environment = {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": cache, **os.environ}
        by_side = steps.alternate(
            arguments.sides,
            lambda side: [*command, f"--side={side}"],
            arguments.repeat,
            environment,
            same_count=arguments.stage != "lora",
        )
    measured = [run for runs in by_side.values() for run in runs if "error" not in run]
    first = measured[0] if measured else {}
    config = config_of(arguments, first.get("devices", 1), "auto")
    work = work_of(config)
    flops = sum(training_flops(config, work).values())
    sides = {side: figures(runs, work, flops) for side, runs in by_side.items()}
    medians = {side: one["seconds_median"] for side, one in sides.items() if "error" not in one}
    peers = [seconds for side, seconds in medians.items() if side != "jax"]
    return {
        "stage": arguments.stage,
        "size": arguments.size,
        "device": first.get("device"),
        "devices": first.get("devices"),
        "rows": config.data.rows_per_microbatch,
        "accumulation": config.data.accumulation,
        "remat": arguments.remat,
        "first_moment_dtype": config.optimizer.first_moment_dtype,
        "moments_memory": config.optimizer.moments_memory,
        "trained_parameters": first.get("trained"),
        "tokens_per_step": work.tokens,
        "supervised_per_step": work.supervised,
        "images_per_step": work.images,
        "model_flops_per_step": flops,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "torch", "transformers")},
        "sides": sides,
        "jax_time_over_best_pytorch": medians["jax"] / min(peers) if "jax" in medians and peers else None,
    }


def _sides(text: str) -> list[str]:
    sides = text.split(",")
    if not set(sides) <= set(SIDES):
        raise argparse.ArgumentTypeError(f"{text!r} names something else than {', '.join(SIDES)}")
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, default="1")
    parser.add_argument("--rows", type=int, help="of one microbatch on one GPU")
    parser.add_argument("--accumulation", type=int, default=1, help="microbatches per step")
    parser.add_argument("--remat", choices=REMAT_POLICIES, default="full", help="of both towers, on both sides")
    parser.add_argument("--moments_memory", choices=("device", "pinned_host"), default="device")
    parser.add_argument("--repeat", type=int, default=5, help="alternations")
    parser.add_argument("--steps", type=int, default=8, help="timed steps per alternation and side")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--sides", type=_sides, default=list(SIDES), help="of " + ",".join(SIDES))
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print its figures")
    arguments = parser.parse_args()
    with exit_on_user_error():
        if arguments.side:
            result = steps.measure(lambda: make(arguments), WARM_UP, arguments.steps)
            if arguments.side != "jax":
                from torch_peer import is_primary

                if not is_primary():
                    return
        else:
            result = compare(arguments)
            print(table(result))
        print(json.dumps(result))


if __name__ == "__main__":
    main()
