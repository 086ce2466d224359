"""Whether a decoder has seen ChatML, whose tokens a frozen vocabulary cannot learn."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.checkpoint import layout, lineage
from qwenvl_jax.checkpoint.starting_point import IMPORT, StartingPoint
from qwenvl_jax.config import Config
from qwenvl_jax.runtime import artifacts, log, storage

_OF_DIALOGUES = "sft"  # the stage of a run, or of a release, that was taught ChatML


def warn_of_unknown_tokens(config: Config, start: StartingPoint | None) -> None:
    """Prints a warning if a run teaches dialogues to a decoder without ChatML whose vocabulary is frozen.

    The released finetune.py trains the embedding and the head of such a model with its adapters.

    Args:
      config: the run's.
      start: the checkpoint that the decoder starts from.
    """
    teaches = any(source.task == "dialogue" for source in config.data.mixture)
    frozen = not {"vocabulary", "decoder"} & set(config.train.trainable)
    if teaches and frozen and start is not None and has_seen_chatml(start) is False:
        log.line(
            f"warning: {start.workdir} was never trained on dialogues, so <|im_start|> and <|im_end|> mean nothing to "
            "its embedding and its head, which are frozen here; train them too, with vocabulary=trained or by adding "
            "'vocabulary' to config.train.trainable"
        )


def has_seen_chatml(start: StartingPoint) -> bool | None:
    """Whether the decoder of a checkpoint was trained on dialogues, in its own run or an earlier one; None: unknown."""
    if start.stage == IMPORT:
        return _release_has(start.workdir)
    if start.stage == _OF_DIALOGUES or any(source.task == "dialogue" for source in start.config.data.mixture):
        return True
    origin: Any = lineage.read_lineage(start.workdir)["components"].get("decoder")
    while isinstance(origin := origin and origin.get("from"), dict):
        if origin.get("stage") == _OF_DIALOGUES:
            return True
        if origin.get("stage") == IMPORT:
            return _release_has(origin.get("path", ""))
    return False


def _release_has(workdir: str) -> bool | None:
    """Of imported weights: what the release says; None if its config was not kept, as of a language model alone."""
    path = storage.path(workdir) / layout.IMPORTED_CONFIG if workdir else None
    if path is None or not storage.exists(path):
        return None
    return artifacts.read_json(path)["train"]["stage"] == _OF_DIALOGUES
