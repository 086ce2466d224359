"""Released directories in the place of runs: each is imported once and then read as a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable

from etils import epath

from qwenvl_jax.checkpoint import layout
from qwenvl_jax.evaluation.config import EvalConfig
from qwenvl_jax.runtime import distributed, storage

ImportRelease = Callable[[epath.Path, epath.Path], object]


def with_imported(config: EvalConfig, import_release: ImportRelease) -> EvalConfig:
    """The config with a checkpoint in the place of each released directory, imported to `<output>/imported/..` once.

    Args:
      config: of the evaluation.
      import_release: (release, workdir) -> imports it. It is handed in, because `conversion` imports this package.
    """
    imported = storage.path(config.output) / "imported"
    items = []
    for item in config.checkpoints:
        workdir = run_of(item.workdir, imported, item.name, import_release)
        items.append(dataclasses.replace(item, workdir=workdir))
    return dataclasses.replace(config, checkpoints=tuple(items))


def run_of(workdir: str, imported: epath.Path, name: str, import_release: ImportRelease) -> str:
    """The folder of a run; a released directory is imported first, if that has not been done.

    Args:
      workdir: a run, or a released directory.
      imported: the folder for imports; each is named after `name` and the files of the release.
      name: of the release, for people.
      import_release: as for `with_imported`.
    """
    release = storage.path(workdir)
    if not storage.exists(release / layout.CONFIG) or storage.exists(release / layout.LINEAGE):
        return workdir
    files = json.dumps([str(release), storage.sizes(release)], sort_keys=True)
    run = imported / f"{name}-{hashlib.sha256(files.encode()).hexdigest()[:16]}"

    def once() -> None:
        if not storage.exists(run / layout.LINEAGE):
            import_release(release, run)

    distributed.from_primary(once)
    return str(run)
