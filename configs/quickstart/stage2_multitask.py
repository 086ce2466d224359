"""Stage 2: all seven tasks at a higher resolution, packed, everything trained (paper 3.2).

python -m qwenvl_jax.train --config=configs/quickstart/stage2_multitask.py --workdir=runs/quickstart/stage2_multitask
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments
from configs.quickstart import common, sizes

STEPS = 1000


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0, size: str = "small"
) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    config = common.stage(
        data,
        data=dict(
            mixture=tuple(common.source(data, task, weight) for task, weight in common.MULTITASK_WEIGHTS.items()),
            image_size=common.SIZE_MULTITASK,
            sequence_length=192,
            rows_per_step=8,
            images_per_row=3.0,
            seed=2,
        ),
        optimizer=common.optimizer(1.7e-3, steps),
        init=base.continue_from("pretrain", f"{runs}/stage1_pretrain"),
        train=common.train("multitask", ("vit", "vit_head", "resampler", "decoder"), steps),
    )
    return sizes.apply(config, size)
