"""Stage 3: ChatML dialogues about one or two pictures; the ViT is frozen (paper 3.3).

python -m qwenvl_jax.train --config=configs/quickstart/stage3_sft.py --workdir=runs/quickstart/stage3_sft
"""

import ml_collections

from configs.quickstart import common

STEPS = 500

# Multi-task samples stay in the mixture, as the paper mixes in data that keeps what the model can do.
WEIGHTS = {"dialogue": 3.0, "vqa": 1.0, "ref_grounding": 1.5, "ocr": 2.0, "caption": 0.5, "text": 0.5}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    data, runs, scale = common.parse(arg)
    steps = common.scaled(STEPS, scale)
    config = common.base(data)
    config.data = dict(
        mixture=tuple(common.source(data, task, weight) for task, weight in WEIGHTS.items()),
        image_size=common.SIZE_MULTITASK,
        sequence_length=192,
        rows_per_step=8,
        accumulation=1,
        images_per_row=3.0,
        packing_window=32,
        seed=3,
    )
    config.optimizer = common.optimizer(5e-4, steps)
    stage2 = f"{runs}/stage2_multitask"
    config.init = dict(stage="multitask", vit=stage2, resampler=stage2, decoder=stage2, step=-1)
    config.train = common.train("sft", ("resampler", "decoder"), steps)
    return config
