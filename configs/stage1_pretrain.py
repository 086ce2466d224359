"""Stage 1, pre-training: 1.4 billion web image-text pairs at 224 px; the language model is frozen (paper 3.1).

python -m qwenvl_jax.train --config=configs/stage1_pretrain.py:mesh=v5p,data=gs://bucket/data,runs=gs://bucket/runs \
    --workdir=gs://bucket/runs/stage1_pretrain

Each argument may be left out. The numbers are those of Table 8 of the paper unless a comment says otherwise.
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments

# Millions of pairs after cleaning (paper, Table 2); the names are those of the record folders.
PAIRS = {
    "laion_en": 280.0,
    "laion_coco": 300.0,
    "datacomp": 300.0,
    "coyo": 200.0,
    "cc12m": 8.0,
    "cc3m": 3.0,
    "sbu": 0.8,
    "coco_caption": 0.6,
    "laion_zh": 105.0,
    "in_house_zh": 220.0,
}


@named_arguments
def get_config(mesh: str = "v5p", data: str = "data", runs: str = "runs") -> ml_collections.ConfigDict:
    return base.stage(
        mesh,
        batch="samples",
        rows_per_step={"samples": 30720},  # a row holds one pair, so samples are rows
        data=dict(
            mixture=tuple(base.source(f"{data}/pretrain", name, "caption", weight) for name, weight in PAIRS.items()),
            image_size=224,
            sequence_length=512,
            accumulation=6,
            images_per_row=1.0,  # an image takes 258 of the 512 tokens, so no row has two
            seed=1,
            group_rows=1,  # ours: no row has two images, so each keeps its own and devices exchange none
            streams=256,  # ours: up to so many hosts read, decode and pack different pairs
        ),
        optimizer=base.optimizer(peak=2e-4, minimum=1e-6, warmup=500, vit_layer_decay=0.95),
        # OpenCLIP ViT-bigG and Qwen-7B, converted by `python -m qwenvl_jax.convert`; the resampler starts fresh.
        init=dict(stage="import", vit=f"{runs}/openclip_bigg", resampler="", decoder=f"{runs}/qwen_7b", step=-1),
        train=base.train("pretrain", ("vit", "vit_head", "resampler"), 50_000),
    )
