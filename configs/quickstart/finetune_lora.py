"""Low-rank adapters on the dialogues of the quickstart, beside its frozen stage 2.

python -m qwenvl_jax.train --config=configs/quickstart/finetune_lora.py --workdir=runs/quickstart/finetune_lora
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments
from configs.quickstart import common

STEPS = 500


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0
) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    config = common.stage(
        data,
        data=dict(
            mixture=(common.source(data, "dialogue", 1.0),),
            image_size=common.SIZE_MULTITASK,
            sequence_length=192,
            rows_per_step=8,
            images_per_row=3.0,
            seed=4,
        ),
        optimizer=common.optimizer(3e-3, steps),
        init=base.continue_from("multitask", f"{runs}/stage2_multitask"),
        # Stage 2 never saw ChatML, so the embedding and the head are trained too.
        train=common.train("sft", ("lora", "vocabulary"), steps),
    )
    config.lora = dict(rank=16, alpha=16.0, dropout=0.05)
    return config
