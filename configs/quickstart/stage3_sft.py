"""Stage 3: ChatML dialogues about one or two pictures; the ViT is frozen (paper 3.3).

python -m qwenvl_jax.train --config=configs/quickstart/stage3_sft.py --workdir=runs/quickstart/stage3_sft
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments
from configs.quickstart import common, sizes

STEPS = 270

# Multi-task samples stay in the mixture, as the paper mixes in data that keeps what the model can do.
WEIGHTS = {
    "dialogue": 5.0,
    "vqa": 1.5,
    "grounding": 1.5,
    "ref_grounding": 4.5,
    "ocr": 2.0,
    "caption": 0.5,
    "text": 0.25,
}


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0, size: str = "small"
) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    config = common.stage(
        data,
        data=dict(
            mixture=tuple(common.source(data, task, weight) for task, weight in WEIGHTS.items()),
            image_size=common.SIZE_MULTITASK,
            sequence_length=192,
            rows_per_step=8,
            images_per_row=3.0,
            seed=3,
        ),
        optimizer=common.optimizer(7e-4, steps),
        init=base.continue_from("multitask", f"{runs}/stage2_multitask"),
        train=common.train("sft", ("resampler", "decoder"), steps),
    )
    return sizes.apply(config, size)
