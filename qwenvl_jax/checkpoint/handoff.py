"""How the tensors of a checkpoint fit the model of a new run: loaded, resized, skipped, or begun anew.

A stage normally starts from a checkpoint of the same model, so that every tensor is loaded. With `config.init.partial`
the checkpoint may be of another model: tensors of the same path and shape are loaded, positions of the ViT are
interpolated to another grid, the rows of a vocabulary of another size are copied, and everything else begins as in a
fresh run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import numpy as np

from qwenvl_jax.checkpoint.starting_point import StartingPoint, stored_params
from qwenvl_jax.models import quantised
from qwenvl_jax.models.layers import resize_positions
from qwenvl_jax.models.lora import is_adapter
from qwenvl_jax.params import Params, Path, flatten

LOADED = "loaded"
RESIZED = "resized"
FRESH = "fresh"
SKIPPED = "skipped"  # the checkpoint has it, the run has no use for it

_POSITIONS: Path = ("vit", "position_embedding")
_VOCABULARY_AXES: dict[Path, int] = {("decoder", "embedding"): 0, ("decoder", "lm_head"): 1}


@dataclasses.dataclass(frozen=True)
class Fit:
    """What becomes of one tensor, and why if it is not simply loaded."""

    how: str
    why: str = ""


def fits_of(starting_points: Mapping[str, StartingPoint | None], shapes: Params) -> dict[Path, Fit]:
    """What becomes of every tensor of a run, and of those that its starting points have in addition.

    Args:
      starting_points: by tower, from `check_init`; None is fresh initialisation.
      shapes: of the run's whole tree; kernels that it quantises are named as what they stand for.

    Raises:
      UserError: if a checkpoint is damaged.
    """
    wanted = flatten(quantised.plain(shapes))
    fits: dict[Path, Fit] = {}
    for tower, start in starting_points.items():
        ours = {path: leaf.shape for path, leaf in wanted.items() if path[0] == tower}
        if start is None:
            fits |= dict.fromkeys(ours, Fit(FRESH))
            continue
        stored = {path: leaf.shape for path, leaf in stored_params(start).items() if path[0] == tower}
        fits |= {path: _fit(path, shape, stored.get(path)) for path, shape in ours.items()}
        fits |= {path: Fit(SKIPPED, "not in this model") for path in stored if path not in ours}
    return fits


def _fit(path: Path, shape: tuple[int, ...], stored: tuple[int, ...] | None) -> Fit:
    if is_adapter(path):  # those of the checkpoint are in its kernels
        return Fit(FRESH)
    if stored is None:
        return Fit(FRESH, "not in the checkpoint")
    if stored == shape:
        return Fit(LOADED)
    if path == _POSITIONS and stored[1:] == shape[1:] and _is_square(stored[0]) and _is_square(shape[0]):
        return Fit(RESIZED, f"{math.isqrt(stored[0])}² positions interpolated to {math.isqrt(shape[0])}²")
    axis = _VOCABULARY_AXES.get(path)
    if axis is not None and _without(stored, axis) == _without(shape, axis):
        return Fit(RESIZED, f"{min(stored[axis], shape[axis])} of {stored[axis]} tokens copied, {shape[axis]} here")
    return Fit(FRESH, f"{list(stored)} in the checkpoint, {list(shape)} here")


def resized(path: Path, stored: np.ndarray, fresh: jax.Array) -> jax.Array:
    """A tensor that `fits_of` calls resized.

    Args:
      path: of the tensor.
      stored: the array of the checkpoint.
      fresh: the array of a fresh run; it gives shape, dtype and sharding, and the tokens that the checkpoint lacks.
    """

    @functools.partial(jax.jit, out_shardings=fresh.sharding)
    def resize(stored: jax.Array, fresh: jax.Array) -> jax.Array:
        if path == _POSITIONS:
            return resize_positions(stored, fresh.shape[0]).astype(fresh.dtype)
        axis = _VOCABULARY_AXES[path]
        rows = min(stored.shape[axis], fresh.shape[axis])
        kept = (slice(None),) * axis + (slice(rows),)
        return fresh.at[kept].set(stored[kept].astype(fresh.dtype))

    return resize(stored, fresh)


def to_json(fits: Mapping[Path, Fit]) -> dict[str, str]:
    """The fits by the paths of the tensors, for the lineage."""
    return {"/".join(path): fit.how + (f": {fit.why}" if fit.why else "") for path, fit in fits.items()}


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
