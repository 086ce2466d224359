"""The model that is about to answer: its checkpoint is found, imported if it is a release, and checked."""

from __future__ import annotations

from typing import NamedTuple

from etils import epath
from jax.sharding import Mesh

from qwenvl_jax.checkpoint.starting_point import StartingPoint, find_starting_point
from qwenvl_jax.config import MeshConfig
from qwenvl_jax.conversion.imported_runs import run_of
from qwenvl_jax.data.tokenizer import Tokenizer, load_tokenizer
from qwenvl_jax.evaluation import checkpoint, placement
from qwenvl_jax.runtime import storage
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.options import EngineSettings


class OpenedModel(NamedTuple):
    """What an engine is made of, save for the weights.

    Attributes:
      starting_point: the checkpoint.
      tokenizer: of the same run.
      image_size: pixels of an image's side.
      mesh: None for the first device.
    """

    starting_point: StartingPoint
    tokenizer: Tokenizer
    image_size: int
    mesh: Mesh | None

    def engine(self, settings: EngineSettings) -> Engine:
        """Loads the weights and makes an engine, which has not been started.

        Raises:
          UserError: if the checkpoint is damaged, does not fit the mesh, or has not as many positions as `context`.
        """
        model = placement.load(self.starting_point, self.mesh)
        return Engine(model, self.tokenizer, self.image_size, settings, self.mesh)


def open_model(
    workdir: str,
    step: int | None,
    imported: epath.Path,
    *,
    image_size: int = 0,
    mesh: MeshConfig | None = None,
) -> OpenedModel:
    """Finds a checkpoint of a run, or of a release, which is imported once. Loads no weights.

    Args:
      workdir: the run, or the release.
      step: of the checkpoint; None or -1 is the newest.
      imported: the folder for imports.
      image_size: pixels of an image's side; 0 as in training.
      mesh: of devices of this process; None for the first one.

    Raises:
      UserError: if there is no such checkpoint, it does not fit the images, or there are no such devices.
    """
    name = storage.path(workdir).name or "release"
    starting_point = find_starting_point(run_of(workdir, imported, name, step), step)
    config = starting_point.config
    size = image_size or config.data.image_size
    tokenizer = load_tokenizer(config.tokenizer)
    checkpoint.check_fits(starting_point, config.tokenizer, tokenizer, size)
    devices = placement.local_mesh(mesh) if mesh else None
    return OpenedModel(starting_point, tokenizer, size, devices)
