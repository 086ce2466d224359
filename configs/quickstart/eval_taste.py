"""Boxes and captions of the model of `taste` on held-out scenes.

python -m qwenvl_jax.evaluate --config=configs/quickstart/eval_taste.py
"""

import ml_collections

from configs.arguments import named_arguments
from configs.quickstart import common, eval

TASKS = ("ref_grounding", "caption")
QUESTIONS = 100  # of each


@named_arguments
def get_config(data: str = "data/taste", runs: str = "runs/taste", scale: float = 1.0) -> ml_collections.ConfigDict:
    config = eval.get_config(data=data, runs=runs, scale=scale)
    config.checkpoints = (dict(name="taste", workdir=f"{runs}/taste", image_size=common.SIZE_PRETRAIN, step=-1),)
    config.benchmarks = tuple(
        dict(item, limit=common.scaled(QUESTIONS, scale)) for item in config.benchmarks if item["name"] in TASKS
    )
    return config
