"""Stage 1: captions at low resolution; the ViT and the resampler learn, the decoder is frozen (paper 3.1).

python -m qwenvl_jax.train --config=configs/quickstart/stage1_pretrain.py --workdir=runs/quickstart/stage1_pretrain
"""

import ml_collections

from configs.arguments import named_arguments
from configs.quickstart import common, sizes

STEPS = 800
PEAK_RATE = 4e-3


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0, size: str = "small"
) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    config = common.stage(
        data,
        data=dict(
            mixture=(common.source(data, "caption", 0.5), common.source(data, "map", 1.0)),
            image_size=common.SIZE_PRETRAIN,
            sequence_length=128,
            rows_per_step=8,
            images_per_row=3.0,
            seed=1,
        ),
        optimizer=common.optimizer(PEAK_RATE, steps),
        init=dict(stage="text", vit="", resampler="", decoder=f"{runs}/stage0_text", step=-1),
        train=common.train("pretrain", ("vit", "vit_head", "resampler"), steps),
    )
    return sizes.apply(config, size)
