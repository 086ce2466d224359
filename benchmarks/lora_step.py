"""A training step of low-rank adapters on a CPU: this code against `peft` and `transformers`, alternated in one run.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/lora_step.py [--alternations=5]

The model and the batch are those of `cpu_step.py`, in float32, with adapters of rank 16 and dropout on c_attn,
attn.c_proj, w1 and w2, everything else frozen, AdamW with clipping. The other side is a release of the same weights, as
`convert release` writes it, loaded by `transformers` and adapted by `peft`, eager and compiled. Prints each side's best
and median step, and the bytes of the full model's state: the frozen weights, and the trained ones with their moments as
a share of full fine-tuning.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import cpu_step
import numpy as np
import steps

from configs.finetune import full, lora, qlora
from qwenvl_jax.config import Config, LoraConfig, TokenizerConfig, load_config
from qwenvl_jax.data.schema import Batch

SIDES = ("jax", "peft", "peft_compile")
ADAPTERS = LoraConfig(rank=16, alpha=16.0, dropout=0.05)
WORDS = 400  # ids of the vocabulary; the model has more, of which noise consists


def config_of(vocabulary: str) -> Config:
    """The small model of `cpu_step.py` with adapters."""
    config = cpu_step.CONFIG
    train = dataclasses.replace(config.train, stage="sft", trainable=("lora",))
    return dataclasses.replace(
        config, lora=ADAPTERS, train=train, tokenizer=TokenizerConfig("sentencepiece", vocabulary)
    )


def peft_side(config: Config, batch: Batch, folder: Path, *, compiled: bool) -> steps.Side:
    """The step of somebody who fine-tunes the release by `peft`."""
    os.environ["HF_MODULES_CACHE"] = str(folder / "code")  # before transformers is imported
    import jax
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from qwenvl_jax.conversion import to_torch
    from qwenvl_jax.conversion.torch_model.visual import normalise
    from qwenvl_jax.models import qwen_vl

    plain = dataclasses.replace(config, lora=LoraConfig())
    params = jax.tree.map(np.asarray, qwen_vl.init_params(config.model, jax.random.key(0)))
    release = to_torch.release(params, plain, folder / "release")
    base = AutoModelForCausalLM.from_pretrained(str(release), trust_remote_code=True)
    start = base.config.visual["image_start_id"]
    adapters = peft.LoraConfig(
        r=ADAPTERS.rank,
        lora_alpha=int(ADAPTERS.alpha),
        lora_dropout=ADAPTERS.dropout,
        target_modules=["c_attn", "attn.c_proj", "w1", "w2"],
        bias="none",
        task_type="CAUSAL_LM",
    )
    model: Any = peft.get_peft_model(base, adapters).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.optimizer.peak_learning_rate,
        betas=(config.optimizer.b1, config.optimizer.b2),
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        fused=True,
    )
    ids = torch.from_numpy(_with_image_ids(batch.tokens[0], batch.image_slot[0], start))
    pixels = normalise(torch.from_numpy(batch.images[0]))
    supervised = np.nonzero(batch.loss_mask[0])
    targets = torch.from_numpy(batch.targets[0][supervised]).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = run(input_ids=ids, pixel_values=pixels).logits
        loss = torch.nn.functional.cross_entropy(logits[supervised], targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.clip_norm)
        optimizer.step()
        return loss.item()

    return steps.Side(step, sum(each.numel() for each in trained), "cpu", 1, steps.process_peak)


def _with_image_ids(tokens_BL: np.ndarray, image_slot_BL: np.ndarray, start: int) -> np.ndarray:
    """The ids between which the released code puts the features: start, end and pad are three successive ones."""
    ids = np.where((tokens_BL >= start) & (tokens_BL < start + 3), 0, tokens_BL).astype(np.int64)
    for row, slots in zip(ids, image_slot_BL, strict=True):
        (features,) = np.nonzero(slots >= 0)
        row[features] = start + 2
        row[features[0] - 1] = start
        row[features[-1] + 1] = start + 1
    return ids


def make(side: str, folder: Path) -> steps.Side:
    """A side whose files, a vocabulary and perhaps a release, are in a folder."""
    from qwenvl_jax.data.vocabulary_training import train_sentencepiece

    train_sentencepiece((f"word {number} of {number % 97}" for number in range(5000)), WORDS, folder / "words.model")
    config = config_of(str(folder / "words.model"))
    batch = steps.full_batch(config, cpu_step.SUPERVISED)
    if side == "jax":
        return steps.jax_side(config, batch)
    return peft_side(config, batch, folder, compiled=side == "peft_compile")


def state_bytes() -> dict[str, dict[str, int]]:
    """Bytes of the state of the full model: what is frozen, and what is trained with its moments, by the recipe."""
    import jax

    from qwenvl_jax.training.state import abstract_state

    recipes = {
        "full": full.get_config(),
        "lora": lora.get_config(),
        "qlora int8": qlora.get_config(kernels="int8"),
        "qlora nf4": qlora.get_config(kernels="nf4"),
    }
    sizes = {}
    for name, values in recipes.items():
        state = abstract_state(load_config(values))
        trees = {"frozen": state.frozen, "trained": (state.trainable, state.opt_state)}
        sizes[name] = {
            key: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for key, tree in trees.items()
        }
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print its figures")
    arguments = parser.parse_args()
    if arguments.side:
        with tempfile.TemporaryDirectory(prefix="lora_step_") as folder:
            result = steps.measure(lambda: make(arguments.side, Path(folder)), cpu_step.WARM_UP, cpu_step.STEPS)
        print(json.dumps(result))
        return
    sizes = state_bytes()
    for name, size in sizes.items():
        frozen, trained = (size[key] / steps.GIB for key in ("frozen", "trained"))
        share = size["trained"] / sizes["full"]["trained"]
        print(f"{name:14} frozen {frozen:6.2f} GiB, trained with moments {trained:6.2f} GiB, {share:.2%} of full")
    measured = steps.alternate(SIDES, lambda side: [sys.executable, __file__, f"--side={side}"], arguments.alternations)
    best, median, peak = {}, {}, {}
    for side, runs in measured.items():
        best[side], median[side] = steps.best_and_median(runs)
        peak[side] = max(run["peak_gib"] for run in runs)
        print(
            f"{side:14} best {1000 * best[side]:6.1f} ms, median {1000 * median[side]:6.1f} ms, "
            f"process at most {peak[side]:.2f} GiB"
        )
    peer = min(best["peft"], best["peft_compile"])
    print(f"jax against the better of peft: {best['jax'] / peer:.2f} of its time (best against best)")
    print(json.dumps({"best": best, "median": median, "peak_gib": peak, "state_bytes": sizes}))


if __name__ == "__main__":
    main()
