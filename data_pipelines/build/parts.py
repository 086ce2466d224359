"""Parts: the pieces of the input that are worked on one by one.

A part is a file of the corpus, a stride of a large file, or several consecutive small files. Row r of a file that is
cut into n strides belongs to stride r mod n. The rows of a stride are numbered as in the file.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from etils import epath

from data_pipelines.build.job import Job, digest_of
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError

BYTES_PER_STRIDE = 32 << 20  # and of the small files that share a part
MANY_FILES = 4096  # about the least number of parts of a corpus whose small files share parts
_ROW_BITS = 40
RUN = "run-"  # begins the name of the folder of a run
_BLOCK_PARTS = 1024
_AT_ONCE = 16
_LISTED = 16  # files of one folder from which one listing is asked for instead of each file

T = TypeVar("T")
R = TypeVar("R")
_PART_FILE = re.compile(r"([0-9a-f]{32})(?:\.retry-([0-9]+))?\.part")


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of the corpus.

    Attributes:
      name: relative to the input folder.
      content: its sha256, or the store's checksum.
      facts: size (bytes), times and checksum before its content was read (`storage.entry`).
    """

    name: str
    content: str
    facts: tuple[int | str | None, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.facts[0] or 0)


class Numbered(NamedTuple):
    """A row of a part: its file, its number in the file, from 0, and its position among the rows of the part."""

    file: str
    row: int
    position: int


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the input.

    Attributes:
      number: position among all parts, which is the order of the corpus.
      files: in the order of the corpus; one if it is cut.
      stride, strides: number of this stride, and number of strides of the file.
      digest: of everything that the part's survivors depend on except the files that its rows name.
    """

    number: int
    files: tuple[InputFile, ...]
    stride: int
    strides: int
    digest: str

    def has(self, row: int) -> bool:
        """Whether a row of a file of the part, counted from 0, belongs to the part."""
        return row % self.strides == self.stride

    def numbered(self, file: int, row: int) -> Numbered:
        """A row of the file with this index. In the first file positions are the numbers of the rows."""
        return Numbered(self.files[file].name, row, file << _ROW_BITS | row)

    @functools.cached_property
    def _indexes(self) -> dict[str, int]:
        return {file.name: index for index, file in enumerate(self.files)}

    def position(self, entry: Mapping[str, Any]) -> int:
        """The position of a row that a JSON object names by "file" and "row"."""
        return self.numbered(self._indexes[entry["file"]], entry["row"]).position


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
    known = _listed_entries(files)
    with concurrent.futures.ThreadPoolExecutor(max(1, threads), "digest") as pool:
        inputs = pool.map(lambda file: _input_file(job, file, known.get(os.fspath(file))), files)
        return {each.name: each for each in inputs}


def _listed_entries(files: Sequence[epath.Path]) -> dict[str, storage.Entry]:
    """The entries of files on an object store, from listings of folders that have many of them."""
    folders = collections.Counter(os.fspath(file.parent) for file in files if storage.is_remote(file))
    known = {}
    for folder, count in folders.items():
        if count >= _LISTED:
            known.update({f"{folder}/{name}": entry for name, entry in storage.entries(folder).items()})
    return known


def _input_file(job: Job, file: epath.Path, entry: storage.Entry | None) -> InputFile:
    """A file with its digest; on an object store the checksum that the store states, so that nothing is read."""
    entry = entry or storage.entry(file)
    content = f"{entry.checksum} of {entry.size} bytes" if entry.checksum else f"sha256:{artifacts.sha256_of(file)}"
    return InputFile(relative(job, file), content, tuple(entry))


def check_unchanged(job: Job, part: Part) -> None:
    """Raises UserError if a file of a part is not as it was before its content was read."""
    entries = each(lambda file: storage.entry(job.folder / file.name), part.files)
    for file, entry in zip(part.files, entries, strict=True):
        if tuple(entry) != tuple(file.facts):
            raise UserError(f"{job.folder / file.name} changed while it was read; run the same command again")


def relative(job: Job, file: epath.PathLike) -> str:
    """The name of a file below the input folder, with slashes; files elsewhere keep their whole path."""
    name = os.fspath(file)
    folder = os.fspath(job.folder).rstrip("/") + "/"
    return name.removeprefix(folder)


def without_folder(job: Job, text: str) -> str:
    """A text in which files of the corpus are named relative to its folder: a result does not depend on where it is."""
    return text.replace(os.fspath(job.folder).rstrip("/") + "/", "")


def list_parts(job: Job, inputs: Mapping[str, InputFile]) -> list[Part]:
    """All parts in order.

    How a file is cut depends on its size alone. If there are many files, small ones share a part. Where such a part
    ends depends on the names of its files, so a file that is added or removed changes one part, not all that follow.
    """
    clean = job.clean_digest()
    power = max(0, (len(inputs) // MANY_FILES).bit_length() - 1)
    parts: list[Part] = []
    waiting: list[InputFile] = []
    size = 0

    def add(files: list[InputFile], strides: int = 1) -> None:
        for stride in range(strides) if files else ():
            digest = digest_of([clean, [(file.name, file.content) for file in files], stride, strides])
            parts.append(Part(len(parts), tuple(files), stride, strides, digest))

    for file in inputs.values():
        strides = _strides(job, file)
        if strides > 1 or size + file.size > BYTES_PER_STRIDE:
            add(waiting)
            waiting = []
            size = 0
        if strides > 1:
            add([file], strides)
            continue
        waiting.append(file)
        size += file.size
        if _ends_part(file.name, power):
            add(waiting)
            waiting = []
            size = 0
    add(waiting)
    return parts


def _strides(job: Job, file: InputFile) -> int:
    if not job.corpus.layout.may_cut(job.folder / file.name):
        return 1
    return min(job.corpus.layout.most_strides, max(1, -(-file.size // BYTES_PER_STRIDE)))


def _ends_part(name: str, power: int) -> bool:
    """True for one of 2^power names."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (1 << power) == 0


def save_parts(job: Job, parts: Sequence[Part]) -> None:
    """Writes the list of parts, in blocks, into the folder of the run, where workers read it."""
    for number, block in enumerate(_blocks(parts)):
        artifacts.write_json(_block_file(job, number), [dataclasses.astuple(part) for part in block])


def _blocks(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Consecutive parts; all strides of a file are in one block."""
    block: list[Part] = []
    for part in parts:
        if len(block) >= _BLOCK_PARTS and part.stride == 0:
            yield block
            block = []
        block.append(part)
    if block:
        yield block


def block_numbers(job: Job) -> Sequence[int]:
    """The numbers of the blocks that `save_parts` wrote in this run."""
    return range(len(storage.names(_block_file(job, 0).parent)))


def load_block(job: Job, number: int) -> list[Part]:
    """The parts of one block."""
    return [
        Part(number, tuple(InputFile(name, content, tuple(facts)) for name, content, facts in files), *rest)
        for number, files, *rest in artifacts.read_json(_block_file(job, number))
    ]


def load_parts(job: Job) -> list[Part]:
    """All parts. Only the plan of the step `clean` needs them."""
    return [part for block in each(functools.partial(load_block, job), block_numbers(job)) for part in block]


def each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """The results of small requests to storage, several at once, in their order."""
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, "requests") as pool:
        return list(pool.map(work, items))


def run_folder(job: Job) -> epath.Path:
    """The folder for what the workers of this run tell each other."""
    return job.work / f"{RUN}{job.run}"


def _block_file(job: Job, number: int) -> epath.Path:
    return run_folder(job) / "parts" / f"{number:06d}.json"


def clean_folder(job: Job) -> epath.Path:
    """The folder of the parts' files."""
    return job.work / "clean"


def part_file(job: Job, part: Part, attempt: int) -> epath.Path:
    """The file of the part's survivors; from the second attempt on, the number of the attempt is in its name."""
    suffix = f".retry-{attempt}" if attempt else ""
    return clean_folder(job) / f"{part.digest}{suffix}.part"


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
    folder = clean_folder(job)
    if not storage.is_folder(folder):
        return
    for name in storage.names(folder):
        match = _PART_FILE.fullmatch(name)
        if match is not None and int(match[2] or 0) <= job.attempt:
            yield match[1], int(match[2] or 0), folder / name
