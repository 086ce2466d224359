"""The files of a finished output, as the report reads them (see docs/pipelines.md, "The output")."""

from __future__ import annotations

import collections
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.duplicates.decontaminate import not_in_evaluation
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

MANIFEST = "manifest.json"
DECONTAMINATED = "report/decontaminated.jsonl"  # every pair that was dropped as close to evaluation data
_KEYS = {"corpus", "digest", "failed", "home_page", "job", "kept", "license", "rows", "rules", "split", "tasks"}
FAILED_SHOWN = 5  # rows for each reason


def manifest_of(folder: epath.PathLike) -> dict[str, Any] | None:
    """The manifest of an output; None if the folder is not one.

    Raises:
      UserError: if the manifest is not valid JSON.
    """
    path = storage.path(folder) / MANIFEST
    if not storage.exists(path):
        return None
    manifest = artifacts.read_json(path)
    return manifest if isinstance(manifest, dict) and manifest.keys() >= {*_KEYS, "histograms", "versions"} else None


def has_decontamination(job: Mapping[str, Any]) -> bool:
    """Whether pairs close to evaluation data were dropped; `job` is `Job.as_json()`, which the manifest has."""
    return any(rule["rule"] == not_in_evaluation.__name__ for rule in job["recipe"])


def outputs_in(folder: epath.PathLike) -> dict[str, dict[str, Any]]:
    """The manifests of the outputs that are directly in a folder, by the names of their folders, in order."""
    folder = storage.path(folder)
    if not storage.is_folder(folder):
        return {}
    names = sorted(name for name, size in storage.sizes(folder).items() if size is None and not name.startswith("."))
    manifests = {name: manifest_of(folder / name) for name in names}
    return {name: manifest for name, manifest in manifests.items() if manifest is not None}


def lines(path: epath.Path, keys: Collection[str]) -> Iterator[dict[str, Any]]:
    """The values of a file of JSON lines, one at a time.

    Args:
      path: of the file.
      keys: that every value has.

    Raises:
      UserError: if the file is missing, or a line is not a JSON object with these keys.
    """
    if not storage.exists(path):
        raise UserError(f"{path} is not there; build the output again")
    with storage.open_read(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict) or not value.keys() >= set(keys):
                raise UserError(f"line {number} of {path} is not as it was written; build the output again")
            yield value


def failed_examples(folder: epath.Path, reasons: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """The first rows that failed for each reason. The file is read only as far as needed.

    Args:
      folder: of the output.
      reasons: how many rows failed for each reason.
    """
    examples: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    missing = sum(min(FAILED_SHOWN, count) for count in reasons.values())
    if not missing:
        return {}
    for row in lines(folder / "failed.jsonl", ("file", "row", "id", "reason", "detail")):
        if row["reason"] in reasons and len(examples[row["reason"]]) < FAILED_SHOWN:
            examples[row["reason"]].append(row)
            missing -= 1
            if not missing:
                break
    return dict(examples)
