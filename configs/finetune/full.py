"""Full fine-tuning on a JSON file of conversations; the ViT is frozen. docs/finetuning.md has every step.

python -m qwenvl_jax.train --config=configs/finetune/full.py:data=train.json,start=runs/qwen_vl_chat,devices=8 \
    --workdir=runs/full

`start` is what `python -m qwenvl_jax.convert import` has written, or a run. As in the released finetune.py, `ln_post`
and `proj` stay frozen with the ViT. Its global batch of 128 is `rows=128`.
"""

import ml_collections

from configs.arguments import named_arguments
from configs.finetune import common


@named_arguments
def get_config(
    data: str = "data/train.json",
    start: str = "runs/qwen_vl_chat",
    validation: str = "",
    mesh: str = "gpu",
    steps: float = 1000.0,
    rows: float = 128.0,
    devices: float = 8.0,
) -> ml_collections.ConfigDict:
    return common.finetune(
        data=data,
        start=start,
        validation=validation,
        mesh=mesh,
        steps=steps,
        rows=rows,
        devices=devices,
        trainable=("resampler", "decoder"),
    )
