"""manifest.json of a release: what lies in the folder, and whether that is still what was written.

It is written last, so that a release without one is not finished. The published models and other folders that were not
written here have none.
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

MANIFEST, TRAINING_CONFIG, PARITY = "manifest.json", "training_config.json", "parity.json"
UNFINISHED = "unfinished.json"  # lies on an object store while a release is being written
CARD = "README.md"
# What may lie beside a release: it says something to people and nothing to programs.
_DOCUMENTS = re.compile(r"\..*|LICEN[CS]E.*|.*\.md")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
      component: one of `mapping.COMPONENTS`.
      files: sha256 and size in bytes of every file that is neither a shard nor the index.
      tensors: sha256 and shape of every tensor.
    """

    component: str
    files: dict[str, tuple[str, int]]
    tensors: dict[str, tuple[str, tuple[int, ...]]]


def read_manifest(folder: epath.PathLike) -> Manifest | None:
    """The manifest of a release; None if the folder was not written here.

    Raises:
      UserError: if there is no such folder, the release is not finished, or the file is not a manifest.
    """
    folder = storage.path(folder)
    if not storage.is_folder(folder):
        raise UserError(f"{folder} does not exist; name the folder of a release")
    names = storage.names(folder)
    if MANIFEST not in names:
        if UNFINISHED in names or TRAINING_CONFIG in names:
            raise UserError(
                f"{folder} is a release that was not finished or not copied whole ({MANIFEST}, which is written last, "
                "is missing); release or copy it again"
            )
        return None
    content = artifacts.read_json(folder / MANIFEST)
    try:
        component = content.get("component", "all")
        if not isinstance(component, str) or component not in mapping.COMPONENTS:
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
    return Manifest(component, files, tensors)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _plain(name: str) -> str:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        raise ValueError
    return name


def release_component(folder: epath.PathLike) -> str:
    """What a release holds: "all", "decoder" or "vision" as its manifest says; one of others holds all."""
    manifest = read_manifest(folder)
    return manifest.component if manifest else "all"


def check_files(folder: epath.PathLike, manifest: Manifest) -> None:
    """Compares every file but the shards with its sha256, and refuses what the manifest does not list.

    A card that somebody has edited, other documents, and hidden files are nobody's business.

    Raises:
      UserError: naming the first file that is missing, changed or not listed.
    """
    folder = storage.path(folder)
    present = storage.sizes(folder)
    for name, (digest, size) in manifest.files.items():
        if name not in present:
            raise UserError(f"{folder} lacks {name}, which its manifest lists; copy the release again")
        if name == CARD:
            continue
        # The size first: what is no plain file, such as a device, has none and may never end.
        if (
            present[name] != size
            or hashlib.sha256(storage.read_bytes(folder / name, 0, size + 1)).hexdigest() != digest
        ):
            raise UserError(
                f"the bytes of {name} in {folder} are not those of the manifest: it was changed or damaged; copy the "
                "release again"
            )
    ours = {MANIFEST, PARITY, UNFINISHED, *manifest.files}
    for index in (name for name in INDEX_NAMES if name in present):
        ours |= {index, *shards_of(folder / index)}
    for name in sorted(present.keys() - ours):
        if not _DOCUMENTS.fullmatch(name):
            raise UserError(
                f"{folder} holds {name}, which its manifest does not list; remove it or copy the release again"
            )


def check_tensors_of(folder: epath.PathLike, manifest: Manifest) -> int:
    """Compares every tensor with the sha256 of the manifest; returns how many there are.

    Raises:
      UserError: naming the first tensor whose bytes or shape are not the manifest's.
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

    for name, found in zip(about, streaming.in_order(digest, about), strict=True):
        if (found, stored[name].shape) != about[name]:
            raise UserError(f"the bytes of {name} in {stored[name].file} are not those of the manifest; copy it again")
    return len(stored)


def verify_manifest(folder: epath.PathLike) -> tuple[str, int] | None:
    """Compares a release with its manifest, files first; returns its component and how many tensors it has.

    None if the folder was not written here and has no manifest.

    Raises:
      UserError: see `read_manifest`, `check_files` and `check_tensors_of`.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    check_files(folder, manifest)
    return manifest.component, check_tensors_of(folder, manifest)
