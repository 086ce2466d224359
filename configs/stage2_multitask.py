"""Stage 2, multi-task pre-training: seven tasks at 448 px, packed; everything is trained (paper 3.2).

python -m qwenvl_jax.train --config=configs/stage2_multitask.py:mesh=v5p,data=gs://bucket/data,runs=gs://bucket/runs \
    --workdir=gs://bucket/runs/stage2_multitask

Each argument may be left out; `batch=rows` takes the batch size of the paper for packed rows instead of samples.
The numbers are those of Table 8 of the paper unless a comment says otherwise.
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

# Table 8 has a batch of 4,096 and does not say of what. 19,000 * 4,096 is one pass over the 76.8M samples, so it was
# probably samples. A row holds about 4.4 samples (benchmarks/packing.py): 1,024 rows make 1.1 passes.
ROWS_PER_STEP = {"samples": 1024, "rows": 4096}


@named_arguments
def get_config(
    mesh: str = "v5p", data: str = "data", runs: str = "runs", batch: str = "samples"
) -> ml_collections.ConfigDict:
    return base.stage(
        mesh,
        batch=batch,
        rows_per_step=ROWS_PER_STEP,
        data=dict(
            mixture=tuple(base.source(f"{data}/multitask", task, task, weight) for task, weight in SAMPLES.items()),
            image_size=448,
            sequence_length=2048,
            accumulation=8,
            images_per_row=3.5,  # ours: full rows of this mixture show about 3.2 pictures (benchmarks/packing.py)
            seed=2,
            group_rows=4,  # ours: images stay near their rows, on at most two chips of one host
            streams=32,  # ours: up to so many hosts read, decode and pack different samples
        ),
        optimizer=base.optimizer(peak=5e-5, minimum=1e-5, warmup=400, vit_layer_decay=0.95),
        init=base.continue_from("pretrain", f"{runs}/stage1_pretrain"),
        train=base.train("multitask", ("vit", "vit_head", "resampler", "decoder"), 19_000),
    )
