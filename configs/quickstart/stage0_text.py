"""Text-only pre-training of the small decoder: what Qwen-7B had before stage 1.

python -m qwenvl_jax.train --config=configs/quickstart/stage0_text.py --workdir=runs/quickstart/stage0_text
"""

import ml_collections

from configs.arguments import named_arguments
from configs.quickstart import common, sizes

STEPS = 1500


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0, size: str = "small"
) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    config = common.stage(
        data,
        data=dict(
            mixture=(common.source(data, "text", 1.0),),
            image_size=common.SIZE_PRETRAIN,
            sequence_length=192,  # dialogues are longer than the other texts
            rows_per_step=8,
            images_per_row=0.0,
            seed=0,
        ),
        optimizer=common.optimizer(3e-3, steps, muon_iterations=3),  # the loss is as low as with 5
        init=dict(stage="", vit="", resampler="", decoder="", step=-1),
        train=common.train("text", ("decoder",), steps),
    )
    return sizes.apply(config, size)
