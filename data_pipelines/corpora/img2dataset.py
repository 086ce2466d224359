"""Web corpora as the downloader img2dataset leaves them: LAION-en, LAION-zh, LAION-COCO, DataComp, COYO-700M.

Publishers of web corpora give tables of links, captions and scores. img2dataset (MIT licence,
https://github.com/rom1504/img2dataset) downloads the pictures and writes one of three formats, all of which are read.
`00000` is a shard of about 10,000 rows, `000000012` the key of a row.

    webdataset                      files                           parquet
    FOLDER/00000.tar                FOLDER/00000/000000012.jpg      FOLDER/00000.parquet
             000000012.jpg                       000000012.txt
             000000012.txt                       000000012.json
             000000012.json         FOLDER/00000.parquet
    FOLDER/00000.parquet

The table has every row of the shard, including failed downloads, with the columns `url`, `caption`, `key`,
`status`, `error_message`, `width`, `height`, `original_width`, `original_height`, and those of the publisher that were
named with `save_additional_columns`. The `.json` of a picture has the same keys. In the format parquet the column `jpg`
holds the picture. In the format webdataset the table may be missing: then failed downloads are not counted. The shards
may also be one or two folders below FOLDER, as `shards/small/00000.tar` of DataComp.

A row whose download failed is an AbsentRow, which is counted by its reason ("HTTP error 404", "timed out"). A column
that the `.json` does not have is taken from the table, so that scores may be computed later and added to the tables
alone. DataComp's downloader saves `uid` only: its scores are in `metadata/`, from where they can be added to the tables
by `uid`.

Licences: those of links and captions are in the table of corpora. The pictures belong to their owners; LAION's column
LICENSE, if it is known, is the licence of the pair.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines.corpora import parquet
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import (
    BadRow,
    decoded,
    encodable,
    identifier_at,
    json_object,
    label_at,
    list_at,
    number_at,
    scores_at,
    side_at,
    text_at,
)
from data_pipelines.pair import AbsentRow, FailedRow, Picture, RawPair, Row
from qwenvl_jax.data.images.exact import MAX_BYTES, SUFFIXES
from qwenvl_jax.data.readers.tar_samples import MAX_TEXT_BYTES, LeftOut, Sample, samples_of_shard
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

# Columns that hold one caption, in the order in which they are tried.
_CAPTIONS = ("txt", "caption", "TEXT", "text")
# LAION-COCO: the best generated caption, all of them, and their CLIP scores.
TOP_CAPTION = "top_caption"
ALL_CAPTIONS = "all_captions"
ALL_SIMILARITIES = "all_similarities"
TOP_SIMILARITY = "top_similarity"
_SIZES = ("original_width", "original_height")  # before the downloader scaled the picture down
_PICTURES = ("jpg", "png", "webp", "image")
_FACTS = {
    "key": parquet.IDENTIFIER,
    "status": parquet.TEXT,
    "error_message": parquet.TEXT,
    "url": parquet.TEXT,
    "width": parquet.NUMBER,
    "height": parquet.NUMBER,
    "LANGUAGE": parquet.TEXT,
    "LICENSE": parquet.TEXT,
    ALL_CAPTIONS: parquet.TEXTS,
    ALL_SIMILARITIES: parquet.NUMBERS,
    TOP_CAPTION: parquet.TEXT,
    **dict.fromkeys(_SIZES, parquet.NUMBER),
    **dict.fromkeys(_CAPTIONS, parquet.TEXT),
}
_UNKNOWN_LICENSES = ("", "?")
_REASONS = {"truncated": "file damaged", "refused": "refused name"}
_DEPTH = 2
_HTTP_ERROR = re.compile(r"HTTP Error ([1-5][0-9][0-9])\b")  # as Python words it


# (pair, its row of the table) -> the pair with the annotations that only one corpus has. It may raise BadRow.
Complete = Callable[[RawPair, Mapping[str, Any]], RawPair]


def layout(*scores: str, columns: Mapping[str, str] | None = None, complete: Complete | None = None) -> Layout:
    """The layout for a corpus whose publisher gives these columns of numbers.

    Args:
      scores: the columns.
      columns: of other kinds (`parquet`), for `complete`.
      complete: adds what these columns say to a pair.
    """
    return Layout(shards, functools.partial(read_shard, (*scores, *_SIZES), columns or {}, complete))


def shards(folder: epath.Path, split: str) -> list[epath.Path]:
    """The tars of a folder or, if there are none, its Parquet files; else those of the folders below it."""
    files = find_shards(folder)
    if not files:
        raise UserError(
            f"{folder} has no .tar and no .parquet file; give the output folder of img2dataset, or correct the folder"
        )
    return files


def find_shards(folder: epath.Path) -> list[epath.Path]:
    """As `shards`, but empty if there are none."""
    files = _shards(folder, _DEPTH)
    tars = [file for file in files if file.suffix == ".tar"]
    return tars or files  # tables in a folder without tars are the publisher's, as the metadata of DataComp


def _shards(folder: epath.Path, depth: int) -> list[epath.Path]:
    """The tars of a folder, else its Parquet files, else those of the folders below, down to `depth` levels."""
    try:
        sizes = storage.sizes(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    files = {name: size for name, size in sizes.items() if not name.startswith(".")}
    for suffix in (".tar", ".parquet"):
        if names := sorted(name for name, size in files.items() if name.endswith(suffix) and size is not None):
            return [folder / name for name in names]
    folders = sorted(name for name, size in files.items() if size is None) if depth else []
    return [file for name in folders for file in _shards(folder / name, depth - 1)]


def read_shard(
    scores: Collection[str],
    columns: Mapping[str, str],
    complete: Complete | None,
    corpus: Corpus,
    folder: epath.Path,
    split: str,
    file: epath.Path,
) -> Iterator[Row]:
    """The rows of one shard; see `layout` and `corpus.ReadFile`."""
    prefix = os.fspath(file)[len(os.fspath(folder)) :].lstrip("/").rpartition(".")[0]
    shard = _Shard(corpus, prefix, scores, columns, complete)
    if file.suffix == ".tar":
        yield from _tar_rows(shard, file)
    else:
        yield from _table_rows(shard, file)


class _Shard:
    """Makes pairs of the rows of one shard.

    Args:
      corpus: of the shard.
      prefix: the path of the shard below the folder without its suffix, which makes keys unique.
      scores: the columns that are scores.
      columns: the other columns that only this corpus has.
      complete: see `layout`.
    """

    def __init__(
        self,
        corpus: Corpus,
        prefix: str,
        scores: Collection[str],
        columns: Mapping[str, str],
        complete: Complete | None,
    ):
        self._corpus = corpus
        self._prefix = prefix
        self._scores = scores
        self._keys: set[str] = set()
        self._complete = complete
        self.columns = {**_FACTS, **columns, **dict.fromkeys(scores, parquet.NUMBER)}

    def pair(self, key: str, picture: Picture, facts: Mapping[str, Any]) -> RawPair:
        """The pair of a picture and its row of the table. Raises BadRow for a repeated key or a wrong text."""
        if key in self._keys:
            raise BadRow("repeated key", key)
        self._keys.add(key)
        license_ = label_at(facts, "LICENSE")
        pair = RawPair(
            id=encodable(f"{self._prefix}/{key}"),
            source=self._corpus.name,
            license=self._corpus.license if license_ in _UNKNOWN_LICENSES else license_,
            language=label_at(facts, "LANGUAGE") or self._corpus.language,
            pictures=(picture,),
            texts=_texts(facts),
            scores=_scores(facts, self._scores),
        )
        return self._complete(pair, facts) if self._complete else pair


def _texts(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The generated captions of LAION-COCO, the best first; else the one caption."""
    generated = [text_at(facts, TOP_CAPTION, default="")]
    generated += [text for text in list_at(facts, ALL_CAPTIONS) if isinstance(text, str)]
    if any(generated):
        return tuple(dict.fromkeys(filter(None, generated)))
    columns = [column for column in _CAPTIONS if column in facts]
    if not columns:
        raise BadRow("no caption")
    stated = [text_at(facts, column) for column in columns if facts[column] is not None]
    return (stated[0] if stated else "",)  # img2dataset writes null as an empty text into tars, but not into tables


def _scores(facts: Mapping[str, Any], names: Collection[str]) -> dict[str, float]:
    scores = scores_at(facts, names)
    similarities = [number_at({"": value}, "") for value in list_at(facts, ALL_SIMILARITIES)]
    if known := [value for value in similarities if value is not None]:
        scores[TOP_SIMILARITY] = max(known)
    return scores


def _failed_download(facts: Mapping[str, Any]) -> AbsentRow | None:
    """The row of a download that failed; None if it succeeded."""
    status = facts.get("status")
    if status in (None, "success"):
        return None
    if status == "failed_to_resize":
        return AbsentRow("not a picture that img2dataset can read")
    message = facts.get("error_message")
    message = message if isinstance(message, str) else ""
    if answer := _HTTP_ERROR.search(message):
        return AbsentRow(f"HTTP error {answer[1]}")
    return AbsentRow("timed out" if "timed out" in message.lower() else "download failed")


def _tar_rows(shard: _Shard, file: epath.Path) -> Iterator[Row]:
    """The samples of a tar in its order, then the rows of its table that it does not have."""
    table, failed = _table_of(shard, file)
    try:
        for item in samples_of_shard(file, storage.size(file), pictures=True):
            if isinstance(item, LeftOut):
                yield BadRow(_REASONS[item.why], item.name).failed
                continue
            facts = table.pop(item.key.rpartition("/")[2], {})
            try:
                yield shard.pair(item.key, *_sample(item, facts))
            except BadRow as error:
                yield error.failed
            if item.image is not None:
                for name in item.lost():
                    yield BadRow("unknown member", f"{item.key}.{name}").failed
    except UserError as error:  # no tar file
        yield BadRow("file damaged", error).failed
    for key, facts in table.items():
        yield _failed_download(facts) or BadRow("missing in the tar", key).failed
    yield from failed


def _table_of(shard: _Shard, file: epath.Path) -> tuple[dict[str, Mapping[str, Any]], list[FailedRow]]:
    """The rows of the table of a tar by their keys, and those that cannot be read; empty if there is no table."""
    path = file.with_suffix(".parquet")
    if not storage.exists(path):
        return {}, []
    table: dict[str, Mapping[str, Any]] = {}
    failed = []
    for facts in parquet.table_rows(path, shard.columns, [("key",)]):
        if isinstance(facts, FailedRow):
            failed.append(facts)
            continue
        try:
            table.setdefault(identifier_at(facts, "key"), facts)
        except BadRow as error:
            failed.append(error.failed)
    return table, failed


def _sample(sample: Sample, facts: Mapping[str, Any]) -> tuple[Picture, Mapping[str, Any]]:
    """The picture of a sample, and the facts that its members and its row of the table state."""
    if sample.repeats():
        raise BadRow("repeated member", sample.key)
    if sample.image is None:
        raise BadRow("no picture", f"{sample.key}.{', '.join(sample.suffixes)}")
    if sample.unreadable:
        raise BadRow("text too long", f"{sample.key}: more than {MAX_TEXT_BYTES >> 20} MiB")
    _check_size(sample.key, sample.image[1])
    stated = dict(facts)
    if "json" in sample.texts:
        notes = json_object(sample.texts["json"][1])
        stated |= {name: value for name, value in notes.items() if value is not None or name not in stated}
    if "txt" in sample.texts:
        stated["txt"] = decoded(sample.texts["txt"][1])
    return _picture(stated, encoded=sample.picture), stated


def _check_size(key: str, size: int) -> None:
    if size > MAX_BYTES:
        raise BadRow("picture too large", f"{key}: {size:,} bytes")


def _picture(facts: Mapping[str, Any], *, encoded: bytes = b"", path: str = "") -> Picture:
    return Picture(encoded, path, side_at(facts, "width"), side_at(facts, "height"))


def _table_rows(shard: _Shard, file: epath.Path) -> Iterator[Row]:
    """The rows of a table whose pictures are in it, or in the folder of the same name."""
    folder = file.with_suffix("")
    columns = dict(shard.columns)
    required: list[tuple[str, ...]] = [("key",)]
    files: dict[str, str] | None = None
    if storage.is_folder(folder):
        files = _pictures_in(folder)
    else:
        columns |= dict.fromkeys(_PICTURES, parquet.BYTES)
        required = [_PICTURES]
    for number, facts in enumerate(parquet.table_rows(file, columns, required)):
        if isinstance(facts, FailedRow):
            yield facts
            continue
        if failed := _failed_download(facts):
            yield failed
            continue
        try:
            key = identifier_at(facts, "key") if facts.get("key") is not None else f"{number:09d}"
            if files is None:
                picture = _picture(facts, encoded=_encoded(facts, key))
            elif key in files:
                picture = _picture(facts, path=os.fspath(folder / files[key]))
            else:
                raise BadRow("picture missing", f"{folder / key}.jpg")
            yield shard.pair(key, picture, facts)
        except BadRow as error:
            yield error.failed


def _pictures_in(folder: epath.Path) -> dict[str, str]:
    """The names of the pictures of a folder by their keys."""
    names = [name for name in storage.names(folder) if name.rpartition(".")[2].lower() in SUFFIXES]
    return {name.rpartition(".")[0]: name for name in names}


def _encoded(facts: Mapping[str, Any], key: str) -> bytes:
    for column in _PICTURES:
        value = facts.get(column)
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(encoded, bytes) and encoded:
            _check_size(key, len(encoded))
            return encoded
    raise BadRow("no picture", key)
