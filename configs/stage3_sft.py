"""Stage 3, supervised fine-tuning: 350k ChatML dialogues at 448 px; the ViT is frozen (paper 3.3).

python -m qwenvl_jax.train --config=configs/stage3_sft.py:mesh=v5p,data=gs://bucket/data,runs=gs://bucket/runs \
    --workdir=gs://bucket/runs/stage3_sft

Each argument may be left out. The numbers are those of Table 8 of the paper unless a comment says otherwise.
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments


@named_arguments
def get_config(mesh: str = "v5p", data: str = "data", runs: str = "runs") -> ml_collections.ConfigDict:
    return base.stage(
        mesh,
        data=dict(
            mixture=(base.source(f"{data}/sft", "dialogue", "dialogue", 0.35),),  # 350k dialogues (paper 3.3)
            image_size=448,
            sequence_length=2048,
            rows_per_step=128,
            accumulation=8,
            images_per_row=4.0,  # ours
            seed=3,
            image_groups=16,  # ours
            streams=16,  # ours: up to so many hosts build only their own rows
        ),
        # The ViT is frozen: its layer-wise decay (0 in Table 8) has nothing to act on.
        optimizer=base.optimizer(peak=1e-5, minimum=1e-6, warmup=3000, vit_layer_decay=1.0),
        init=base.continue_from("multitask", f"{runs}/stage2_multitask"),
        # `ln_post` and `proj` stay frozen with the ViT, as in the released fine-tuning; add "vit_head" to train them.
        train=base.train("sft", ("resampler", "decoder"), 8000),
    )
