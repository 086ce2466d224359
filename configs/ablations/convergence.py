"""Ablation E.1 (Figure 6): stage 1, with CIDEr of captions and zero-shot VQA accuracy while it trains.

python -m qwenvl_jax.ablate \
    --config=configs/ablations/convergence.py:mesh=v5p,data=gs://bucket/data,runs=gs://bucket/runs \
    --workdir=gs://bucket/runs/convergence

Each argument may be left out; `size=miniature` is the quickstart's stage 1, after its `stage0_text`. What is asked is
in configs/ablations/convergence_questions.py.
"""

import ml_collections

from configs import stage1_pretrain
from configs.ablations import common
from configs.arguments import named_arguments
from configs.quickstart import common as quickstart
from configs.quickstart import stage1_pretrain as miniature

EVALUATIONS = {"full": 50, "miniature": 10}  # over the whole run; ours

_STUDY = dict(
    title="Convergence of stage 1",
    claim="E.1, Figure 6: the loss decreases steadily. Stage 1 sees no VQA data, but the zero-shot VQA score rises "
    "amidst fluctuations.",
    arms=(dict(name="stage1", arguments=""),),
    questions="configs/ablations/convergence_questions.py",
)
_MINIATURE_STEPS = 2000
STUDIES = {
    "full": dict(**_STUDY, initial_steps=500, late_from=40_000),
    "miniature": dict(**_STUDY, initial_steps=100, late_from=1600),
}


@named_arguments
def get_config(size: str = "full", mesh: str = "", data: str = "", runs: str = "") -> ml_collections.ConfigDict:
    arguments = common.arguments(size, mesh, data, runs)
    if size == "full":
        config = stage1_pretrain.get_config(**arguments)
    else:
        config = _captions_alone(arguments["data"], arguments["runs"])
    config.evaluation.every = config.train.steps // EVALUATIONS[size]
    return config


def _captions_alone(data: str, runs: str) -> ml_collections.ConfigDict:
    """The quickstart's stage 1 without its maps, which are questions: with them, its answers would not be zero-shot."""
    config = miniature.get_config(data=data, runs=runs)
    config.data.mixture = (quickstart.source(data, "caption", 1.0),)
    config.data.images_per_row = 4.0
    config.optimizer = quickstart.optimizer(miniature.PEAK_RATE, _MINIATURE_STEPS)
    config.train.steps = _MINIATURE_STEPS
    return config
