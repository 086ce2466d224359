"""Released directories among the checkpoints of an evaluation: each is imported once and then read as a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable

from etils import epath

from qwenvl_jax.checkpoint import layout
from qwenvl_jax.evaluation.config import EvalConfig
from qwenvl_jax.runtime import distributed, storage


def with_imported(config: EvalConfig, import_release: Callable[[epath.Path, epath.Path], object]) -> EvalConfig:
    """The config with a checkpoint in the place of each released directory, imported to `<output>/imported/..` once.

    Args:
      config: of the evaluation.
      import_release: (release, workdir) -> imports it. It is handed in, because `conversion` imports this package.
    """
    items = []
    for item in config.checkpoints:
        release = storage.path(item.workdir)
        if storage.exists(release / layout.CONFIG) and not storage.exists(release / layout.LINEAGE):
            files = json.dumps([str(release), storage.sizes(release)], sort_keys=True)
            digest = hashlib.sha256(files.encode()).hexdigest()[:16]
            workdir = storage.path(config.output) / "imported" / f"{item.name}-{digest}"

            def once(release: epath.Path = release, workdir: epath.Path = workdir) -> None:
                if not storage.exists(workdir / layout.LINEAGE):
                    import_release(release, workdir)

            distributed.from_primary(once)
            item = dataclasses.replace(item, workdir=str(workdir))
        items.append(item)
    return dataclasses.replace(config, checkpoints=tuple(items))
