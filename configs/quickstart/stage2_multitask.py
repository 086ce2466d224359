"""Stage 2: all seven tasks at twice the resolution, packed, everything trained (paper 3.2).

python -m qwenvl_jax.train --config=configs/quickstart/stage2_multitask.py --workdir=runs/quickstart/stage2_multitask
"""

import ml_collections

from configs.quickstart import common

STEPS = 2900


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    data, runs, scale = common.parse(arg)
    steps = common.scaled(STEPS, scale)
    config = common.base(data)
    config.data = dict(
        mixture=tuple(common.source(data, task, weight) for task, weight in common.MULTITASK_WEIGHTS.items()),
        image_size=common.SIZE_MULTITASK,
        sequence_length=192,
        rows_per_step=8,
        accumulation=1,
        images_per_row=4.0,
        packing_window=32,
        seed=2,
    )
    config.optimizer = common.optimizer(1e-3, steps)
    stage1 = f"{runs}/stage1_pretrain"
    config.init = dict(stage="pretrain", vit=stage1, resampler=stage1, decoder=stage1, step=-1)
    config.train = common.train("multitask", ("vit", "vit_head", "resampler", "decoder"), steps)
    return config
