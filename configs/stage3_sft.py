"""Stage 3, supervised fine-tuning: 350k ChatML dialogues at 448 px; the ViT is frozen (paper 3.3).

python -m qwenvl_jax.train --config=configs/stage3_sft.py:mesh=v5p,data=gs://bucket/data,runs=gs://bucket/runs \
    --workdir=gs://bucket/runs/stage3_sft

Each argument may be left out; `batch=rows` takes the batch size of the paper for packed rows instead of dialogues.
The numbers are those of Table 8 of the paper unless a comment says otherwise.
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments

# Table 8 has a batch of 128. It counts dialogues, if stage 2 counts samples: 8,000 * 128 are 2.9 passes over the 350k
# dialogues. A row has room for about 4 dialogues.
ROWS_PER_STEP = {"samples": 32, "rows": 128}


@named_arguments
def get_config(
    mesh: str = "v5p", data: str = "data", runs: str = "runs", batch: str = "samples"
) -> ml_collections.ConfigDict:
    return base.stage(
        mesh,
        batch=batch,
        rows_per_step=ROWS_PER_STEP,
        data=dict(
            mixture=(base.source(f"{data}/sft", "dialogue", "dialogue", 0.35),),  # 350k dialogues (paper 3.3)
            image_size=448,
            sequence_length=2048,
            accumulation=2,
            images_per_row=4.0,  # ours
            seed=3,
            group_rows=2,  # ours: images stay near their rows, on at most two chips of one host
            streams=8,  # ours: up to so many hosts read, decode and pack different dialogues
        ),
        # The ViT is frozen: its layer-wise decay (0 in Table 8) has nothing to act on.
        optimizer=base.optimizer(peak=1e-5, minimum=1e-6, warmup=3000, vit_layer_decay=1.0),
        init=base.continue_from("multitask", f"{runs}/stage2_multitask"),
        # `ln_post` and `proj` stay frozen with the ViT, as in the released fine-tuning; add "vit_head" to train them.
        train=base.train("sft", ("resampler", "decoder"), 8000),
    )
