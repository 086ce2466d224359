"""Opens one source of a mixture, whatever its files are. docs/data.md shows every kind."""

from __future__ import annotations

from typing import Any, Protocol

from etils import epath

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.data.readers import tfds_folder
from qwenvl_jax.data.readers.held_out_part import HeldOutPart
from qwenvl_jax.data.readers.json_files import SUFFIXES, JsonReader
from qwenvl_jax.data.readers.paths import expand_braces, other_kind
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.readers.tar_files import TarReader
from qwenvl_jax.data.readers.tfds_folder import TfdsReader
from qwenvl_jax.data.record_format import MANIFEST
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.distributed import from_primary
from qwenvl_jax.runtime.errors import UserError


class Source(Protocol):
    """Random access to records whose number and order never change, so that all hosts see the same ones.

    Several threads may read at the same time. A damaged record raises UserError whenever it is read. OSError and
    StorageError mean that the record could not be read although it may be whole.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    @property
    def samples(self) -> int:
        """How many samples all records have together (`schema.sample_count`).

        One per record if that was not counted: in old manifests, and in data sets of TFDS without a manifest of ours.
        """
        ...

    def findings(self) -> Any:
        """A JSON value with which another process opens the same source without looking for files."""
        ...

    def digest(self) -> str:
        """Hex digits of the records and their order, as far as that is cheap; paths do not count."""
        ...


def open_source(
    source: SourceConfig,
    split: str = "train",
    *,
    verify: bool = False,
    max_corrupt_share: float = 0.0,
    heldout_share: float = 0.0,
) -> Source:
    """Opens the records of a source, whose kind its path determines.

    tfds:NAME..        a TFDS data set
    *.json, *.jsonl    conversations of the released fine-tuning, or one record's fields per line
    *.tar              a WebDataset shard, a pattern that names shards (`*`, `{00..99}`), or a folder with shards and no
                       manifest
    any other          a record folder

    JSON files and WebDataset shards have no splits: all their records are training data. With a `heldout_share`, that
    of `config.data`, a JSON file has two: every split but "train" is the part that is held out. `verify` also compares
    the shards of a record folder with the checksums of its manifest, which reads everything once. `max_corrupt_share`
    is that of `config.data`; a JSON file, which is checked whole, is held to it at once.

    All processes must call it, in the same order: the first process looks for the files and checks them, and sends its
    findings to the others.

    Raises:
      UserError: if the files are missing, damaged, of another kind, or hold another task than the source says, or no
        records.
    """
    opened: list[Source] = []

    def first() -> tuple[str, Any]:
        kind = _kind(source)
        if heldout_share and kind != "json":
            raise UserError(
                f"config.data.heldout_share is {heldout_share:g}, but source {source.name!r} ({source.records}) is no "
                "JSON file; leave that out, and name a split of the records in config.evaluation.split"
            )
        opened.append(_open(kind, source, split, max_corrupt_share, verify=verify))
        return kind, opened[0].findings()

    kind, findings = from_primary(first)
    whole = opened[0] if opened else _open(kind, source, split, max_corrupt_share, findings=findings)
    if heldout_share and isinstance(whole, JsonReader):
        return HeldOutPart(whole, heldout_share, held_out=split != "train")
    return whole


def has_splits(source: SourceConfig) -> bool:
    """Whether the records of a source have splits: a record folder and a data set of TFDS.

    Raises:
      UserError: for a path that cannot be a source.
    """
    return _kind(source) in ("tfds", "records")


def _kind(source: SourceConfig) -> str:
    """tfds, json, tar or records; raises UserError for a path of another kind."""
    path = source.records
    if not path:
        raise UserError(f"source {source.name!r} has no path; name its files under records")
    if path.startswith(tfds_folder.PREFIX):
        return "tfds"
    if path.lower().endswith(SUFFIXES):
        if any(sign in path for sign in "*?[{") and not storage.exists(storage.path(path)):
            raise UserError(
                f"{path} is a pattern, but a JSON source is one file; give each an entry of its own in "
                "config.data.mixture, or join .jsonl files with cat"
            )
        return "json"
    if _is_webdataset(path):
        if source.task != "caption":
            raise UserError(
                f"source {source.name!r} is for task {source.task!r}, but {path} holds WebDataset shards, which are "
                "read as captions; correct the task or the path"
            )
        return "tar"
    _refuse_other_kinds(path)
    return "records"


def _open(
    kind: str, source: SourceConfig, split: str, max_corrupt_share: float, *, verify: bool = False, findings: Any = None
) -> Source:
    path = source.records
    if kind == "tfds":
        return TfdsReader(path, source.task, split, findings)
    if kind == "json":
        return JsonReader(path, source.task, max_corrupt_share, findings)
    if kind == "tar":
        return TarReader(path, findings)
    reader = RecordReader(path, split, verify=verify, findings=findings)
    if reader.tasks != (source.task,):
        raise UserError(
            f"source {source.name!r} is for task {source.task!r}, but {path} holds "
            f"{', '.join(reader.tasks) or 'nothing'}; correct the task or the folder"
        )
    return reader


def _is_webdataset(path: str) -> bool:
    if path.endswith(".tar"):
        return True
    first = storage.path(expand_braces(path)[0])
    return _lacks_manifest(first) and any(name.endswith(".tar") for name in storage.names(first))


def _lacks_manifest(path: epath.Path) -> bool:
    return storage.is_folder(path) and not storage.exists(path / MANIFEST)


def _refuse_other_kinds(path: str) -> None:
    """Raises UserError, with what to do, for files and folders that cannot be a source."""
    location = storage.path(path)
    if other := other_kind(path):
        raise UserError(other)
    if _lacks_manifest(location):
        for name in storage.names(location):
            if name.lower().endswith(SUFFIXES):
                raise UserError(f"{path} is no record folder (it has no {MANIFEST}); name a file in it, such as {name}")
            if other := other_kind(name):
                raise UserError(f"{path} is no record folder (it has no {MANIFEST}), and {other}")
    elif storage.exists(location) and not storage.is_folder(location):
        raise UserError(f"{path} is a file of a kind that cannot be a source; docs/data.md lists what can be read")
