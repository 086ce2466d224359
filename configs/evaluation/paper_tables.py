"""All benchmarks of the paper's Tables 4 to 7 and 11, with MMBench and InfographicVQA.

python -m qwenvl_jax.evaluate \
    --config=configs/evaluation/paper_tables.py:data=gs://bucket/benchmarks,runs=gs://bucket/runs,mesh=v5e,tables=4+5

Each argument may be left out. `tables` has names of tables, and `benchmarks` names of benchmarks instead; both with +
between them. `limit=100` asks only the first hundred records of each.
"""

import ml_collections

from configs.arguments import named_arguments
from configs.evaluation import common


@named_arguments
def get_config(
    data: str = "data/benchmarks",
    runs: str = "runs",
    checkpoints: str = "stage2_multitask+stage3_sft",
    mesh: str = "v5p",
    tables: str = "4+5+6+7+11+more",
    benchmarks: str = "",
    limit: float = 0.0,
    vocabulary: str = "",
    image_size: float = 448.0,
) -> ml_collections.ConfigDict:
    folders: dict = {}
    for table in tables.split("+"):
        folders |= common.one_of(table, common.TABLES, "table")
    if benchmarks:
        known = {name: folder for table in common.TABLES.values() for name, folder in table.items()}
        folders = {name: common.one_of(name, known, "benchmark") for name in benchmarks.split("+")}
    return common.sweep(
        [common.benchmark(name, folder, data) for name, folder in folders.items()],
        name="paper_tables",
        runs=runs,
        checkpoints=checkpoints,
        mesh=mesh,
        vocabulary=vocabulary,
        image_size=image_size,
        limit=limit,
    )
