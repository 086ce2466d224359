"""Text-only pre-training of the small decoder: what Qwen-7B had before stage 1.

python -m qwenvl_jax.train --config=configs/quickstart/stage0_text.py --workdir=runs/quickstart/stage0_text
"""

import ml_collections

from configs.quickstart import common

STEPS = 1200


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    data, _, scale = common.parse(arg)
    steps = common.scaled(STEPS, scale)
    config = common.base(data)
    config.data = dict(
        mixture=(common.source(data, "text", 1.0),),
        image_size=common.SIZE_PRETRAIN,
        sequence_length=128,
        rows_per_step=16,
        accumulation=1,
        images_per_row=0.0,
        packing_window=32,
        seed=0,
    )
    config.optimizer = common.optimizer(3e-3, steps)
    config.init = dict(stage="", vit="", resampler="", decoder="", step=-1)
    config.train = common.train("text", ("decoder",), steps)
    return config
