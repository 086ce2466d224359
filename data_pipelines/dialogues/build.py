"""A run: index, plan, replies of the language model, shards; started again, it continues where it was ended."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines import beam
from data_pipelines.dialogues.asking import Asking
from data_pipelines.dialogues.index import index_stretch, load_index, stretches
from data_pipelines.dialogues.job import NAME, DialogueJob, write_state
from data_pipelines.dialogues.plan import SELF_INSTRUCTION, planned, planned_shards, save_plan
from data_pipelines.dialogues.shards import FAILED, finish, write_dialogues
from qwenvl_jax.data.record_format import MANIFEST
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from qwenvl_jax.runtime.folder_lock import locked

_LOG_S = 30.0
_log = logging.getLogger(__name__)


def build(job: DialogueJob, options: PipelineOptions) -> dict[str, Any]:
    """Builds the dialogue set, unless a finished one of the same inputs, settings and code is there.

    Args:
      job: the settings.
      options: of Beam (`beam.options`).

    Returns:
      The manifest of the output.

    Raises:
      UserError: if the inputs do not have what the settings need, the budget ends, or the output is not ours.
      StorageError: if the endpoint or a storage does not answer.
    """
    _check_output(job)
    with locked(job.work, f"another run works on {job.output}; wait for its end, end it, or choose another --output"):
        finished = _finished(job)
        if finished is not None:
            _log.info("%s is up to date", job.output)
            storage.remove(job.work)
            return finished
        started = time.monotonic()
        digest = write_state(job)
        indexing = beam.Step("index", functools.partial(stretches, job), functools.partial(index_stretch, job))
        beam.run_steps([indexing], options)
        index = load_index(job)
        entries = planned(job, index)
        save_plan(job, entries)
        pictures = sum(map(len, index.pictures.values()))
        _log.info("%d pictures and %d texts give %d dialogues", pictures, len(index.texts), len(entries))
        if any(entry.way == SELF_INSTRUCTION for entry in entries):
            Asking(job).run()
        writing = beam.Step("write", functools.partial(planned_shards, job), functools.partial(write_dialogues, job))
        with _shown(job):
            beam.run_steps([writing], options)
        manifest = finish(job, index.skipped)
        if manifest["extra"]["digest"] != digest:
            raise UserError("an input was written again while this run read it; run the same command again")
        artifacts.replace_folder(job.building, storage.path(job.output))
        storage.remove(job.work)
        _log.info("%s\n%s is ready after %.1f s", table(manifest), job.output, time.monotonic() - started)
    return manifest


def table(manifest: dict[str, Any]) -> str:
    """The counts of a finished set by way, kind, language, corpus and reason, a line each."""
    split = manifest["splits"]["train"]
    extra = manifest["extra"]
    groups = {
        "ways": extra["dialogues"]["ways"],
        "kinds": extra["dialogues"]["kinds"],
        "languages": split["languages"],
        "corpora": extra["dialogues"]["corpora"],
        "pictures per dialogue": extra["dialogues"]["pictures"],
        "failed": extra["failed"],
        "skipped records": extra["skipped"],
    }
    lines = [f"{split['records']:,} dialogues with {split['images']:,} pictures"]
    for name, counts in groups.items():
        if counts:
            lines.append(f"{name}: " + ", ".join(f"{key} {count:,}" for key, count in counts.items()))
    return "\n".join(lines)


def _check_output(job: DialogueJob) -> None:
    output = storage.path(job.output)
    taken = {str(storage.absolute(folder)) for folder in job.folders}
    if str(storage.absolute(output)) in taken:
        raise UserError(f"--output={output} is an input; name another folder")
    if not storage.exists(output) or (storage.is_folder(output) and not storage.names(output)):
        return
    name = None
    if storage.exists(output / MANIFEST):
        with contextlib.suppress(UserError, AttributeError):
            name = artifacts.read_json(output / MANIFEST).get("name")
    if name != NAME:
        raise UserError(f"{output} has files that are not a dialogue set; choose another --output")


def _finished(job: DialogueJob) -> dict[str, Any] | None:
    """The manifest of a finished output of the same inputs, settings and code; None if there is none."""
    output = storage.path(job.output)
    try:
        manifest: dict[str, Any] = artifacts.read_json(output / MANIFEST)
        shards = manifest["splits"]["train"]["shards"]
        if manifest["extra"]["digest"] != job.digest() or not storage.exists(output / FAILED):
            return None
        sizes = storage.sizes_of(output, [shard["file"] for shard in shards])
    except (UserError, KeyError, TypeError, FileNotFoundError):
        return None
    return manifest if sizes == {shard["file"]: shard["bytes"] for shard in shards} else None


@contextlib.contextmanager
def _shown(job: DialogueJob) -> Iterator[None]:
    """Says every half minute how many shards are written while the block runs."""
    ended = threading.Event()
    count = len(list(planned_shards(job)))

    def show() -> None:
        while not ended.wait(_LOG_S):
            with contextlib.suppress(OSError, StorageError):  # the run itself reports what is wrong
                notes = job.work / "notes"
                written = len(storage.names(notes)) if storage.is_folder(notes) else 0
                _log.info("%d of %d shards are written", written, count)

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
