"""The manifest.json of a release: lists all files and tensors, so that a release can be checked for changes.

It is written last, so a release without it is not finished. The published models, and other folders that this code did
not write, have none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

from etils import epath

from qwenvl_jax.conversion import mapping, streaming, tensor_files
from qwenvl_jax.conversion.stored_tensors import INDEX_NAMES, open_checkpoint, shards_of
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

MANIFEST = "manifest.json"
TRAINING_CONFIG = "training_config.json"
PARITY = "parity.json"
UNFINISHED = "unfinished.json"  # exists on an object store while a release is being written
CARD = "README.md"
# Files that may be added to a release: hidden files, licences and documents, which no program reads.
_DOCUMENTS = re.compile(r"\..*|LICEN[CS]E.*|.*\.md")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
      scope: a key of `mapping.RELEASE_SCOPES`, stored as `component`.
      files: sha256 and size in bytes of every file except the shards and their index.
      tensors: sha256 and shape of every tensor.
    """

    scope: str
    files: dict[str, tuple[str, int]]
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def read_manifest(folder: epath.PathLike) -> Manifest | None:
    """Reads the manifest of a release; None if the folder is not a release of ours.

    Raises:
      UserError: if the folder does not exist, the release is not finished, or the file is not a manifest.
    """
    folder = storage.path(folder)
    if not storage.is_folder(folder):
        raise UserError(f"{folder} does not exist; name the folder of a release")
    names = storage.names(folder)
    if MANIFEST not in names:
        if UNFINISHED in names or TRAINING_CONFIG in names:
            raise UserError(
                f"{folder} is a release that was not finished or not completely copied ({MANIFEST}, which is written "
                "last, is missing); release or copy it again"
            )
        return None
    content = artifacts.read_json(folder / MANIFEST)
    try:
        scope = content.get("component", "all")
        if not isinstance(scope, str) or scope not in mapping.RELEASE_SCOPES:
            raise ValueError
        files = {
            _plain(name): (_text(about["sha256"]), int(about["bytes"])) for name, about in content["files"].items()
        }
        tensors = {
            name: (_text(about["sha256"]), tuple(int(side) for side in about["shape"]))
            for name, about in content["tensors"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(f"{folder / MANIFEST} is not the manifest of a release; copy the release again") from None
    return Manifest(scope, files, tensors)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _plain(name: str) -> str:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError
    return name


def release_scope(folder: epath.PathLike) -> str:
    """The scope of a release, according to its manifest; a published release contains "all"."""
    manifest = read_manifest(folder)
    return manifest.scope if manifest else "all"


def check_files(folder: epath.PathLike, manifest: Manifest) -> None:
    """Compares every file except the shards with its sha256, and refuses files that the manifest does not list.

    An edited model card, other documents and hidden files are allowed.

    Raises:
      UserError: if a file is missing, changed or not listed; the message names the first one.
    """
    folder = storage.path(folder)
    present = storage.sizes(folder)
    for name, (digest, size) in manifest.files.items():
        if name not in present:
            raise UserError(f"{folder} lacks {name}, which its manifest lists; copy the release again")
        if name == CARD:
            continue
        # The size is compared first because a device or pipe has no size and may never end.
        if (
            present[name] != size
            or hashlib.sha256(storage.read_bytes(folder / name, 0, size + 1)).hexdigest() != digest
        ):
            raise UserError(
                f"the bytes of {name} in {folder} are not those of the manifest: the file was changed or damaged; copy "
                "the release again"
            )
    known = {MANIFEST, PARITY, UNFINISHED, *manifest.files}
    for index in (name for name in INDEX_NAMES if name in present):
        known |= {index, *shards_of(folder / index)}
    for name in sorted(present.keys() - known):
        if not _DOCUMENTS.fullmatch(name):
            raise UserError(
                f"{folder} contains {name}, which its manifest does not list; remove it or copy the release again"
            )


def check_tensors_of(folder: epath.PathLike, manifest: Manifest) -> int:
    """Compares every tensor with the sha256 in the manifest; returns the number of tensors.

    Raises:
      UserError: if the bytes or the shape of a tensor differ from the manifest; the message names the first one.
    """
    folder = storage.path(folder)
    stored = open_checkpoint(folder)
    about = manifest.tensors
    for name in about:
        if name not in stored:
            raise UserError(f"{folder} lacks the tensor {name}, which its manifest lists; copy the release again")
    for name in stored:
        if name not in about:
            raise UserError(f"{folder} has the tensor {name}, which its manifest does not list; copy the release again")

    def digest(name: str) -> str:
        return hashlib.sha256(tensor_files.payload(tensor_files.read_tensor(stored[name]))).hexdigest()

    for name, actual in zip(about, streaming.in_order(digest, about), strict=True):
        if (actual, stored[name].shape) != about[name]:
            raise UserError(f"the bytes of {name} in {stored[name].file} are not those of the manifest; copy it again")
    return len(stored)


def verify_manifest(folder: epath.PathLike) -> tuple[str, int] | None:
    """Compares a release with its manifest, first the files and then the tensors.

    Returns:
      The scope and the number of tensors; None if the folder has no manifest because this code did not write it.

    Raises:
      UserError: see `read_manifest`, `check_files` and `check_tensors_of`.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    check_files(folder, manifest)
    return manifest.scope, check_tensors_of(folder, manifest)
