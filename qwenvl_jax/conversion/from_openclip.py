"""Import of a whole OpenCLIP checkpoint, both towers, for scoring.

params = load_clip("open_clip_pytorch_model.bin", CLIP_MODELS["ViT-B-32"])
"""

from __future__ import annotations

import numpy as np
from etils import epath

from qwenvl_jax.conversion import mapping
from qwenvl_jax.conversion.stored_tensors import check_tensors, deferred_leaves, open_checkpoint
from qwenvl_jax.models import clip
from qwenvl_jax.models.clip import ClipConfig
from qwenvl_jax.params import Params, flatten_paths, unflatten_paths


def load_clip(path: epath.PathLike, config: ClipConfig) -> Params:
    """Reads the parameters of both towers.

    Args:
      path: the file or folder of an OpenCLIP checkpoint: safetensors, or a `.bin` or `.pt` file of PyTorch, which is
        not executed.
      config: the architecture that the checkpoint must have.

    Returns:
      The tree of `models.clip.init_params` as NumPy arrays in float32; checkpoints in half precision are widened.

    Raises:
      UserError: if a tensor is missing, unknown, misshapen or damaged; the message names the first one.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten_paths(clip.abstract_params(config)).items()}
    stored = open_checkpoint(path)
    check_tensors(path, stored, mapping.tensors_of(shapes, mapping.CLIP_RULES), mapping.CLIP_LEFT_OUT)
    leaves = deferred_leaves(shapes, stored, mapping.CLIP_RULES)
    return unflatten_paths({name: leaf.load().astype(np.float32, copy=False) for name, leaf in leaves.items()})
