"""MMLU, CMMLU and C-Eval with five exemplars of the same subject (paper, Table 11).

python -m qwenvl_jax.evaluate \
    --config=configs/evaluation/pure_text.py:data=gs://bucket/benchmarks,runs=gs://bucket/runs,mesh=v5e

Each argument may be left out.
"""

import ml_collections

from configs.arguments import named_arguments
from configs.evaluation import common


@named_arguments
def get_config(
    data: str = "data/benchmarks",
    runs: str = "runs",
    checkpoints: str = "stage2_multitask",
    mesh: str = "v5p",
    limit: float = 0.0,
    vocabulary: str = "",
) -> ml_collections.ConfigDict:
    return common.sweep(
        [common.benchmark(name, folder, data) for name, folder in common.TABLES["11"].items()],
        name="pure_text",
        runs=runs,
        checkpoints=checkpoints,
        mesh=mesh,
        vocabulary=vocabulary,
        image_size=448.0,  # no question has a picture
        limit=limit,
    )
