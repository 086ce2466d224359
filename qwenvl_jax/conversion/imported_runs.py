"""Releases in the place of runs: each is imported once and then read as a run.

Evaluation, inference, chat and server all come here, so that they take the same folders and refuse the same ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from etils import epath

from qwenvl_jax.checkpoint import layout
from qwenvl_jax.evaluation.config import EvalConfig
from qwenvl_jax.runtime import artifacts, distributed, folder_lock, log, storage
from qwenvl_jax.runtime.errors import UserError

_ADAPTERS = "adapter_config.json"  # of PEFT; the import says what to do with such a folder


def with_imported(config: EvalConfig) -> EvalConfig:
    """The config with a checkpoint in the place of each release, imported to `<output>/imported/..` once.

    Raises:
      UserError: if a directory cannot be imported.
    """
    imported = storage.path(config.output) / "imported"
    items = []
    for item in config.checkpoints:
        items.append(dataclasses.replace(item, workdir=run_of(item.workdir, imported, item.name, item.step)))
    return dataclasses.replace(config, checkpoints=tuple(items))


def run_of(workdir: str, imported: epath.Path, name: str, step: int | None = None) -> str:
    """The folder of a run; a release is imported first, if that has not been done.

    Args:
      workdir: a run, or a release.
      imported: the folder for imports; each is named after `name` and the files of the release.
      name: of the release, for people.
      step: of the checkpoint that is wanted; None or -1 is the newest.

    Raises:
      UserError: if the directory cannot be imported, e.g. because it is quantised, or holds adapters alone, or if a
        step of a release is wanted.
    """
    release = storage.path(workdir)
    if not _is_release(release):
        return workdir
    if step not in (None, -1, 0):
        raise UserError(f"{workdir} is a release, whose only step is 0, not {step}; leave the step out")
    files = json.dumps([str(release), storage.sizes(release)], sort_keys=True)
    run = imported / f"{name}-{hashlib.sha256(files.encode()).hexdigest()[:16]}"

    def once() -> None:
        if not storage.exists(run / layout.LINEAGE):
            with folder_lock.removed_if_empty(imported):
                _import(release, run)

    distributed.from_primary(once)
    return str(run)


def _import(release: epath.Path, run: epath.Path) -> None:
    """Imports a release, unless another command has done so while this one waited for it."""
    from qwenvl_jax.conversion.from_torch import import_release  # its packages are not needed otherwise

    busy = f"another command imports {release} to {run}; waiting for it"
    with folder_lock.locked(run, busy, tell=log.line) as alone, folder_lock.removed_if_empty(run):
        if storage.exists(run / layout.LINEAGE):
            return
        if alone:  # whatever is there is left by an import that was killed
            for name in storage.names(run):
                storage.remove(run / name)
        log.line(f"importing {release} to {run}")
        import_release(release, run)


def _is_release(folder: epath.Path) -> bool:
    """Whether a folder is a model of others and not a run, not even one that has only begun."""
    if storage.exists(folder / layout.LINEAGE):
        return False
    if not storage.exists(folder / layout.CONFIG):
        return storage.exists(folder / _ADAPTERS)
    content = artifacts.read_json(folder / layout.CONFIG)
    return not (isinstance(content, dict) and "train" in content)
