"""One training step on a CPU: this code against PyTorch eager and `torch.compile`, alternated in one run.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/cpu_step.py [--alternations=5]

The same small Qwen-VL on both sides, float32: ViT 6 x 192, 64 queries, decoder 6 x 256, vocabulary 4,096; 8 rows of 192
tokens with one image of 112 px each, 128 supervised positions in all rows together, AdamW with clipping. PyTorch runs
the release's modelling files with SDPA and fused AdamW and, like this code, multiplies only supervised positions by the
vocabulary. Every measurement is a process of its own, so that neither side's threads disturb the other; both sides get
the same environment. Prints each side's best and median step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

ROWS, LENGTH, IMAGE, QUERIES, VOCABULARY, SUPERVISED = 8, 192, 112, 64, 4096, 128
SIDES = ("jax", "torch", "torch_compile")
WARM_UP, STEPS = 3, 12


def arrays() -> dict[str, np.ndarray]:
    """Token rows with an image at their beginning, the same on both sides."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(300, VOCABULARY - 100, (ROWS, LENGTH)).astype(np.int32)
    slots = np.full((ROWS, LENGTH), -1, np.int32)
    slots[:, 1 : 1 + QUERIES] = np.arange(ROWS * QUERIES).reshape(ROWS, QUERIES)
    tokens[:, 0], tokens[:, 1 : 1 + QUERIES], tokens[:, 1 + QUERIES] = IMG, IMG + 2, IMG + 1
    mask = np.zeros((ROWS, LENGTH), np.float32)
    mask[:, -1 - SUPERVISED // ROWS : -1] = 1
    images = rng.integers(0, 256, (ROWS, IMAGE, IMAGE, 3)).astype(np.uint8)
    return {"tokens": tokens, "slots": slots, "mask": mask, "images": images}


IMG = VOCABULARY - 10


def timed(step: Callable[[], object]) -> list[float]:
    """Seconds of each step after the warm-up."""
    for _ in range(WARM_UP):
        step()
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds


def run_jax() -> list[float]:
    import jax
    import jax.numpy as jnp

    from qwenvl_jax import config as config_lib
    from qwenvl_jax.data.schema import Batch
    from qwenvl_jax.models import qwen_vl
    from qwenvl_jax.sharding.mesh import make_mesh
    from qwenvl_jax.training.optimizer import make_optimizer
    from qwenvl_jax.training.partition import split
    from qwenvl_jax.training.step import State, make_train_step, put_batch

    trainable_names = ("vit", "vit_head", "resampler", "decoder")
    model = config_lib.ModelConfig(
        "cpu_step",
        config_lib.VitConfig(192, 6, 6, 768, 14, 8, 1e-6),
        config_lib.ResamplerConfig(8, 4, 1e-6),
        config_lib.DecoderConfig(VOCABULARY, 256, 6, 8, 688, 10000.0, 1e-6, 2048, True, True),
    )
    config = config_lib.Config(
        model=model,
        tokenizer=config_lib.TokenizerConfig("qwen", ""),
        data=config_lib.DataConfig((), IMAGE, LENGTH, ROWS, 1, 1.0, 1, 0),
        optimizer=config_lib.OptimizerConfig(1e-4, 1e-5, 1, 0.9, 0.98, 1e-6, 0.05, 1.0, 1.0),
        init=config_lib.InitConfig("", "", "", ""),
        train=config_lib.TrainConfig("multitask", trainable_names, 1000, 0, 10, 100, 1),
        mesh=config_lib.MeshConfig(1, 1, 1, 1, 0),
        compute=config_lib.ComputeConfig("float32", "float32", "xla", "none", "none", True, SUPERVISED),
    )
    mesh = make_mesh(config.mesh)
    trainable, frozen = split(qwen_vl.init_params(model, jax.random.key(0)), trainable_names)
    optimizer = make_optimizer(config.optimizer, config.train.steps, model.vit.layers)
    state = State(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))
    step_fn, data = make_train_step(config, mesh), arrays()
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    targets = np.roll(data["tokens"], -1, axis=1)
    fields = (data["tokens"], targets, data["mask"], np.ones_like(targets), positions, data["slots"], data["images"])
    batch = put_batch(Batch(*(field[None] for field in fields)), mesh)

    def step() -> None:
        nonlocal state
        state, metrics = step_fn(state, batch)
        metrics["loss"].block_until_ready()

    return timed(step)


def run_torch(compiled: bool) -> list[float]:
    import torch

    from qwenvl_jax.conversion.torch_model.configuration_qwen import QWenConfig
    from qwenvl_jax.conversion.torch_model.modeling_qwen import QWenLMHeadModel
    from qwenvl_jax.conversion.torch_model.visual import normalise

    visual = dict(width=192, layers=6, heads=6, mlp_ratio=4.0, patch_size=14, output_dim=256, image_size=IMAGE)
    visual |= dict(image_start_id=IMG, n_queries=QUERIES, position_grid=8, resampler_heads=4)
    model = QWenLMHeadModel(
        QWenConfig(
            visual=visual,
            vocab_size=VOCABULARY,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=8,
            kv_channels=32,
            intermediate_size=2 * 688,
            use_cache=False,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.98), 1e-6, 0.05, fused=True)
    data = arrays()
    ids = torch.from_numpy(data["tokens"]).long()
    rows, columns = (torch.from_numpy(at) for at in np.nonzero(data["mask"]))
    targets = torch.roll(ids, -1, 1)[rows, columns]
    pixels = torch.from_numpy(data["images"])
    places = [torch.from_numpy(at) for at in np.nonzero(data["slots"] >= 0)]

    def loss_fn(ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        # The parts of the model's `forward`, without its search for images, which is work for Python alone.
        trunk = model.transformer
        features = trunk.visual(normalise(pixels)).flatten(0, 1)
        x = trunk.wte(ids).index_put(tuple(places), features)
        allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
        positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
        cos, sin = trunk._rotary(positions, torch.ones(ROWS))
        for layer, block in enumerate(trunk.h):
            x = block(x, cos, sin, allowed, None, None, layer)
        logits = model.lm_head(trunk.ln_f(x)[rows, columns])
        return torch.nn.functional.cross_entropy(logits, targets)

    run = torch.compile(loss_fn) if compiled else loss_fn

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        run(ids, pixels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return timed(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print its seconds")
    arguments = parser.parse_args()
    if arguments.side:
        seconds = run_jax() if arguments.side == "jax" else run_torch(arguments.side == "torch_compile")
        print(json.dumps(seconds))
        return
    found: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for number in range(arguments.alternations):
        for side in SIDES:
            command = [sys.executable, __file__, f"--side={side}"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[side].append(json.loads(output.splitlines()[-1]))
            best = min(found[side][-1])
            print(f"{number + 1}/{arguments.alternations} {side:14} best {1000 * best:6.1f} ms", file=sys.stderr)
    best = {side: min(min(run) for run in runs) for side, runs in found.items()}
    median = {side: statistics.median(statistics.median(run) for run in runs) for side, runs in found.items()}
    for side in SIDES:
        print(f"{side:14} best {1000 * best[side]:6.1f} ms, median {1000 * median[side]:6.1f} ms")
    peer = min(best["torch"], best["torch_compile"])
    print(f"jax against the better of PyTorch: {best['jax'] / peer:.2f} of its time (best against best)")
    print(json.dumps({"best": best, "median": median}))


if __name__ == "__main__":
    main()
