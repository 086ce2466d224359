"""A job: one corpus, its rules, one output; and the digest of everything that its result depends on but the input."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

import data_pipelines
from data_pipelines.clean.across import AcrossRule
from data_pipelines.clean.rule import Rule
from data_pipelines.compose.composers import Composer
from data_pipelines.corpora.corpus import Corpus
from data_pipelines.score.clip_model import ClipModel
from qwenvl_jax import data as records_package
from qwenvl_jax import html as html_package
from qwenvl_jax.data.record_writer import BYTES_PER_SHARD
from qwenvl_jax.runtime import storage

FORMAT = 1  # of the files in a work folder
# Packages on which readers, rules and records depend; one that is not installed counts as such.
PACKAGES = (
    *("array_record", "emoji", "fonttools", "ftfy", "ImageHash", "lingua-language-detector", "numpy"),
    *("opencv-python-headless", "pillow", "playwright", "protobuf", "pyarrow", "pypdfium2", "regex", "rensa"),
    *("selectolax", "tensorflow-datasets", "tokenizers"),
)
_LEFTOVER = re.compile(r"/\.|/__pycache__/|\.pyc$|~$")
_NOT_PART = ("quickstart", "__main__.py")  # of data_pipelines: code on which no corpus depends


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A corpus, its rules and its output. Jobs are equal if they belong to the same run.

    Attributes:
      corpus: the corpus with its layout.
      split: a key of `corpus.splits`.
      input: folder of the corpus, on a disk or gs://.
      output: folder of the result, on a disk or gs://.
      recipe: rules for each pair, in order.
      across: rules across pairs, in order.
      composers: task -> its composer, for the corpus' tasks.
      code: digest of the code and of the packages' versions (`code_digest`).
      clip: the model of the score "clip" that pairs get before they are cleaned; None for no such score.
      bytes_per_shard: a shard ends with the record that brings its serialised records to this size.
      retry: whether rows that failed are read again; see `attempts`.
      attempt: how many times failed rows were read again in the finished output, this time included.
      run: a text that is different for every run; no result depends on it.
    """

    corpus: Corpus
    split: str
    input: str
    output: str
    recipe: tuple[Rule, ...]
    across: tuple[AcrossRule, ...]
    composers: Mapping[str, Composer]
    code: str
    clip: ClipModel | None = None
    bytes_per_shard: int = BYTES_PER_SHARD
    retry: bool = False
    attempt: int = 0
    run: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.run == self.run

    def __hash__(self) -> int:
        return hash(self.run)

    @property
    def folder(self) -> epath.Path:
        """The input."""
        return storage.path(self.input)

    @property
    def work(self) -> epath.Path:
        """The work folder, next to the output."""
        output = storage.path(self.output)
        return output.parent / f".{output.name}.work"

    def as_json(self) -> dict[str, Any]:
        """Everything that the result depends on except the input, for the manifest."""
        corpus = self.corpus
        return {
            "corpus": corpus.name,
            "split": self.split,
            "tasks": list(corpus.tasks),
            "license": corpus.license,
            "home_page": corpus.home_page,
            "language": corpus.language,
            "splits": dict(corpus.splits),
            "layout": _name(corpus.layout.read_file),
            "recipe": [rule.as_json() for rule in self.recipe],
            "across": [rule.as_json() for rule in self.across],
            "composers": {task: _name(self.composers[task]) for task in corpus.tasks},
            "bytes_per_shard": self.bytes_per_shard,
            "clip": self.clip.identity if self.clip else None,
            "code": self.code,
            "format": FORMAT,
        }

    def digest(self) -> str:
        """The digest of everything that the output depends on except the input."""
        return digest_of(self.as_json())

    def clean_digest(self) -> str:
        """The digest of everything that the survivors of a part depend on except the input; shards are cut later."""
        return digest_of({**self.as_json(), "bytes_per_shard": 0})


def digest_of(value: Any) -> str:
    """32 hex digits of a JSON value."""
    text = json.dumps(value, sort_keys=True, default=_in_order)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def code_digest() -> str:
    """The digest of the code on which outputs depend, of the interpreter and of the packages that the code uses.

    Outputs depend on all files of data_pipelines, qwenvl_jax.data and qwenvl_jax.html (the page of the report).
    """
    digest = hashlib.sha256()
    for package in (data_pipelines, records_package, html_package):
        folder = Path(package.__path__[0])
        for file in _files_of(folder):
            name = file.relative_to(folder)
            if name.parts[0] not in _NOT_PART:
                digest.update(f"{package.__name__}/{name}\0".encode() + file.read_bytes() + b"\0")
    return digest_of({"sources": digest.hexdigest(), **versions()})


def _files_of(package: Path) -> list[Path]:
    """All files of a package, scripts and tables for its code too, without what editors and compilers leave there."""
    files = [file for file in package.rglob("*") if file.is_file()]
    return sorted(file for file in files if not _LEFTOVER.search(f"/{file.relative_to(package).as_posix()}"))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that readers, rules and records use."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def _name(function: Any) -> str:
    """The name of a function, which may have some of its arguments, or of the class of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', '')}.{name}"


def _in_order(value: Any) -> Any:
    """For settings that are not JSON: sets are sorted; everything else must say what it is."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return repr(value)
