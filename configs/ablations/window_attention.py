"""Ablation E.3 (Table 10, Figure 8): window against global attention in the ViT, at 448 and 896 px, in stage 2.

python -m qwenvl_jax.ablate \
    --config=configs/ablations/window_attention.py:mesh=v5p,data=gs://bucket/data,runs=gs://bucket/runs \
    --workdir=gs://bucket/runs/window_attention

One arm alone: python -m qwenvl_jax.train --config=configs/ablations/window_attention.py:pixels=896,window=224 \
    --workdir=runs/window_attention/window_896

Each argument may be left out. `pixels` and `window` are the sides of the image and of a window in pixels; `window=0` is
global attention. With windows every fourth layer still attends to the whole image. `size=miniature` starts from the
quickstart's `stage1_pretrain`: 84 and 168 px, windows of 42 px, and the last of three layers is global.
"""

import ml_collections

from configs import stage2_multitask
from configs.ablations import common
from configs.arguments import named_arguments
from configs.quickstart import stage2_multitask as quickstart

STEPS = {"full": 5000, "miniature": 150}  # the paper compares the losses at 5,000 steps
PIXELS = {"full": 448, "miniature": 84}
GLOBAL_EVERY = {"full": 4, "miniature": 3}  # the quickstart's ViT has three layers

_STUDY = dict(
    title="Window against global attention in the ViT",
    claim="E.3, Figure 8, Table 10: with windows the loss is significantly higher. A step takes 10 s (448 px, global), "
    "9 s (448 px, windows), 60 s (896 px, global) and 25 s (896 px, windows). The paper keeps global attention.",
    initial_steps=50,
)


def _arms(window: int, *sides: int) -> tuple[dict, ...]:
    return tuple(
        dict(name=f"{name}_{pixels}", arguments=f"pixels={pixels},window={size}")
        for pixels in sides
        for name, size in (("global", 0), ("window", window))
    )


STUDIES = {
    "full": dict(**_STUDY, arms=_arms(224, 448, 896), late_from=4000),
    "miniature": dict(**_STUDY, arms=_arms(42, 84, 168), late_from=100),
}


@named_arguments
def get_config(
    pixels: float = 0.0, window: float = 0.0, size: str = "full", mesh: str = "", data: str = "", runs: str = ""
) -> ml_collections.ConfigDict:
    arguments = common.arguments(size, mesh, data, runs)
    config = _full(**arguments) if size == "full" else _miniature(arguments["data"], arguments["runs"])
    vit = config.model.vit
    config.data.image_size = common.whole("pixels", pixels) or PIXELS[size]
    patches, rest = divmod(common.whole("window", window), vit.patch_size)
    if rest:
        raise ValueError(f"the argument window={window:g} is no multiple of the {vit.patch_size} pixels of a patch")
    vit.window = patches
    vit.global_every = GLOBAL_EVERY[size]
    config.train.log_every = 1
    config.init.partial = True  # the starting point has no windows; all its tensors fit
    return config


def _full(mesh: str, data: str, runs: str) -> ml_collections.ConfigDict:
    config = stage2_multitask.get_config(mesh=mesh, data=data, runs=runs)
    config.train.steps = STEPS["full"]
    return config


def _miniature(data: str, runs: str) -> ml_collections.ConfigDict:
    config = quickstart.get_config(data=data, runs=runs, scale=STEPS["miniature"] / quickstart.STEPS)
    config.data.rows_per_step = 4  # half of the quickstart's, because an arm has seven times its patches
    return config
