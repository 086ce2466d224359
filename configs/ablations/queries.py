"""Ablation E.2 (Figure 7): the number of queries, and so of features per image, in stage 1 with a ViT-L/14 at 224 px.

python -m qwenvl_jax.ablate --config=configs/ablations/queries.py:mesh=v5p,data=gs://bucket/data,runs=gs://bucket/runs \
    --workdir=gs://bucket/runs/queries

One arm alone: python -m qwenvl_jax.train --config=configs/ablations/queries.py:queries=64 --workdir=runs/queries/L64

Each argument may be left out. `queries` is a square number; without it the resampler has as many queries as the ViT has
patches. A row has one pair in every arm, and always the same room for its text, so all arms are taught the same tokens
in the same steps. `size=miniature` starts from the quickstart's `stage0_text`, with a ViT of 8 x 8 patches instead of
16 x 16: its 16, 36, 64 and 100 queries are to these what 64, 144, 256 and 400 are in the paper.
"""

import math

import ml_collections

from configs import stage1_pretrain
from configs.ablations import common
from configs.arguments import named_arguments
from configs.quickstart import common as quickstart
from configs.quickstart import stage1_pretrain as miniature

STEPS = {"full": 5000, "miniature": 400}  # the paper shows 5,000
PIXELS = {"full": 224, "miniature": 56}
TEXT_TOKENS = {"full": 254, "miniature": 62}  # of a row, beside its image; 512 - 258 as in stage 1

# OpenCLIP ViT-L/14, converted by `python -m qwenvl_jax.convert` to `<runs>/openclip_vit_l`.
VIT_L_14 = dict(width=1024, layers=24, heads=16, mlp_dim=4096)

_STUDY = dict(
    title="Number of queries in the resampler",
    claim="E.2, Figure 7: the fewer queries, the lower the loss of the first 50 steps. Later both too many and too few "
    "slow the convergence down. The paper chooses 256.",
    initial_steps=50,
)
STUDIES = {
    "full": dict(
        **_STUDY,
        arms=tuple(dict(name=f"L{queries}", arguments=f"queries={queries}") for queries in (64, 144, 256, 400)),
        late_from=1000,
    ),
    "miniature": dict(
        **_STUDY,
        arms=tuple(dict(name=f"L{queries}", arguments=f"queries={queries}") for queries in (16, 36, 64, 100)),
        late_from=200,
    ),
}


@named_arguments
def get_config(
    queries: float = 0.0, size: str = "full", mesh: str = "", data: str = "", runs: str = ""
) -> ml_collections.ConfigDict:
    arguments = common.arguments(size, mesh, data, runs)
    config = _full(**arguments) if size == "full" else _miniature(arguments["data"], arguments["runs"])
    vit = config.model.vit
    count = common.whole("queries", queries) or (config.data.image_size // vit.patch_size) ** 2
    grid = math.isqrt(count)
    if grid**2 != count:
        near = f"{grid**2} or {(grid + 1) ** 2}"
        raise ValueError(f"the argument queries={count} is no square number; the queries form a grid, so take {near}")
    config.model.resampler.query_grid = grid
    config.data.sequence_length = count + 2 + TEXT_TOKENS[size]
    config.train.log_every = 1
    config.init.partial = True  # the starting points have another resampler, which is not loaded
    return config


def _full(mesh: str, data: str, runs: str) -> ml_collections.ConfigDict:
    config = stage1_pretrain.get_config(mesh=mesh, data=data, runs=runs)
    config.model.name = "qwen_vl_vit_l"
    config.model.vit.update(VIT_L_14)
    config.init.vit = f"{runs}/openclip_vit_l"
    config.train.steps = STEPS["full"]
    return config


def _miniature(data: str, runs: str) -> ml_collections.ConfigDict:
    steps = STEPS["miniature"]
    config = quickstart.stage(
        data,
        data=dict(
            mixture=(quickstart.source(data, "caption", 1.0),),
            image_size=PIXELS["miniature"],
            sequence_length=128,
            rows_per_step=16,
            images_per_row=1.0,
            image_groups=0,
            seed=1,
        ),
        optimizer=quickstart.optimizer(miniature.PEAK_RATE, steps),
        init=dict(stage="text", vit="", resampler="", decoder=f"{runs}/stage0_text", step=-1),
        train=quickstart.train("pretrain", ("vit", "vit_head", "resampler"), steps),
    )
    config.model.vit.position_grid = 8
    return config
