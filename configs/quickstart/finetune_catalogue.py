"""Low-rank adapters on a kind of dialogue that the quickstart's model has never seen; scores: docs/finetuning.md.

python -m qwenvl_jax.train --config=configs/quickstart/finetune_catalogue.py \
    --workdir=runs/quickstart/finetune_catalogue
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments
from configs.quickstart import common

STEPS = 400


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0
) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    config = common.stage(
        data,
        data=dict(
            mixture=(dict(name="catalogue", task="dialogue", records=f"{data}_catalogue", weight=1.0),),
            image_size=common.SIZE_MULTITASK,
            sequence_length=192,
            rows_per_step=8,
            images_per_row=3.0,
            seed=5,
        ),
        optimizer=common.optimizer(3e-3, steps),
        init=base.continue_from("sft", f"{runs}/stage3_sft"),
        # Stage 3 has seen ChatML, so the vocabulary stays frozen.
        train=common.train("sft", ("lora",), steps),
    )
    config.evaluation.every = max(1, steps // 4)
    config.lora = dict(rank=16, alpha=16.0, dropout=0.05)
    return config
