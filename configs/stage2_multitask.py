"""Stage 2, multi-task pre-training: seven tasks at 448 px, packed; everything is trained (paper 3.2).

python -m qwenvl_jax.train --config=configs/stage2_multitask.py:mesh=v5p,data=gs://bucket/data,runs=gs://bucket/runs \
    --workdir=gs://bucket/runs/stage2_multitask

Each argument may be left out. The numbers are those of Table 8 of the paper unless a comment says otherwise.
"""

import ml_collections

from configs import base
from configs.arguments import named_arguments

# Millions of samples (paper, Table 3). Each task is one record folder, built from the datasets in its comment.
SAMPLES = {
    "caption": 19.7,  # LAION-en and -zh, DataComp, Coyo, CC12M, CC3M, SBU, COCO, in-house
    "vqa": 3.6,  # GQA, VGQA, VQAv2, DVQA, OCR-VQA, DocVQA, TextVQA, ChartQA, AI2D
    "grounding": 3.5,  # GRIT
    "ref_grounding": 8.7,  # GRIT, Visual Genome, RefCOCO, RefCOCO+, RefCOCOg
    "grounded_caption": 8.7,  # the same
    "ocr": 24.8,  # SynthDoG-en and -zh, Common Crawl pdf and HTML
    "text": 7.8,  # in-house
}


@named_arguments
def get_config(mesh: str = "v5p", data: str = "data", runs: str = "runs") -> ml_collections.ConfigDict:
    return base.stage(
        mesh,
        data=dict(
            mixture=tuple(base.source(f"{data}/multitask", task, task, weight) for task, weight in SAMPLES.items()),
            image_size=448,
            sequence_length=2048,
            # The paper does not say whether samples or packed rows are meant. 19,000 * 4096 is one pass over the
            # 76.8M samples, so it was probably samples; a row holds about 4.1 samples. For one pass set this to 1024
            # (and accumulation to 2 on v4, 4 on v5e, so that rows divide over the chips).
            rows_per_step=4096,
            accumulation=8,
            images_per_row=4.25,  # ours: full rows of this mixture hold about 4.2 (benchmarks/packing.py)
            seed=2,
            image_groups=64,  # ours: images stay near their rows; groups of 8 rows fill almost as evenly as one of all
            streams=64,  # ours: up to so many hosts build only their own rows
        ),
        optimizer=base.optimizer(peak=5e-5, minimum=1e-5, warmup=400, vit_layer_decay=0.95),
        init=base.continue_from("pretrain", f"{runs}/stage1_pretrain"),
        train=base.train("multitask", ("vit", "vit_head", "resampler", "decoder"), 19_000),
    )
