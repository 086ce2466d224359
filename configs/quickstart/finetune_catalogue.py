"""Low-rank adapters on a kind of dialogue that the quickstart's model has never seen; scores: docs/finetuning.md.

python -m qwenvl_jax.train --config=configs/quickstart/finetune_catalogue.py \
    --workdir=runs/quickstart/finetune_catalogue
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments
from configs.quickstart import common

STEPS = 800

# The older tasks stay in the mixture, so that the adapters keep what the model can do.
WEIGHTS = {"dialogue": 1.0, "ocr": 1.0, "ref_grounding": 0.5, "vqa": 0.5, "caption": 0.25}

# The ViT and the resampler have adapters too: better for a model that read four words in five (docs/finetuning.md).
TARGETS = (
    "decoder/blocks/attn/qkv",
    "decoder/blocks/attn/out",
    "decoder/blocks/mlp/up",
    "decoder/blocks/mlp/gate",
    "decoder/blocks/mlp/down",
    "resampler/kv_proj",
    "vit/blocks/attn/qkv",
    "vit/blocks/attn/out",
    "vit/blocks/mlp/up",
    "vit/blocks/mlp/down",
)


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0
) -> ml_collections.ConfigDict:
    steps = common.scaled(STEPS, scale)
    catalogue = dict(name="catalogue", task="dialogue", records=f"{data}_catalogue", weight=6.0)
    config = common.stage(
        data,
        data=dict(
            mixture=(catalogue, *(common.source(data, task, weight) for task, weight in WEIGHTS.items())),
            image_size=common.SIZE_MULTITASK,
            sequence_length=192,
            rows_per_step=8,
            images_per_row=3.0,
            seed=5,
        ),
        optimizer=common.optimizer(3e-3, steps),
        init=base.continue_from("sft", f"{runs}/stage3_sft"),
        # Stage 3 has seen ChatML, so the vocabulary stays frozen.
        train=common.train("sft", ("lora",), steps),
    )
    config.evaluation.every = max(1, steps // 4)
    config.lora = dict(rank=16, alpha=16.0, dropout=0.05, targets=TARGETS)
    return config
