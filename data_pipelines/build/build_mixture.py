"""Builds every corpus of a mixture, and from their records the sources that a stage reads.

<input>/<corpus>/                    raw, as corpora.md describes it; a corpus without a folder is left out
<output>/<corpus>/                   the output of `build`
<output>/<folder>/<source>/          a record folder with the shards of all corpora of the source; on a disk they are
                                     links, so they take no room
<output>/<folder>/mixture.json       counts per corpus, and the entries of config.data.mixture; written last

A run that was ended continues when it is started again: finished corpora are up to date, the others continue.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.build.mixtures import Mixture, Source
from qwenvl_jax.data.record_format import TALLIES, shard_name
from qwenvl_jax.data.record_writer import Shard, write_manifest
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.folder_lock import locked, removed_if_empty

SUMMARY = "mixture.json"
_SPLIT = "train"
_MILLION = 1e6
_log = logging.getLogger(__name__)

# (corpus, its folder, its output) -> builds it and returns its manifest.
BuildCorpus = Callable[[str, str, str], Mapping[str, Any]]


def build_mixture(name: str, mixture: Mixture, folder: str, output: str, build_corpus: BuildCorpus) -> dict[str, Any]:
    """Builds the corpora whose folders exist, then the sources.

    Args:
      name: of the mixture.
      mixture: its entry in `MIXTURES`.
      folder: the input, which has one folder per corpus.
      output: the folder to write; see the module.
      build_corpus: see `BuildCorpus`.

    Returns:
      The content of `mixture.json`.

    Raises:
      UserError: if no corpus of the mixture has a folder, or a corpus cannot be built.
    """
    there = [corpus for corpus in mixture.corpora if storage.is_folder(storage.path(folder) / corpus)]
    missing = [corpus for corpus in mixture.corpora if corpus not in there]
    if not there:
        raise UserError(f"{folder} has no folder of a corpus of {name}; it needs some of {', '.join(missing)}")
    if missing:
        _log.info("left out, because %s has no folder of this name: %s", folder, ", ".join(missing))
    joined = storage.path(output) / mixture.folder
    refusal = f"another run works on {joined}; wait for its end, end it, or choose another --output"
    with locked(joined, refusal), removed_if_empty(joined):
        summary = _built(name, mixture, folder, output, build_corpus)
        artifacts.write_json(joined / SUMMARY, {**summary, "missing": missing})
    _log.info("%s", "\n".join(table(summary, mixture.sources)))
    return {**summary, "missing": missing}


def _built(name: str, mixture: Mixture, folder: str, output: str, build_corpus: BuildCorpus) -> dict[str, Any]:
    there = [corpus for corpus in mixture.corpora if storage.is_folder(storage.path(folder) / corpus)]
    manifests = {}
    for corpus in there:
        manifests[corpus] = build_corpus(
            corpus, os.fspath(storage.path(folder) / corpus), os.fspath(storage.path(output) / corpus)
        )
    _remove_leftovers(storage.path(output) / mixture.folder)
    joined = {source.name: _join(source, mixture, output, manifests) for source in mixture.sources}
    return {
        "mixture": name,
        "corpora": {corpus: _counts(manifest) for corpus, manifest in manifests.items()},
        "entries": [
            {
                "name": source.name,
                "task": source.task,
                "records": os.fspath(storage.path(output) / mixture.folder / source.name),
                "weight": joined[source.name] / _MILLION,
            }
            for source in mixture.sources
            if joined[source.name]
        ],
    }


def _remove_leftovers(folder: epath.Path) -> None:
    """Removes folders that a killed run was making."""
    for name in storage.names(folder) if storage.is_folder(folder) else ():
        if re.fullmatch(r"\.[a-z0-9_]+\.[0-9a-f]{8}\.(tmp|old)", name):
            storage.remove(folder / name)


def _counts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The original and cleaned pairs of a corpus, and its samples by task."""
    samples = {task: split["samples"] for task, split in manifest["tasks"].items()}
    return {"original": manifest["rows"], "cleaned": manifest["kept"], "samples": samples}


def _join(source: Source, mixture: Mixture, output: str, manifests: Mapping[str, Mapping[str, Any]]) -> int:
    """Makes the record folder of a source, and returns its number of samples; without records there is no folder."""
    target = storage.path(output) / mixture.folder / source.name
    members = [
        (corpus, manifests[corpus]["tasks"][source.task])
        for corpus in source.corpora
        if source.task in manifests.get(corpus, {"tasks": ()})["tasks"]
    ]
    if not members:
        storage.remove(target)
        return 0
    count = sum(len(split["shards"]) for _, split in members)
    shards: list[Shard] = []
    with _in_place(target) if storage.is_remote(target) else artifacts.built_beside(target) as building:
        for corpus, split in members:
            tallies = _tallies(split)
            for number, shard in enumerate(split["shards"]):
                file = shard_name(source.name, _SPLIT, len(shards), count)
                storage.copy(storage.path(output) / corpus / source.task / shard["file"], building / file)
                counts = tallies if number == 0 else {key: {} for key in TALLIES}
                facts: dict[str, Any] = {**shard, **counts, "split": _SPLIT, "file": file}
                shards.append(Shard(**facts))
        description = f"{source.task} of {', '.join(corpus for corpus, _ in members)}"
        write_manifest(building, source.name, shards, description=description)
    return sum(split["samples"] for _, split in members)


@contextlib.contextmanager
def _in_place(target: epath.Path) -> Iterator[epath.Path]:
    """A folder of an object store, emptied; a new one beside it would have to be copied. It goes if the block fails."""
    storage.remove(target)
    with artifacts.undone_on_failure(target):
        yield target


def _tallies(split: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The counts of a split by source, task, language and licence; manifests state them for all its shards at once."""
    return {key: dict(split[key]) for key in TALLIES}


def table(summary: Mapping[str, Any], sources: Sequence[Source]) -> Iterator[str]:
    """Lines in the shape of the paper's Table 2, then of its Table 3."""
    corpora = summary["corpora"]
    yield f"{'corpus':<24}{'original':>14}{'cleaned':>14}{'remaining %':>13}"
    for corpus, counts in corpora.items():
        yield _row(corpus, counts["original"], counts["cleaned"])
    yield _row("total", *(sum(counts[key] for counts in corpora.values()) for key in ("original", "cleaned")))
    yield ""
    yield f"{'task':<24}{'samples':>14}  corpora"
    samples: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for source in sources:
        for corpus in source.corpora:
            count = corpora.get(corpus, {"samples": {}})["samples"].get(source.task, 0)
            if count:
                samples[source.task][corpus] = count
    for task, counts in samples.items():
        yield f"{task:<24}{sum(counts.values()):>14,}  {', '.join(_named(counts.items()))}"


def _row(name: str, original: int, cleaned: int) -> str:
    share = f"{100 * cleaned / original:.1f}" if original else ""
    return f"{name:<24}{original:>14,}{cleaned:>14,}{share:>13}"


def _named(counts: Iterable[tuple[str, int]]) -> Iterator[str]:
    for corpus, count in counts:
        yield f"{corpus} {count:,}"
