"""A study of two arms over the tiny config: the number of queries."""

import ml_collections

from configs.arguments import named_arguments
from tests.support import tiny_config

_STUDY = dict(
    title="Queries of the tiny model",
    claim="Nothing <is> claimed.",
    arms=(dict(name="L1", arguments="grid=1"), dict(name="L4", arguments="grid=2")),
    initial_steps=4,
    late_from=8,
)
STUDIES = {"tiny": _STUDY, "twice": {**_STUDY, "arms": (dict(name="L1"), dict(name="L1"))}}


@named_arguments
def get_config(
    grid: float = 2.0, data: str = "data/tiny", size: str = "tiny", steps: float = 12.0
) -> ml_collections.ConfigDict:
    del size
    config = tiny_config.get_config(data)
    config.model.resampler.query_grid = int(grid)
    config.train.update(dict(steps=int(steps), log_every=1, checkpoint_every=4))
    config.evaluation.update(dict(every=6, split="train", batches=1))
    config.evaluation.mixture = (config.data.mixture[0],)
    return config
