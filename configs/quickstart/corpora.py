"""The quickstart's stage 2 on real data: on the records of `make corpora` instead of generated ones.

python -m qwenvl_jax.train --config=configs/quickstart/corpora.py --workdir=runs/quickstart/corpora

It continues from the quickstart's stage 1 and uses its vocabulary (`quickstart`, the folder of `make quickstart`).
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments
from configs.quickstart import common

STEPS = 2000
IMAGE_SIZE = 84  # px; real pictures hold more than generated ones

# The tasks of the corpora: there are no maps of real pictures.
WEIGHTS = {task: weight for task, weight in common.MULTITASK_WEIGHTS.items() if task != "map"}


@named_arguments
def get_config(
    data: str = "data/corpora",
    quickstart: str = "data/quickstart",
    runs: str = "runs/quickstart",
    scale: float = 1.0,
) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    return common.stage(
        quickstart,
        data=dict(
            mixture=tuple(common.source(f"{data}/multitask", task, weight) for task, weight in WEIGHTS.items()),
            image_size=IMAGE_SIZE,
            sequence_length=256,  # lines of real pages are longer than the generated ones
            rows_per_step=8,
            images_per_row=4.0,
            seed=4,
        ),
        optimizer=common.optimizer(1e-3, steps),
        init=base.continue_from("pretrain", f"{runs}/stage1_pretrain"),
        train=common.train("multitask", ("vit", "vit_head", "resampler", "decoder"), steps),
    )
