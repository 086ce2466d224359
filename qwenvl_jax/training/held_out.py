"""The loss on held-out records while a stage trains, by source and by task (the paper's Figure 6).

The records of the mixture's held-out split, or those of `config.evaluation.mixture`, are packed as those of training,
every source with the same weight, and the first batches are taken anew at every evaluation. So the figures of different
steps can be compared. Nothing of the training is touched: neither its position in the data nor its state.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from qwenvl_jax.config import Config, DataConfig
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.readers.source import has_splits
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.params import Params
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.sharding.batch import batch_shardings, local_streams, put_batch
from qwenvl_jax.sharding.compiler import compiler_options
from qwenvl_jax.sharding.rules import replicated
from qwenvl_jax.training.loss import sum_by_source
from qwenvl_jax.training.metrics import losses_by_source_and_task
from qwenvl_jax.training.state import State
from qwenvl_jax.training.step import microbatch_loss


class HeldOutLoss:
    """Measures the loss of a state; see the module.

    Args:
      config: the run's; `config.evaluation` names the split and the number of batches.
      tokenizer: the run's.
      mesh: of the run.

    Raises:
      UserError: if a source has no such split, or none at all, so that it would be measured on what it is trained on.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, mesh: Mesh):
        self._config = dataclasses.replace(config, data=_measured(config))
        self._tokenizer = tokenizer
        self._mesh = mesh
        self._sums = _make_sums(self._config, mesh)
        self._open().close()  # a missing split is reported before the first step

    def __call__(self, step: int, state: State) -> dict[str, float]:
        """The losses in nats per supervised token: `loss`, `loss_by_source/..` and `loss_by_task/..`."""
        sums = []
        with self._open() as loader, jax.set_mesh(self._mesh):
            for _ in range(self._config.evaluation.batches):
                batch = put_batch(next(loader), self._config.data, self._mesh)
                sums.append(self._sums(state.trainable, state.frozen, batch))
        values = [
            {**{key: value.tolist() for key, value in each.items()}, "skipped": 0} for each in jax.device_get(sums)
        ]
        supervised = sum(sum(each["supervised_by_source"]) for each in values)
        figures = {"loss": sum(sum(each["loss_sum_by_source"]) for each in values) / max(1.0, supervised)}
        for group, numbers in losses_by_source_and_task(values, self._config.data.mixture).items():
            if group.startswith("loss"):
                figures |= {f"{group}/{name}": value for name, value in numbers.items() if value is not None}
        return figures

    def _open(self) -> Any:
        streams = local_streams(self._config.data, self._mesh)
        return make_loader(self._config, self._tokenizer, split=self._config.evaluation.split, streams=streams)


def _measured(config: Config) -> DataConfig:
    """The input of a stage with the sources whose loss is measured.

    Raises:
      UserError: if one of them has no part that is held out.
    """
    data = config.data
    if config.evaluation.mixture:
        distributed.from_primary(functools.partial(_check_not_trained_on, config))
        data = dataclasses.replace(data, mixture=config.evaluation.mixture, heldout_share=0.0)
    elif not data.heldout_share:
        for source in data.mixture:
            if not distributed.from_primary(functools.partial(has_splits, source)):
                raise UserError(
                    f"source {source.name!r} ({source.records}) has no splits, so all of it is trained on; hold a "
                    "share of a JSON file out with config.data.heldout_share, or name other files in "
                    "config.evaluation.mixture"
                )
    alike = tuple(dataclasses.replace(source, weight=1.0, schedule=()) for source in data.mixture)
    return dataclasses.replace(data, mixture=alike)


def _check_not_trained_on(config: Config) -> None:
    """Raises UserError if a source of `config.evaluation.mixture` has no splits and is one of the training as well."""
    trained = {os.path.realpath(source.records) for source in config.data.mixture}
    for source in config.evaluation.mixture:
        if os.path.realpath(source.records) in trained and not has_splits(source):
            raise UserError(
                f"source {source.name!r} of config.evaluation.mixture ({source.records}) is trained on; name another "
                "file, or hold a share of this one out with config.data.heldout_share"
            )


def _make_sums(config: Config, mesh: Mesh) -> Any:
    """The jitted function (trainable, frozen, batch) -> sums of token losses and supervised tokens by source, [S]."""

    def sums(trainable: Params, frozen: Params, batch: Any) -> dict[str, jax.Array]:
        def of_micro(_: None, micro: Any) -> tuple[None, jax.Array]:
            return None, microbatch_loss(trainable, frozen, micro, jnp.ones(()), config, mesh)[1]

        _, by_source_AS = jax.lax.scan(of_micro, None, batch)
        supervised_S = sum_by_source(batch.loss_mask, batch.sources, len(config.data.mixture))
        return {"loss_sum_by_source": jnp.sum(by_source_AS, axis=0), "supervised_by_source": supervised_S}

    return jax.jit(
        sums,
        in_shardings=(None, None, batch_shardings(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(mesh, config.compute.xla_options) or None,
    )
