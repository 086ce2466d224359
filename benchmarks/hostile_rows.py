"""A corpus made to break a pipeline, the same bytes on every machine with the same packages.

Usage: python benchmarks/hostile_rows.py FOLDER [ROWS]      (default 100,000; a minute)

The rows are in three forms that one corpus mixes: WebDataset shards and Parquet files as img2dataset writes them, and
JSON lines that name picture files. Among them: truncated and joined tars, broken Parquet files and rows, columns of odd
types, broken JSON, names that point outside the folder, lying extensions, pictures of one pixel and of 30,000, bombs,
animated, 16-bit, CMYK, transparent and EXIF-turned pictures, control and format characters, right-to-left marks, lone
surrogates, HTML, emoji, other scripts, and duplicates.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import random
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from PIL import Image

from data_pipelines.build.job import Job
from data_pipelines.clean.across import AcrossRule, Candidate
from data_pipelines.clean.image import aspect_ratio, open_pictures, smallest_side
from data_pipelines.clean.pair import score_at_least
from data_pipelines.clean.rule import rule
from data_pipelines.clean.text import REWRITING, emoji, english_or_chinese, irregular_texts, text_length
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora import img2dataset
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.pair import FailedRow, Picture, RawPair, Row
from qwenvl_jax.runtime import storage

PER_FILE = 2000  # rows
_WORDS = (
    *("a", "red", "blue", "kite", "boat", "river", "house", "green", "hills", "over", "under", "child", "dog"),
    *("plays", "with", "near", "old", "stone", "bridge"),
)


def _files(folder: epath.Path, split: str) -> list[epath.Path]:
    names = [name for name in storage.names(folder) if name.endswith((".tar", ".parquet", ".jsonl"))]
    return [folder / name for name in names if not (name.endswith(".parquet") and f"{name[:-8]}.tar" in names)]


def _read(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    if file.suffix != ".jsonl":
        yield from img2dataset.read_shard(
            ("similarity", "pwatermark", "punsafe"), {}, None, corpus, folder, split, file
        )
        return
    with storage.open_read(file) as stream:
        for line in stream:
            try:
                row = json.loads(line)
                picture = Picture(path=str(folder / row["picture"]))
                yield RawPair(row["id"], corpus.name, corpus.license, "en", (picture,), (row["text"],), scores=SCORES)
            except (ValueError, KeyError, TypeError) as error:
                yield FailedRow("not JSON", str(error))


@dataclasses.dataclass(frozen=True)
class LongestText(AcrossRule):
    """Of the pairs with the same picture, the one with the longest text stays."""

    reason = "a shorter text of the same picture"

    def candidate(self, pair: RawPair) -> Candidate | None:
        return Candidate((hashlib.sha256(pair.pictures[0].encoded).digest()[:16],), rank=len(pair.texts[0]))


@dataclasses.dataclass(frozen=True)
class SameText(AcrossRule):
    """Of the pairs with the same text, the first one stays."""

    reason = "a text that occurred before"

    def candidate(self, pair: RawPair) -> Candidate | None:
        return Candidate((hashlib.sha256(pair.texts[0].encode()).digest()[:16],))


OPENED = rule(open_pictures)
RECIPE = (
    rule(score_at_least, column="similarity", least=0.22),
    *REWRITING,
    rule(emoji),
    rule(english_or_chinese),
    rule(irregular_texts),
    rule(text_length, least_en=5),
    rule(open_pictures, decode=True),
    rule(smallest_side, least=64),
    rule(aspect_ratio, most=3.0),
)
ACROSS = (LongestText(), SameText())
SCORES = {"similarity": 0.33, "pwatermark": 0.1, "punsafe": 0.01}
CORPUS = Corpus(
    "hostile",
    Layout(_files, _read, cut=True),
    ("caption",),
    "CC0-1.0",
    "https://example.org/hostile",
    {"train": "train"},
    "en",
)


def job(folder: pathlib.Path, output: pathlib.Path, bytes_per_shard: int = 16 << 20) -> Job:
    """The build of a hostile corpus; small shards, so that there are many."""
    composers = {task: COMPOSERS[task] for task in CORPUS.tasks}
    recipe = (RECIPE, ACROSS, composers)
    return Job(CORPUS, "train", str(folder), str(output), *recipe, code="hostile", bytes_per_shard=bytes_per_shard)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG that says it has 50,000 x 50,000 pixels."""
    data = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", data), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def plain_picture(number: int) -> bytes:
    """A JPEG of 240 x 180 px that no other number has."""
    image = Image.linear_gradient("L").resize((240, 180)).convert("RGB")
    image.paste((number % 256, number // 256 % 256, number // 65536), (20, 20, 120 + number % 100, 150))
    image.paste((number * 7 % 256, 90, number * 13 % 256), (130, 10 + number % 60, 220, 170))
    return _saved(image, "JPEG", quality=80)


@functools.cache
def odd_pictures() -> list[bytes]:
    """Pictures that a rule or a decoder must say something about."""
    base = Image.linear_gradient("L").resize((320, 240))
    rgb = base.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [rgb.rotate(angle) for angle in (0, 90, 180)]
    whole = plain_picture(1)
    return [
        _saved(rgb.resize((1, 1)), "PNG"),
        _saved(Image.new("L", (30_000, 40)), "PNG"),
        _saved(Image.new("1", (40, 30_000)), "PNG"),
        _bomb(),
        _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        _saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        _saved(base.convert("I;16"), "PNG"),
        _saved(rgb.convert("CMYK"), "JPEG"),
        _saved(rgb.convert("RGBA"), "PNG"),
        _saved(rgb.convert("P"), "PNG", transparency=3),
        _saved(rgb, "JPEG", exif=exif),
        _saved(rgb, "TIFF"),
        whole[: len(whole) // 2],
        whole[:20],
        b"",
        b"<html><body>404</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        _saved(rgb, "BMP"),
        _saved(rgb, "PNG"),
        _saved(rgb.resize((16, 16)), "JPEG"),
    ]


def _odd_text(draw: random.Random, text: str) -> str:
    """A text with one thing that a reader or a rule must say something about."""
    changes: list[Callable[[str], str]] = [
        lambda text: f"{text} \U0001f600",
        lambda text: f"<b>{text}</b><script>alert(1)</script>",
        lambda text: text.replace(" ", "\u200b \u200f"),
        lambda text: f"\u202e{text}\u202c",
        lambda text: f"{text} \ud83d",
        lambda text: f"\udc00{text}",
        lambda text: f"{text}\x00\x07\x1b[31m",
        lambda text: "",
        lambda text: "ok",
        lambda text: f"{text} " * 60,
        lambda text: "Красный воздушный змей над рекой у старого моста",
        lambda text: "طائرة ورقية حمراء فوق النهر",
        lambda text: f"{text} <|endoftext|> <box>(1,2),(3,4)</box>",
        lambda text: f"{text} &amp;lt;img src=x&amp;gt; &copy;",
        lambda text: f"<PERSON> and {text}",
        lambda text: "IMG_2034.JPG",
        lambda text: "http://example.org/a.jpg?x=1&y=2",
        lambda text: "e\u0301te\u0301 " + text,
        lambda text: text.upper() + "!" * 40,
        lambda text: "<" * 3000,
    ]
    return draw.choice(changes)(text)


def rows(first: int, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows `first` to `first + count`: key, text, picture, kind. A third is odd in some way."""
    for number in range(first, first + count):
        draw = random.Random(seed * 1_000_003 + number)
        text = f"{' '.join(draw.choice(_WORDS) for _ in range(draw.randrange(4, 14)))} {number}"
        shown = number
        kind = draw.random()
        picture = None
        if kind < 0.12:
            text = _odd_text(draw, text)
        elif kind < 0.22:
            picture = draw.choice(odd_pictures())
        elif kind < 0.28:
            shown = draw.randrange(max(1, number))  # the picture of an earlier row, with another text
        elif kind < 0.31:
            text = f"a red kite over the old stone bridge {draw.randrange(50)}"
        yield {
            "key": f"{number:09d}",
            "text": text,
            "picture": plain_picture(shown) if picture is None else picture,
            "kind": "broken" if 0.31 < kind < 0.33 else "lost" if 0.33 < kind < 0.35 else "",
            "similarity": round(draw.uniform(0.2, 0.4), 4),
        }


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    scores = {"similarity": row["similarity"], "pwatermark": 0.1, "punsafe": 0.01}
    return {"caption": row["text"], "key": row["key"], "status": "success", "width": 240, "height": 180, **scores}


def _add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(payload)
    tar.addfile(member, io.BytesIO(payload))


def write_tar(path: pathlib.Path, first: int, count: int, seed: int, damage: str) -> None:
    """A WebDataset shard: whole, cut off in its middle, or two that are joined."""
    buffer = io.BytesIO()
    halves = [count] if damage != "joined" else [count // 2, count - count // 2]
    start = first
    for half in halves:
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for row in rows(start, half, seed):
                name = row["key"] if int(row["key"]) % 501 else f"../../{row['key']}"
                text = json.dumps(_facts(row)).encode()
                if row["kind"] != "lost":
                    _add(tar, f"{name}.{'png' if int(row['key']) % 7 == 0 else 'jpg'}", row["picture"])
                _add(tar, f"{name}.json", text[: len(text) // 2] if row["kind"] == "broken" else text)
                _add(tar, f"{name}.txt", row["text"].encode("utf-8", "surrogatepass"))
        start += half
    payload = buffer.getvalue()
    path.write_bytes(payload[: len(payload) // 2] if damage == "truncated" else payload)


def write_table(path: pathlib.Path, first: int, count: int, seed: int, damage: str) -> None:
    """A Parquet file with pictures; nulls, failed downloads, keys that are numbers, or the end cut off."""
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "jpg", "caption", "status", "similarity")}
    for row in rows(first, count, seed):
        columns["key"].append(int(row["key"]) if damage == "numbers" else row["key"])
        columns["jpg"].append(None if row["kind"] == "lost" else row["picture"])
        columns["caption"].append(row["text"].encode("utf-8", "surrogatepass"))
        columns["status"].append("failed_to_download" if row["kind"] == "broken" else "success")
        columns["similarity"].append(row["similarity"])
    texts = pa.array(columns["caption"], pa.binary()).view(pa.string())  # as a writer that checks nothing leaves them
    arrays = [pa.array(columns["key"]), pa.array(columns["jpg"], pa.binary()), texts, pa.array(columns["status"])]
    table = pa.table([*arrays, pa.array(columns["similarity"])], list(columns))
    pq.write_table(table, path, row_group_size=500)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "overwritten":
        payload = bytearray(path.read_bytes())
        payload[len(payload) // 2 : len(payload) // 2 + 5000] = b"\x5a" * 5000
        path.write_bytes(bytes(payload))


def write_lines(folder: pathlib.Path, name: str, first: int, count: int, seed: int) -> None:
    """JSON lines whose pictures are files; some are missing, some names lead elsewhere."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    lines = []
    for row in rows(first, count, seed):
        file = f"{row['key']}.jpg"
        if row["kind"] == "lost":
            file = ["../../../../etc/passwd", "nul\0.jpg", "no such file.jpg", "/dev/zero", "..", "a" * 300][
                int(row["key"]) % 6
            ]
        else:
            (pictures / file).write_bytes(row["picture"])
        line = json.dumps(
            {"id": row["key"], "text": row["text"], "picture": file if file[:1] == "/" else f"pictures/{file}"}
        )
        lines.append(line[: len(line) // 2] if row["kind"] == "broken" else line)
    (folder / name).write_text("".join(line + "\n" for line in lines))


def write(folder: pathlib.Path, count: int, seed: int = 0) -> None:
    """Writes the corpus: six tenths of the rows in tars, two tenths in tables, two in lines."""
    folder.mkdir(parents=True)
    number = 0
    start = 0
    while start < count:
        rows_here = min(PER_FILE, count - start)
        kind = ("tar", "tar", "tar", "parquet", "lines")[number % 5]
        turn = number // 5
        name = f"{number:05d}"
        if kind == "tar":
            damage = {3: "truncated", 5: "joined"}.get(number % 20, "")
            write_tar(folder / f"{name}.tar", start, rows_here, seed, damage)
        elif kind == "parquet":
            damage = ("", "numbers", "truncated", "overwritten")[turn % 4]
            write_table(folder / f"{name}.parquet", start, rows_here, seed, damage)
        else:
            write_lines(folder, f"{name}.jsonl", start, rows_here, seed)
        start += rows_here
        number += 1


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
