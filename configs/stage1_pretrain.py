"""Stage 1, pre-training: 1.4 billion web image-text pairs at 224 px; the language model is frozen (paper 3.1).

python -m qwenvl_jax.train --config=configs/stage1_pretrain.py:v5p,gs://bucket/data,gs://bucket/runs \
    --workdir=gs://bucket/runs/stage1_pretrain

The argument is MESH,DATA,RUNS; each part may be left out. Numbers: paper, Table 8 unless a comment says otherwise.
"""

import ml_collections

from configs import base

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


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    mesh, data, runs = base.arguments(arg)
    config = base.base(mesh)
    config.data = dict(
        mixture=tuple(base.source(f"{data}/pretrain", name, "caption", weight) for name, weight in PAIRS.items()),
        image_size=224,
        sequence_length=512,
        rows_per_step=30720,
        accumulation=6,
        images_per_row=1.0,  # an image takes 258 of the 512 places, so no row has two
        packing_window=32,  # ours: a row is the fullest of so many samples
        seed=1,
        image_groups=0,  # ours: no row has two images, so each keeps its own and devices exchange none
        streams=256,  # ours: up to so many hosts build only their own rows
        max_corrupt_share=0.01,  # ours
        decode_workers=32,  # ours: per host, at most one per core
        jpeg_draft=False,
    )
    config.optimizer = base.optimizer(peak=2e-4, minimum=1e-6, warmup=500, vit_layer_decay=0.95)
    # OpenCLIP ViT-bigG and Qwen-7B, converted by `python -m qwenvl_jax.convert`; the resampler starts fresh.
    config.init = dict(stage="import", vit=f"{runs}/openclip_bigg", resampler="", decoder=f"{runs}/qwen_7b", step=-1)
    config.train = base.train("pretrain", ("vit", "vit_head", "resampler"), 50_000)
    return base.adapt(config, mesh)
