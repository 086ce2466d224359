"""Parts: the pieces of the input that are worked on one by one. A part is a file of the corpus, or a stride of one.

Row r of a file that is cut into n strides belongs to stride r mod n. The rows of a stride are numbered as in the file.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from etils import epath

from data_pipelines.build.job import Job, digest_of
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

BYTES_PER_STRIDE = 32 << 20
_AT_ONCE = 16

T = TypeVar("T")
R = TypeVar("R")
_PART_FILE = re.compile(r"([0-9a-f]{32})(?:\.retry-([0-9]+))?\.part")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the input.

    Attributes:
      number: position among all parts, which is the order of the corpus.
      file: relative to the input folder.
      stride, strides: number of this stride, and number of strides of the file.
      content: sha256 of the file, or the store's checksum.
      facts: size (bytes), times and checksum of the file before its content was read (`storage.entry`).
      digest: of everything that the part's survivors depend on except the files that its rows name.
    """

    number: int
    file: str
    stride: int
    strides: int
    content: str
    facts: tuple[int | str | None, ...]
    digest: str

    def has(self, row: int) -> bool:
        """Whether a row of the file, counted from 0, belongs to the part."""
        return row % self.strides == self.stride


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of the corpus: its content as a digest, its size in bytes, and `Part.facts`."""

    content: str
    size: int
    facts: tuple[int | str | None, ...]


def list_inputs(job: Job, threads: int) -> dict[str, InputFile]:
    """The files of the corpus, relative to its folder, in order.

    Raises:
      UserError: if the folder does not have the corpus' layout.
    """
    folder = job.folder
    if not storage.is_folder(folder):
        raise UserError(f"--input={folder} is not there; name the folder of {job.corpus.name}")
    files = job.corpus.layout.files(folder, job.corpus.splits[job.split])
    if not files:
        raise UserError(f"{folder} has no files of {job.corpus.name}, split {job.split!r}; see {job.corpus.home_page}")
    with concurrent.futures.ThreadPoolExecutor(max(1, threads), "digest") as pool:
        inputs = list(pool.map(_input_file, files))
    return {relative(job, file): each for file, each in zip(files, inputs, strict=True)}


def _input_file(file: epath.PathLike) -> InputFile:
    """The digest of a file; on an object store the checksum that the store states, so that nothing is read."""
    entry = storage.entry(file)
    content = f"{entry.checksum} of {entry.size} bytes" if entry.checksum else f"sha256:{artifacts.sha256_of(file)}"
    return InputFile(content, entry.size or 0, tuple(entry))


def facts_of(file: epath.PathLike) -> list[int | str | None]:
    """Size, times and checksum of a file as they are now."""
    return list(storage.entry(file))


def relative(job: Job, file: epath.PathLike) -> str:
    """The name of a file below the input folder, with slashes; files elsewhere keep their whole path."""
    name = os.fspath(file)
    folder = os.fspath(job.folder).rstrip("/") + "/"
    return name.removeprefix(folder)


def without_folder(job: Job, text: str) -> str:
    """A text in which files of the corpus are named relative to its folder: a result does not depend on where it is."""
    return text.replace(os.fspath(job.folder).rstrip("/") + "/", "")


def list_parts(job: Job, inputs: dict[str, InputFile]) -> list[Part]:
    """All parts in order. How a file is cut depends on its size alone."""
    clean = job.clean_digest()
    parts: list[Part] = []
    for file, entry in inputs.items():
        strides = 1
        if job.corpus.layout.may_cut(job.folder / file):
            strides = min(job.corpus.layout.most_strides, max(1, -(-entry.size // BYTES_PER_STRIDE)))
        for stride in range(strides):
            digest = digest_of([clean, file, stride, strides, entry.content])
            parts.append(Part(len(parts), file, stride, strides, entry.content, entry.facts, digest))
    return parts


def save_parts(job: Job, parts: Iterable[Part]) -> None:
    """Writes the list of parts into the work folder, where every worker reads it."""
    artifacts.write_json(_list_file(job), [dataclasses.astuple(part) for part in parts])


@functools.lru_cache(maxsize=1)
def load_parts(job: Job) -> list[Part]:
    """The list that `save_parts` wrote in this run."""
    return [Part(*values) for values in artifacts.read_json(_list_file(job))]


def each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results of small requests to storage, several at once, in their order."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, "requests") as pool:
        return list(pool.map(work, items))


def _list_file(job: Job) -> epath.Path:
    return job.work / "parts.json"


def part_file(job: Job, part: Part, attempt: int) -> epath.Path:
    """The file of the part's survivors; from the second attempt on, the number of the attempt is in its name."""
    suffix = f".retry-{attempt}" if attempt else ""
    return job.work / "clean" / f"{part.digest}{suffix}.part"


def newest_attempt(job: Job, part: Part) -> int | None:
    """The newest attempt of a part in the work folder, not newer than the job's; None if there is none."""
    for attempt in range(job.attempt, -1, -1):
        if storage.exists(part_file(job, part, attempt)):
            return attempt
    return None


def attempts(job: Job) -> dict[str, int]:
    """The newest attempt of each part that is in the work folder, by the part's digest; none newer than the job's."""
    newest: dict[str, int] = {}
    for digest, attempt, _ in _part_files(job):
        newest[digest] = max(attempt, newest.get(digest, 0))
    return newest


def superseded(job: Job) -> list[epath.Path]:
    """The files of parts of which there is a newer attempt."""
    newest = attempts(job)
    return [file for digest, attempt, file in _part_files(job) if attempt < newest[digest]]


def _part_files(job: Job) -> Iterator[tuple[str, int, epath.Path]]:
    """(digest, attempt, file) of all parts in the work folder, up to the job's attempt."""
    folder = job.work / "clean"
    if not storage.is_folder(folder):
        return
    for name in storage.names(folder):
        match = _PART_FILE.fullmatch(name)
        if match is not None and int(match[2] or 0) <= job.attempt:
            yield match[1], int(match[2] or 0), folder / name
