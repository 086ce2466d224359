"""The checkpoint under evaluation: whether it fits vocabulary and images, and its fingerprint."""

from __future__ import annotations

from typing import Any

from etils import epath

from qwenvl_jax.checkpoint import layout
from qwenvl_jax.checkpoint.manager import SUMS, read_progress
from qwenvl_jax.checkpoint.starting_point import IMPORT, StartingPoint, check_vocabulary, damage_reported
from qwenvl_jax.checkpoint.steps import folder_of
from qwenvl_jax.config import TokenizerConfig, config_hash, to_dict
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.training import metrics_log


def check_fits(
    starting_point: StartingPoint, vocabulary: TokenizerConfig, tokenizer: Tokenizer, image_size: int
) -> None:
    """Checks that a model can read the prompts and images of an evaluation.

    Args:
      starting_point: the checkpoint.
      vocabulary: the vocabulary of the prompts.
      tokenizer: the same vocabulary, loaded.
      image_size: pixels of an image's side.

    Raises:
      UserError: if images cannot be cut into whole patches, if the vocabulary has more ids than the model has rows, or
        if the model was trained with another vocabulary.
    """
    model = starting_point.config.model
    if tokenizer.vocab_size > model.decoder.vocab_size:
        raise UserError(
            f"the vocabulary has {tokenizer.vocab_size} ids, the model of {starting_point.workdir} only "
            f"{model.decoder.vocab_size}; name the vocabulary it was trained with"
        )
    check_vocabulary(starting_point, vocabulary)
    side, rest = divmod(image_size, model.vit.patch_size)
    if side < 1 or rest or (model.vit.window and side >= model.vit.window and side % model.vit.window):
        raise UserError(
            f"images of {image_size} pixels cannot be cut into the patches of {starting_point.workdir}, which have "
            f"{model.vit.patch_size}; that run was trained with {starting_point.config.data.image_size}"
        )


def identity(starting_point: StartingPoint) -> dict[str, Any]:
    """JSON values that change with the weights of a checkpoint, and with nothing that its run does afterwards.

    A checkpoint carries sums over its bits. An older checkpoint without sums is identified by the last line of its
    metrics, and imported weights by their lineage.
    """
    workdir = storage.path(starting_point.workdir)
    known: dict[str, Any] = {"step": starting_point.step}
    if starting_point.stage != IMPORT:
        with damage_reported(starting_point):
            progress = read_progress(folder_of(workdir, starting_point.step))
        if SUMS in progress:
            return (
                known
                | {"model": to_dict(starting_point.config.model), "compute": to_dict(starting_point.config.compute)}
                | progress
            )
        logged = metrics_log.lines_up_to(workdir / layout.METRICS, starting_point.step)
        known["metrics"] = logged[-1].decode().rstrip("\n") if logged else ""
    return known | {"config": config_hash(starting_point.config), "lineage": _text(workdir / layout.LINEAGE)}


def _text(path: epath.Path) -> str:
    """The text of a file, empty if there is none."""
    try:
        return storage.read_bytes(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
