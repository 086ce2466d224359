"""The interface of a public corpus: its layout (a module that reads its files) and the facts of its table entry."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

from etils import epath

from data_pipelines.pair import Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError, nearest

# (folder, split) -> the files that list the split's rows, in order: one shard, one table, one JSON. Raises UserError
# if the folder does not have the layout; the message names the missing file and its source.
Files = Callable[[epath.Path, str], list[epath.Path]]

# (corpus, folder, split, file) -> the rows of one of these files in their order, which depends on nothing else. Rows
# are numbered by it. A row that cannot be read is a `FailedRow`, and so is the rest of a file that ends too early.
# A row whose picture was not downloaded, as the corpus itself says, is an `AbsentRow`. A picture in a file of its own
# is named by its path and not opened.
ReadFile = Callable[["Corpus", epath.Path, str, epath.Path], Iterator[Row]]


# The most strides of a file of annotations: every stride parses and indexes the whole file.
ANNOTATIONS = 4


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one public layout is read.

    Attributes:
      files, read_file: see `Files` and `ReadFile`.
      cut: whether one file may be shared out among workers, because its rows are cheap to pass over: tables and JSON
        files whose pictures are files of their own. Tars are never cut; see `may_cut`.
      most_strides: into how many strides a file is cut at most. Every stride passes over all rows of its file, which
        takes less than a thousandth of the time of working on them, or a tenth if it has to parse them (`ANNOTATIONS`).
      uses_cache: whether `read_file` has a keyword `cache`, a folder on a disk of fonts and Debian packages, because it
        draws its pictures.
    """

    files: Files
    read_file: ReadFile
    cut: bool = False
    most_strides: int = 64
    uses_cache: bool = False

    def with_cache(self, cache: str) -> Layout:
        """The layout that takes fonts and Debian packages from a folder on a disk."""
        if not self.uses_cache:
            return self
        read_file: Callable[..., Iterator[Row]] = self.read_file
        return dataclasses.replace(self, read_file=functools.partial(read_file, cache=cache))

    def may_cut(self, file: epath.Path) -> bool:
        """Whether this file may be shared out: a corpus may be published as a table and be downloaded as tars."""
        return self.cut and file.suffix != ".tar"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A public corpus.

    Attributes:
      name: in lower case, such as "laion_en"; the source of its pairs and records.
      layout: how its folder is read.
      tasks: the record tasks that its pairs are composed into (`qwenvl_jax.data.tasks`); one record folder each.
      license: as its publisher states it.
      home_page: the URL of its publisher.
      splits: the names that `read` knows, mapped to the layout's names for them.
      language: "en" or "zh" if all its texts are in one language, else "".
    """

    name: str
    layout: Layout
    tasks: tuple[str, ...]
    license: str
    home_page: str
    splits: Mapping[str, str]
    language: str = ""

    def read(self, folder: epath.PathLike, split: str = "train") -> Iterator[Row]:
        """All rows of a split, file after file.

        Raises:
          UserError: if the corpus has no such split, or the folder is not laid out as the corpus.
        """
        if split not in self.splits:
            names = ", ".join(self.splits)
            raise UserError(f"{self.name} has no split {split!r}{nearest(split, self.splits)}; it has {names}")
        folder = storage.path(folder)
        for file in self.layout.files(folder, self.splits[split]):
            yield from self.layout.read_file(self, folder, self.splits[split], file)
