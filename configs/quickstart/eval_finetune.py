"""The quickstart's model before and after `finetune_catalogue`: the new kind of dialogue, and everything older.

python -m qwenvl_jax.evaluate --config=configs/quickstart/eval_finetune.py
"""

import ml_collections

from configs.arguments import named_arguments
from configs.quickstart import common, eval

CHECKPOINTS = ("stage3_sft", "finetune_catalogue")
CATALOGUE = 100  # dialogues


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0
) -> ml_collections.ConfigDict:
    config = eval.get_config(data=data, runs=runs, scale=scale)
    config.checkpoints = tuple(
        dict(name=name, workdir=f"{runs}/{name}", image_size=common.SIZE_MULTITASK, step=-1) for name in CHECKPOINTS
    )
    catalogue = dict(
        name="dialogue",
        label="catalogue",
        records=f"{data}_catalogue",
        split="heldout",
        limit=common.scaled(CATALOGUE, scale),
        max_new_tokens=48,
        min_new_tokens=0,
        tokenisation="simple",
    )
    config.benchmarks = (catalogue, *config.benchmarks)
    config.output = f"{runs}/finetune"
    return config
