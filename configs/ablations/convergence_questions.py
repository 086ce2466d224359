"""What configs/ablations/convergence.py asks while it trains: captions, and questions that stage 1 has not learned.

Full size: 500 pictures of Flickr30K's Karpathy test and of VQAv2 val, in `<data>/benchmarks` (docs/benchmark_data.md).
Miniature: held-out captions and questions of the quickstart.
"""

import ml_collections

from configs.ablations import common
from configs.arguments import named_arguments
from configs.evaluation import common as published
from configs.quickstart import eval as quickstart

BENCHMARKS = ("flickr30k_karpathy_test", "vqav2_val")
LIMIT = 500  # pictures; all processes answer together, so few are asked. Ours
TASKS = ("caption", "vqa")  # of the quickstart


@named_arguments
def get_config(size: str = "full", mesh: str = "", data: str = "", runs: str = "") -> ml_collections.ConfigDict:
    arguments = common.arguments(size, mesh, data, runs)
    if size == "miniature":
        config = quickstart.get_config(data=arguments["data"], runs=arguments["runs"])
        config.benchmarks = tuple(benchmark for benchmark in config.benchmarks if benchmark["name"] in TASKS)
        return config
    folders = published.TABLES["4"]
    return published.sweep(
        [published.benchmark(name, folders[name], f"{arguments['data']}/benchmarks") for name in BENCHMARKS],
        name="convergence",
        runs=arguments["runs"],
        checkpoints="convergence/stage1",
        mesh=arguments["mesh"],
        vocabulary="",
        image_size=224,
        limit=LIMIT,
    )
