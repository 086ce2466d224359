"""A first picture with a box and a caption: one short stage from fresh weights, all towers trained at 42 px.

python -m qwenvl_jax.train --config=configs/quickstart/taste.py --workdir=runs/taste/taste
"""

import ml_collections

from configs.arguments import named_arguments
from configs.quickstart import common

STEPS = 450
WEIGHTS = {"map": 1.5, "ref_grounding": 4.0, "caption": 1.0}


@named_arguments
def get_config(data: str = "data/taste", runs: str = "runs/taste", scale: float = 1.0) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    return common.stage(
        data,
        data=dict(
            mixture=tuple(common.source(data, task, weight) for task, weight in WEIGHTS.items()),
            image_size=common.SIZE_PRETRAIN,
            sequence_length=128,
            rows_per_step=8,
            images_per_row=3.0,
            seed=0,
        ),
        optimizer=common.optimizer(3e-3, steps),
        init=dict(stage="", vit="", resampler="", decoder="", step=-1),
        train=common.train("multitask", ("vit", "vit_head", "resampler", "decoder"), steps),
    )
