"""Records of a TFDS data set, read without TensorFlow and without the code that made it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from qwenvl_jax.data.readers.record_folder import read_manifest, split_digest, split_samples
from qwenvl_jax.data.readers.shard_table import Names, ShardTable, and_more
from qwenvl_jax.data.readers.shards import Shards
from qwenvl_jax.data.record_format import FEATURES, MANIFEST, decode_record, tfds_features
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError, nearest, one_line

PREFIX = "tfds:"
_FORM = re.compile(r"tfds:(?P<name>\w+)(/(?P<config>[\w.\-]+))?(:(?P<version>\d+\.\d+\.\d+))?(@(?P<folder>.+))?")


class TfdsReader:
    """Random access to one split: `len(reader)`, `reader[i]`.

    The data set must lie in the folder already (nothing is downloaded), as ArrayRecord, and have the features of a
    record folder: texts `id, task, source, language, license, content` (JSON) and a sequence `images`.

    Args:
      name: `tfds:NAME[/CONFIG][:VERSION][@FOLDER]`; without a folder TFDS looks in its own (`TFDS_DATA_DIR`,
        `~/tensorflow_datasets`).
      task: of all records; one of another task is refused when it is read.
      findings: by the reader of another process (`TfdsReader.findings`), instead of looking for the data set.

    Attributes:
      samples: of all records; as many as records if there is no manifest of ours in the folder.

    Raises:
      UserError: for a name of another form, a data set that is not there, or of another format or other features.
    """

    def __init__(self, name: str, task: str, split: str = "train", findings: Mapping[str, Any] | None = None):
        self._name = name
        self._task = task
        match = _FORM.fullmatch(name)
        if match is None:
            raise UserError(f"{name!r} is not of the form tfds:NAME[/CONFIG][:VERSION][@FOLDER]; correct it")
        try:
            if findings and "files" in findings:
                self._table = ShardTable.unpacked(findings)
            else:
                self._table = self._listed(match, split, findings["folder"] if findings else None)
        except (UserError, StorageError, MemoryError):
            raise
        except Exception as error:  # TFDS parses its files with several libraries, which raise what they like
            if (unread := _unread(error)) is not None:
                raise unread from error
            why = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"what TFDS keeps of {name} cannot be understood ({why}); prepare it again") from None
        self.samples = self._table.samples
        self._shards = Shards(self._table.folder, self._table.files, self._table.records_S)
        if not len(self):
            raise UserError(f"{name} holds no records in {split!r}; prepare it again, or leave the source out")
        if findings is None:
            self._look()

    def _listed(self, match: re.Match[str], split: str, folder: str | None) -> ShardTable:
        """The shards of a split, as TFDS has them.

        Args:
          match: the parts of the name.
          split: of the data set.
          folder: of config and version, if another process has looked for it and for the shards.
        """
        from tensorflow_datasets.core import read_only_builder, registered

        name = self._name
        given = {"config": match["config"], "version": match["version"], "data_dir": match["folder"]}
        if match["folder"]:
            given["data_dir"] = os.fspath(storage.path(match["folder"]))
        arguments: dict[str, Any] = {key: value for key, value in given.items() if value}
        try:
            if folder is None:
                builder = read_only_builder.builder_from_files(match["name"], **arguments)
            else:
                builder = read_only_builder.builder_from_directory(folder)
        except registered.DatasetNotFoundError as error:
            raise UserError(f"{name} is not there ({one_line(error)}); prepare it first, or correct the name") from None
        info = builder.info
        if info.file_format is None or info.file_format.value != "array_record":
            raise UserError(f"{name} is not stored as ArrayRecord; prepare it with file_format='array_record'")
        if info.features is None or info.features.get_serialized_info() != tfds_features().get_serialized_info():
            features = ", ".join(sorted(info.features or ()))
            raise UserError(
                f"{name} has the features {features}; it needs those of a record folder: {', '.join(FEATURES)}"
            )
        if split not in info.splits:
            raise UserError(
                f"{name} has no split {split!r}, only {', '.join(info.splits)}{nearest(split, info.splits)}"
            )
        return self._split_table(os.fspath(builder.data_dir), info.splits[split], check=folder is None)

    def _split_table(self, folder: str, split: Any, *, check: bool) -> ShardTable:
        """The shards that TFDS lists for a split; if `check` is set, they are looked for."""
        files = split.filenames
        counts = [int(count) for count in split.shard_lengths]
        if check:
            sizes = storage.sizes_of(folder, files)
            missing = [file for file in files if file not in sizes]
            if missing:
                more = and_more(len(missing) - 1)
                raise UserError(
                    f"{folder}/{missing[0]} is missing although {self._name} lists it{more}; prepare it again"
                )
        if len(files) != len(counts) or min(counts, default=0) < 0:
            raise UserError(
                f"{self._name} lists {len(files)} shards and counts {counts[:9]} of records; prepare it again"
            )
        path = storage.path(folder)
        if storage.exists(path / MANIFEST) and split.name in (splits := read_manifest(path)["splits"]):
            summary = splits[split.name]
            samples = split_samples(summary)
            digest = split_digest(summary)
        else:
            samples = sum(counts)
            digest = hashlib.sha256(json.dumps([split.shard_lengths, split.num_bytes]).encode()).hexdigest()
        return ShardTable(folder, Names.of(files), np.array(counts, np.int64), samples, digest)

    def _look(self) -> None:
        """Says at once what is wrong with all records. One that is damaged is counted when it is drawn."""
        errors = []
        for index in sorted({0, len(self) // 2, len(self) - 1}):
            try:
                self[index]
                return
            except UserError as error:
                errors.append(error)
        raise errors[0]

    def __len__(self) -> int:
        return len(self._shards)

    def findings(self) -> dict[str, Any]:
        """The shards, from which another process opens the same data set without a request to the store.

        For a data set on a disk it is the folder of config and version alone: each process reads the metadata that its
        host has there.
        """
        return self._table.packed() if storage.is_remote(self._table.folder) else {"folder": self._table.folder}

    def digest(self) -> str:
        """Of the checksums of the shards if our manifest is in their folder, else of TFDS's counts."""
        return self._table.digest

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record = decode_record(self._shards[int(index)])
        except UserError as error:
            raise UserError(f"{self._name}, record {index}: {error}") from None
        if record.task != self._task:
            raise UserError(
                f"{self._name}, record {index}: it is of task {record.task!r}, but the source is for {self._task!r}; "
                "correct the source or the record"
            )
        return record


def _unread(error: BaseException) -> StorageError | None:
    """The `StorageError` behind an error, or None.

    TFDS compares errors with TensorFlow's, and fails if TensorFlow is missing.
    """
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, StorageError):
        behind = behind.__context__
    return None if behind is None else type(behind)(str(behind))
