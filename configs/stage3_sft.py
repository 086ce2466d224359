"""Stage 3, supervised fine-tuning: 350k ChatML dialogues at 448 px; the ViT is frozen (paper 3.3).

python -m qwenvl_jax.train --config=configs/stage3_sft.py:v5p,gs://bucket/data,gs://bucket/runs \
    --workdir=gs://bucket/runs/stage3_sft

The argument is MESH,DATA,RUNS; each part may be left out. Numbers: paper, Table 8 unless a comment says otherwise.
"""

import ml_collections

from configs import base


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    mesh, data, runs = base.arguments(arg)
    config = base.base(mesh)
    config.data = dict(
        mixture=(base.source(f"{data}/sft", "dialogue", "dialogue", 0.35),),  # 350k dialogues (paper 3.3)
        image_size=448,
        sequence_length=2048,
        rows_per_step=128,
        accumulation=8,
        images_per_row=4.0,  # ours
        packing_window=32,  # ours: a row is the fullest of so many samples
        seed=3,
        image_groups=16,  # ours
        streams=16,  # ours: up to so many hosts build only their own rows
        max_corrupt_share=0.01,  # ours
        decode_workers=32,  # ours: per host, at most one per core
        jpeg_draft=False,
    )
    # The ViT is frozen: its layer-wise decay (0 in Table 8) has nothing to act on.
    config.optimizer = base.optimizer(peak=1e-5, minimum=1e-6, warmup=3000, vit_layer_decay=1.0)
    stage2 = f"{runs}/stage2_multitask"
    config.init = dict(stage="multitask", vit=stage2, resampler=stage2, decoder=stage2, step=-1)
    # `ln_post` and `proj` stay frozen with the ViT, as in the released fine-tuning; add "vit_head" to train them.
    config.train = base.train("sft", ("resampler", "decoder"), 8000)
    return base.adapt(config, mesh)
