"""The quickstart for one GPU: the same records, stages and evaluation with 100M parameters at 224 px.

    python -m qwenvl_jax.quickstart --size=100m

Every stage takes the argument `size`: `small`, for two CPU cores, or `100m`. A step has eight times the rows, and a
stage twice the steps, at three fifths of the rates. No GPU has trained it yet: it is made for an hour of an H100.
"""

import ml_collections

from configs.meshes import gpu
from configs.quickstart import common

SIZES = ("small", "100m")
IMAGE_SIZES = {common.SIZE_PRETRAIN: 112, common.SIZE_MULTITASK: 224}  # px; 8x8 and 16x16 patches
ROWS, STEPS, RATES = 8, 2, 0.6  # factors


def check(size: str) -> None:
    """Raises ValueError for an unknown size."""
    if size not in SIZES:
        raise ValueError(f"the argument size={size} is not one of {', '.join(SIZES)}")


def image_size(pixels: int, size: str) -> int:
    """The side of an image that has `pixels` in the small quickstart."""
    check(size)
    return pixels if size == "small" else IMAGE_SIZES[pixels]


def apply(config: ml_collections.ConfigDict, size: str) -> ml_collections.ConfigDict:
    """A stage of the small quickstart, or the same stage in another size."""
    config.data.image_size = image_size(config.data.image_size, size)
    if size == "small":
        return config
    _enlarge(config.model)
    config.data.rows_per_step *= ROWS
    config.train.steps *= STEPS
    config.optimizer.warmup_steps *= STEPS
    config.optimizer.peak_learning_rate *= RATES
    config.optimizer.min_learning_rate *= RATES
    gpu.apply(config)
    config.compute.remat_vit = config.compute.remat_decoder = "none"  # 80 GB hold all activations
    return config


def _enlarge(model: ml_collections.ConfigDict) -> None:
    """About 100M parameters; queries, positions and vocabulary stay as they are."""
    model.name = "quickstart_100m"
    model.vit.update(width=512, layers=12, heads=8, mlp_dim=2048, patch_size=14, position_grid=8)
    model.resampler.heads = 10
    # The gain of 0.02 at a width of 4,096.
    model.decoder.update(width=640, layers=12, heads=10, mlp_dim=1728, initializer_range=0.0506)
