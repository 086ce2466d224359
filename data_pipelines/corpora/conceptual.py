"""CC3M, CC12M and SBU: tables of links and captions, with the pictures in a folder or downloaded by img2dataset.

If the folder has tars or Parquet files, it is read as `img2dataset` describes; that is how most people download these
corpora. Otherwise it has the table of the publisher and a folder of pictures:

    CC3M, https://ai.google.com/research/ConceptualCaptions
        FOLDER/Train_GCC-training.tsv                        caption TAB link
        FOLDER/Validation_GCC-1.1.0-Validation.tsv
        FOLDER/training/3861294385                           named after the CRC-32 of the link; also validation/
    CC12M, https://github.com/google-research-datasets/conceptual-12m
        FOLDER/cc12m.tsv                                     link TAB caption; names are replaced by <PERSON>
        FOLDER/images/3861294385
    SBU, https://www.cs.rice.edu/~vo9/sbucaptions
        FOLDER/sbu-captions-all.json                         {"image_urls": [..], "captions": [..]}
     or FOLDER/dataset/SBU_captioned_photo_dataset_urls.txt and .._captions.txt, with one entry per line
        FOLDER/dataset/4385058960_b0f291553e_m.jpg           named after the last part of the link

The CRC-32 is a decimal number, as the downloader https://github.com/igorbrigadir/DownloadConceptualCaptions writes it.
A picture that was not downloaded is missing, which is noticed when it is opened.

Licences: CC3M and CC12M may be used for any purpose with credit to Google; SBU is for research. The pictures belong to
their owners.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from etils import epath

from data_pipelines.corpora import img2dataset
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.rows import (
    BadRow,
    decoded,
    json_lists,
    lines,
    picture_path,
    read_each,
    whole_line,
)
from data_pipelines.pair import Picture, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

_HEADER = "url\tcaption"  # a line that img2dataset asks its users to add to cc12m.tsv
_SBU_LINKS = "SBU_captioned_photo_dataset_urls.txt"
_SBU_CAPTIONS = "SBU_captioned_photo_dataset_captions.txt"

# (link, caption), or why there is none.
Entry = tuple[str, str] | BadRow


@dataclasses.dataclass(frozen=True)
class Table:
    """How the publisher's own table of one corpus is read.

    Attributes:
      files: the table of each split by the layout's name of the split, or several of which one must exist.
      entries: (file) -> its links and captions.
      pictures: the folder of pictures below the corpus' folder, in which `{split}` is the split.
      name_of: (link) -> the name of its picture in that folder.
    """

    files: Mapping[str, Sequence[str]]
    entries: Callable[[epath.Path], Iterator[Entry]]
    pictures: str
    name_of: Callable[[str], str]


def _layout(table: Table) -> Layout:
    return Layout(functools.partial(_files, table), functools.partial(_read_file, table), cut=True)


def _files(table: Table, folder: epath.Path, split: str) -> list[epath.Path]:
    if storage.is_folder(folder / table.pictures.format(split=split)):
        for name in table.files[split]:
            if storage.exists(folder / name):
                return [folder / name]
    downloads = folder / split if split and storage.is_folder(folder / split) else folder
    shards = img2dataset.find_shards(downloads)
    if not shards:
        raise UserError(
            f"{folder} has neither the files of img2dataset (.tar or .parquet) nor {' or '.join(table.files[split])} "
            f"with the folder {table.pictures.format(split=split)} of pictures; download them, or correct the folder"
        )
    return shards


_read_shard = img2dataset.layout().read_file


def _read_file(table: Table, corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    if file.suffix in (".tar", ".parquet"):
        yield from _read_shard(corpus, folder, split, file)
        return
    pictures = folder / table.pictures.format(split=split)

    def read(numbered: tuple[int, Entry]) -> RawPair:
        number, entry = numbered
        if isinstance(entry, BadRow):
            raise entry
        link, caption = entry
        return RawPair(
            id=f"{split}/{number}" if split else str(number),
            source=corpus.name,
            license=corpus.license,
            language=corpus.language,
            pictures=(Picture(path=picture_path(pictures, table.name_of(link))),),
            texts=(caption,),
        )

    yield from read_each(enumerate(table.entries(file)), read)


def _checksum(link: str) -> str:
    return str(zlib.crc32(link.encode("utf-8", "surrogatepass")))


def _last_part(link: str) -> str:
    return link.rpartition("/")[2]


def _table_entries(file: epath.Path, link_first: bool) -> Iterator[Entry]:
    """The entries of a table with the columns link and caption, in this order or the other."""
    for number, line in lines(file):
        try:
            text = decoded(whole_line(line))
        except BadRow as error:
            yield _in_line(number, error)
            continue
        columns = text.split("\t")
        if len(columns) != 2:
            yield BadRow("wrong form", f"line {number} has {len(columns)} columns instead of 2")
        elif number > 1 or text != _HEADER:
            yield (columns[0], columns[1]) if link_first else (columns[1], columns[0])


def _sbu_entries(file: epath.Path) -> Iterator[Entry]:
    """The entries of the JSON, or of the two files of lines."""
    if file.suffix == ".json":
        links, captions = json_lists(file, "image_urls", "captions")
        for number, (link, caption) in enumerate(itertools.zip_longest(links, captions)):
            both = isinstance(link, str) and isinstance(caption, str)
            yield (link, caption) if both else BadRow("wrong type", f"link or caption {number} is not a text")
        return
    link_lines = lines(file, blank=True)
    caption_lines = lines(file.parent / _SBU_CAPTIONS, blank=True)
    missing = (0, b"")
    for (number, link), (other, caption) in itertools.zip_longest(link_lines, caption_lines, fillvalue=missing):
        if number != other:
            yield BadRow("wrong form", f"line {max(number, other)} is in one of the two files only")
            continue
        try:
            yield decoded(whole_line(link)).strip(), decoded(whole_line(caption))
        except BadRow as error:
            yield _in_line(number, error)


def _in_line(number: int, error: BadRow) -> BadRow:
    return BadRow(error.failed.reason, f"line {number}: {error.failed.detail}")


CC3M = _layout(
    Table(
        files={
            "training": ("Train_GCC-training.tsv",),
            "validation": ("Validation_GCC-1.1.0-Validation.tsv",),
        },
        entries=functools.partial(_table_entries, link_first=False),
        pictures="{split}",
        name_of=_checksum,
    )
)
CC12M = _layout(
    Table(
        files={"": ("cc12m.tsv",)},
        entries=functools.partial(_table_entries, link_first=True),
        pictures="images",
        name_of=_checksum,
    )
)
SBU = _layout(
    Table(
        files={"": ("sbu-captions-all.json", f"dataset/{_SBU_LINKS}")},
        entries=_sbu_entries,
        pictures="dataset",
        name_of=_last_part,
    )
)
