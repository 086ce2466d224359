"""Stage 1: captions at low resolution; the ViT and the resampler learn, the decoder is frozen (paper 3.1).

python -m qwenvl_jax.train --config=configs/quickstart/stage1_pretrain.py --workdir=runs/quickstart/stage1_pretrain
"""

import ml_collections

from configs.quickstart import common

STEPS = 2000


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    data, runs, scale = common.parse(arg)
    steps = common.scaled(STEPS, scale)
    config = common.base(data)
    config.data = dict(
        mixture=(common.source(data, "caption", 1.0),),
        image_size=common.SIZE_PRETRAIN,
        sequence_length=128,
        rows_per_step=8,
        accumulation=1,
        images_per_row=4.0,
        packing_window=32,
        seed=1,
    )
    config.optimizer = common.optimizer(1e-3, steps)
    config.init = dict(stage="text", vit="", resampler="", decoder=f"{runs}/stage0_text", step=-1)
    config.train = common.train("pretrain", ("vit", "vit_head", "resampler"), steps)
    return config
