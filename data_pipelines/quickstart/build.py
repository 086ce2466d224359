"""Builds a data set: a Beam pipeline over shards, then vocabulary, manifests, report, and one rename.

This is separate from the main module so that Beam's workers can import these functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines import beam
from data_pipelines.quickstart import report
from data_pipelines.quickstart.ingredients import Ingredients, load_ingredients
from data_pipelines.quickstart.scenes import SPLITS
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.shards import FOLDERS, NAME, shard_count, write_shards
from qwenvl_jax.data import formats
from qwenvl_jax.data.readers.record_folder import RecordReader, read_manifest
from qwenvl_jax.data.record_writer import Shard, write_manifest
from qwenvl_jax.data.schema import samples_of
from qwenvl_jax.data.vocabulary_training import train_sentencepiece
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

VOCABULARY = "vocabulary/quickstart.model"
_OUTPUT_NAMES = {*FOLDERS, "vocabulary", "manifest.json", "report.html", "contact_sheet.png"}
# The files in those folders. A folder "text" or "ocr" may also contain data that is not from here.
_OUTPUT_FILES = re.compile(
    rf"({'|'.join(FOLDERS)})/({NAME}-\w+\.array_record-\d+-of-\d+|dataset_info\.json|features\.json|manifest\.json)"
    r"|vocabulary/quickstart\.(model|vocab)"
)
_BYTES_PER_SCENE = 60_000  # of all tasks together; used to check the free space
_VOCABULARY_RECORDS = 3_000  # per task; more do not change the pieces
_log = logging.getLogger(__name__)


def build(settings: QuickstartSettings, output: epath.PathLike, cache: Path, workers: int = 1) -> dict[str, Any]:
    """Builds the data set, unless a finished one with these settings exists.

    Args:
      settings: everything the result depends on.
      output: folder of the data set, on a disk or gs://.
      cache: folder for downloads.
      workers: processes; the result does not depend on it.

    Returns:
      The manifest; `manifest["rendered"]` says whether drawings replace photographs.

    Raises:
      UserError: if `output` cannot be written or contains files we did not write, or a source is unavailable.
    """
    settings.check()
    output = artifacts.output_folder(output)
    finished = _finished(settings, output)
    if finished is not None:
        _log.info("%s is up to date (settings %s)", output, finished["settings_hash"])
        _warn_if_rendered(finished)
        return finished
    started = time.monotonic()
    with _replacing(output, settings) as building:
        ingredients = load_ingredients(settings, cache.absolute())
        _log.info("sources ready after %.1f s", time.monotonic() - started)
        shards = _run_pipeline(settings, cache.absolute(), building, workers)
        manifest = _finish(settings, ingredients, building, shards)
        _log.info("records ready after %.1f s", time.monotonic() - started)
    _log.info("%s is ready after %.1f s", output, time.monotonic() - started)
    _warn_if_rendered(manifest)
    return manifest


def _run_pipeline(
    settings: QuickstartSettings, cache: Path, building: epath.Path, workers: int
) -> dict[str, list[Shard]]:
    """Writes all shards. One Beam element is a whole shard, so that the overhead per element does not count."""
    work = [(split, shard) for split in SPLITS for shard in range(shard_count(settings, split))]
    write = functools.partial(_write_one, settings=settings, cache=str(cache), building=str(building))
    try:
        beam.run_steps([beam.Step("shards", work.copy, write)], beam.options([], workers))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"writing the records failed ({reason}); free space or choose another --output") from None
    shards: dict[str, list[Shard]] = {task: [] for task in FOLDERS}
    for split, shard in work:
        for task, values in artifacts.read_json(_note_path(building, split, shard)).items():
            shards[task].append(Shard(**values))
    storage.remove(building / "notes")
    return shards


def _write_one(work: tuple[str, int], settings: QuickstartSettings, cache: str, building: str) -> None:
    """Writes one shard of every task, and a note with their entries of the manifest."""
    split, shard = work
    written = write_shards(epath.Path(building), settings, _ingredients_once(settings, cache), split, shard)
    note = {task: dataclasses.asdict(line) for task, line in written.items()}
    artifacts.write_json(_note_path(epath.Path(building), split, shard), note)


@functools.lru_cache(maxsize=1)
def _ingredients_once(settings: QuickstartSettings, cache: str) -> Ingredients:
    return load_ingredients(settings, Path(cache))


def _note_path(building: epath.Path, split: str, shard: int) -> epath.Path:
    return building / "notes" / f"{split}-{shard:05d}.json"


def _finish(
    settings: QuickstartSettings,
    ingredients: Ingredients,
    building: epath.Path,
    shards: dict[str, list[Shard]],
) -> dict[str, Any]:
    """Writes vocabulary, manifests and report into a folder whose shards are written; the top manifest comes last."""
    rendered = ingredients.stamps[0].source == "rendered"
    digest = settings.digest(ingredients.digests)
    extra = {"settings": digest, "rendered": rendered}
    for task in FOLDERS:
        write_manifest(building / task, NAME, shards[task], description=f"quickstart: {task}", extra=extra)
    train_sentencepiece(_texts(building), settings.vocab_size, building / VOCABULARY)
    manifest = {
        "name": NAME,
        "settings": settings.as_json(),
        "settings_hash": digest,
        "rendered": rendered,
        "fallback_reason": ingredients.fallback,
        "sources": ingredients.notes,
        "digests": ingredients.digests,
        "licenses": {"scenes": ingredients.scene_license, "ocr": ingredients.ocr_license},
        "tasks": {task: read_manifest(building / task)["splits"] for task in FOLDERS},
    }
    report.write_report(building, manifest)
    artifacts.write_json(building / "manifest.json", manifest)
    return artifacts.read_json(building / "manifest.json")


def _texts(building: epath.Path) -> Iterable[str]:
    """The texts that the vocabulary is trained on: as training will see them, without markup."""
    for task in FOLDERS:
        reader = RecordReader(building / task, "train")
        for index in range(min(len(reader), _VOCABULARY_RECORDS)):
            for sample in samples_of(reader[index]):
                yield from (str(piece.value) for piece in formats.training_pieces(sample) if piece.kind == "text")


def _finished(settings: QuickstartSettings, output: epath.Path) -> dict[str, Any] | None:
    """The manifest of a complete data set with these settings, or None if there is none."""
    try:
        manifest = artifacts.read_json(output / "manifest.json")
        unchanged = manifest["settings_hash"] == settings.digest(manifest["digests"])
        if not unchanged or not storage.exists(output / VOCABULARY):
            return None
        for task in FOLDERS:
            for split in SPLITS:
                RecordReader(output / task, split)
    except (UserError, KeyError, TypeError, ValueError, OSError):
        return None
    return manifest


@contextlib.contextmanager
def _replacing(output: epath.Path, settings: QuickstartSettings) -> Iterator[epath.Path]:
    """A fresh folder to build in, which takes the place of `output`; see `artifacts.built_beside`.

    Raises:
      UserError: if `output` holds files of others, or cannot be written, or its disk has too little space.
    """
    with contextlib.ExitStack() as stack:
        try:
            if storage.exists(output) and not _is_replaceable(output):
                raise UserError(f"{output} contains files that this pipeline did not write; choose another --output")
            built = _built_in_bucket if storage.is_remote(output) else artifacts.built_beside
            building = stack.enter_context(built(output))
        except OSError as error:
            raise UserError(f"{output} cannot be written ({error.strerror}); choose another --output") from None
        if not storage.is_remote(output):
            _check_space(building, output, settings)
        yield building


@contextlib.contextmanager
def _built_in_bucket(output: epath.Path) -> Iterator[epath.Path]:
    """The folder has one name for all runs: a bucket cannot tell whether the run that left it is alive.

    So two runs must not share an output, and the next one removes what a killed one left.
    """
    building = output.parent / f".{output.name}.building"
    storage.remove(building)
    try:
        yield building
        artifacts.replace_folder(building, output)
    finally:
        storage.remove(building)


def _check_space(building: epath.Path, output: epath.Path, settings: QuickstartSettings) -> None:
    needed = _BYTES_PER_SCENE * (settings.train + settings.heldout)
    free = shutil.disk_usage(building).free
    if free < needed:
        raise UserError(
            f"{output.parent} has {free / 1e6:.0f} MB free and about {needed / 1e6:.0f} MB are needed; "
            "free some space or lower --train"
        )


def _is_replaceable(output: epath.Path) -> bool:
    """Whether `output` is a folder that contains nothing but files of this pipeline."""
    if not storage.is_folder(output):
        return False
    names = storage.names(output)
    if not _OUTPUT_NAMES.issuperset(names):
        return False
    files = storage.files_below(output) if names else []
    return all(_OUTPUT_FILES.fullmatch(file) for file in files if "/" in file)


def _warn_if_rendered(manifest: dict[str, Any]) -> None:
    if manifest["rendered"]:
        why = f" because {manifest['fallback_reason']}" if manifest["fallback_reason"] else ", as asked"
        _log.warning("these are RENDERED scenes of coloured shapes, not photographs%s", why)
