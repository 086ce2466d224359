"""Every stage of the quickstart on held-out scenes.

python -m qwenvl_jax.evaluate --config=configs/quickstart/eval.py
"""

import ml_collections

from configs.arguments import named_arguments
from configs.quickstart import common, sizes

IMAGE_SIZES = {
    "stage0_text": common.SIZE_PRETRAIN,  # has not seen an image yet
    "stage1_pretrain": common.SIZE_PRETRAIN,
    "stage2_multitask": common.SIZE_MULTITASK,
    "stage3_sft": common.SIZE_MULTITASK,
}

# (records, new tokens at most, new tokens at least). The released scripts take 28/10 for boxes, 30/8 for captions and
# 10/1 for answers; these are as much for a vocabulary whose tokens are shorter.
TASKS = {
    "ref_grounding": (200, 24, 8),
    "ocr": (100, 160, 0),
    "vqa": (200, 16, 1),
    "caption": (100, 64, 4),
    "dialogue": (60, 48, 0),
}

# Lowest and highest score of seeds 0, 1 and 2 (benchmarks/quickstart_spread.py).
SPREAD = {
    "stage2_multitask": {"referring_acc": (0.785, 0.795), "ocr_char_acc": (0.927, 0.961), "vqa_acc": (0.76, 0.82)},
    "stage3_sft": {"referring_acc": (0.775, 0.815), "ocr_char_acc": (0.915, 0.94), "vqa_acc": (0.78, 0.82)},
}


@named_arguments
def get_config(
    data: str = "data/quickstart", runs: str = "runs/quickstart", scale: float = 1.0, size: str = "small"
) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            checkpoints=tuple(
                dict(name=name, workdir=f"{runs}/{name}", image_size=sizes.image_size(pixels, size), step=-1)
                for name, pixels in IMAGE_SIZES.items()
            ),
            tokenizer=common.tokenizer(data),
            benchmarks=tuple(
                dict(
                    name=name,
                    records=f"{data}/{name}",
                    split="heldout",
                    limit=common.scaled(limit, scale),
                    max_new_tokens=largest,
                    min_new_tokens=smallest,
                    tokenisation="simple",  # of CIDEr; the quickstart has Chinese captions, which "ptb" cannot split
                )
                for name, (limit, largest, smallest) in TASKS.items()
            ),
            spread=tuple(
                dict(checkpoint=checkpoint, figure=figure, low=low, high=high)
                for checkpoint, figures in (SPREAD if size == "small" and scale == 1 else {}).items()
                for figure, (low, high) in figures.items()
            ),
            batch_size=20,
            prompt_style="training",
            output=runs,
        )
    )
