"""One training step on a CPU: this code against PyTorch eager and `torch.compile`, alternated in one run.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/cpu_step.py [--alternations=5]

The same small Qwen-VL on both sides, float32: ViT 6 x 192, 64 queries, decoder 6 x 256, vocabulary 4,096; 8 rows of 192
tokens with one image of 112 px each, 128 supervised tokens in all rows together, everything trained, AdamW with
clipping. See `torch_peer.py` for PyTorch's side. Prints each side's best and median step.
"""

from __future__ import annotations

import argparse
import json
import sys

import steps

from qwenvl_jax import config as config_lib

ROWS, LENGTH, IMAGE, VOCABULARY, SUPERVISED = 8, 192, 112, 4096, 16  # supervised per row
SIDES = ("jax", "torch", "torch_compile")
WARM_UP, STEPS = 3, 12

CONFIG = config_lib.Config(
    model=config_lib.ModelConfig(
        "cpu_step",
        config_lib.VitConfig(192, 6, 6, 768, 14, 8, 1e-6),
        config_lib.ResamplerConfig(8, 4, 1e-6),
        config_lib.DecoderConfig(VOCABULARY, 256, 6, 8, 688, 10000.0, 1e-6, 2048, True, True),
    ),
    tokenizer=config_lib.TokenizerConfig("qwen", ""),
    data=config_lib.DataConfig((), IMAGE, LENGTH, ROWS, 1, 1.0, 1, 0),
    optimizer=config_lib.OptimizerConfig(1e-4, 1e-5, 1, 0.9, 0.98, 1e-6, 0.05, 1.0, 1.0),
    init=config_lib.InitConfig("", "", "", ""),
    train=config_lib.TrainConfig("multitask", config_lib.COMPONENTS, 1000, 0, 10, 100, 1),
    mesh=config_lib.MeshConfig(1, 1, 1, 1, 0),
    compute=config_lib.ComputeConfig("float32", "float32", "xla", "none", "none", True, ROWS * SUPERVISED),
)


def make(side: str) -> steps.Side:
    batch = steps.full_batch(CONFIG, SUPERVISED)
    if side == "jax":
        return steps.jax_side(CONFIG, batch)
    from torch_peer import torch_side

    return torch_side(CONFIG, batch, compiled=side == "torch_compile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print its figures")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(steps.measure(lambda: make(arguments.side), WARM_UP, STEPS)))
        return
    measured = steps.alternate(SIDES, lambda side: [sys.executable, __file__, f"--side={side}"], arguments.alternations)
    best, median = {}, {}
    for side, runs in measured.items():
        best[side], median[side] = steps.best_and_median(runs)
        print(f"{side:14} best {1000 * best[side]:6.1f} ms, median {1000 * median[side]:6.1f} ms")
    peer = min(best["torch"], best["torch_compile"])
    print(f"jax against the better of PyTorch: {best['jax'] / peer:.2f} of its time (best against best)")
    print(json.dumps({"best": best, "median": median}))


if __name__ == "__main__":
    main()
