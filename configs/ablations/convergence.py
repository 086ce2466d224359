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
from configs.quickstart import stage1_pretrain as miniature

EVALUATIONS = {"full": 50, "miniature": 10}  # over the whole run; ours

_STUDY = dict(
    title="Convergence of stage 1",
    claim="E.1, Figure 6: the loss decreases steadily. Stage 1 sees no VQA data, but the zero-shot VQA score rises "
    "amidst fluctuations.",
    arms=(dict(name="stage1", arguments=""),),
    questions="configs/ablations/convergence_questions.py",
)
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
        config = miniature.get_config(data=arguments["data"], runs=arguments["runs"])
    config.evaluation.every = config.train.steps // EVALUATIONS[size]
    return config
