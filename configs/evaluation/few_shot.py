"""OKVQA, VizWiz, TextVQA and Flickr30K with 0, 1, 2, 4 and 8 exemplars (paper, Figure 4).

python -m qwenvl_jax.evaluate \
    --config=configs/evaluation/few_shot.py:data=gs://bucket/benchmarks,runs=gs://bucket/runs,mesh=v5e

Each argument may be left out. Exemplars come from the training split of the same corpus, which has to be built with its
questions: `python -m data_pipelines okvqa --split=train --evaluation ..`. `leak=yes` takes those of Flickr30K from the
test split, the questions' own pictures included, as the released script does. `seed` draws others.
"""

import ml_collections

from configs.arguments import named_arguments
from configs.evaluation import common

SHOTS = (0, 1, 2, 4, 8)
# Benchmark -> the folders of its records and of its exemplars.
FOLDERS = {
    "okvqa_val": ("okvqa_val", "okvqa_train"),
    "vizwiz_val": ("vizwiz_val", "vizwiz_train"),
    "textvqa_val": ("textvqa_val", "textvqa_train"),
    "flickr30k_karpathy_test": ("flickr30k_test", "flickr30k_train"),
}


@named_arguments
def get_config(
    data: str = "data/benchmarks",
    runs: str = "runs",
    checkpoints: str = "stage2_multitask",
    mesh: str = "v5p",
    limit: float = 0.0,
    vocabulary: str = "",
    image_size: float = 448.0,
    leak: str = "no",
    seed: float = 0.0,
) -> ml_collections.ConfigDict:
    leaks = common.one_of(leak, {"yes": True, "no": False}, "value of leak")
    benchmarks = []
    for name, (folder, exemplars) in FOLDERS.items():
        for shots in SHOTS:
            values = common.benchmark(name, folder, data) | dict(label=f"{name}_{shots}_shots", shots=shots)
            if shots:
                values |= dict(exemplars=f"{data}/{exemplars}/evaluation", seed=int(seed))
            if shots and leaks and name.startswith("flickr30k"):
                values |= dict(exemplars=f"{data}/{folder}/evaluation", exemplar_split="test", leak=True)
            benchmarks.append(values)
    return common.sweep(
        benchmarks,
        name="few_shot",
        runs=runs,
        checkpoints=checkpoints,
        mesh=mesh,
        vocabulary=vocabulary,
        image_size=image_size,
        limit=limit,
        prompts_per_batch=8,  # a prompt with eight exemplars has about 2,400 tokens
    )
