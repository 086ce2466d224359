"""A corpus of JSON lines for tests of the engine, with rules and composers of its own; also a command.

    python -m tests.support.small_corpus --input=.. --output=..

takes the flags of `python -m data_pipelines`, without the corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

from data_pipelines.build.job import Job
from data_pipelines.clean.across import AcrossRule, Candidate
from data_pipelines.clean.rule import Dropped, Verdict, rule
from data_pipelines.compose import composers
from data_pipelines.corpora import table
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.pair import FailedRow, Picture, RawPair, Row
from data_pipelines.recipes import table as recipes
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError


def files(folder: epath.Path, split: str) -> list[epath.Path]:
    return [folder / name for name in storage.names(folder) if name.endswith(".jsonl")]


def read_file(corpus: Corpus, folder: epath.Path, split: str, file: epath.Path) -> Iterator[Row]:
    with storage.open_read(file) as stream:
        for line in stream:
            try:
                row = json.loads(line)
                pictures = (Picture(path=str(folder / row["picture"])),) if "picture" in row else ()
                yield RawPair(row["id"], corpus.name, corpus.license, "en", pictures, (row["text"],))
            except (ValueError, KeyError, TypeError) as error:
                yield FailedRow("not JSON", str(error))


def not_short(pair: RawPair, least: int) -> Verdict:
    return pair if len(pair.texts[0]) >= least else Dropped("too short")


def lower_case(pair: RawPair) -> Verdict:
    text = pair.texts[0].lower()
    return pair if text == pair.texts[0] else dataclasses.replace(pair, texts=(text,))


def opened(pair: RawPair) -> Verdict:
    pictures = tuple(Picture(picture.read()) for picture in pair.pictures)
    return dataclasses.replace(pair, pictures=pictures)


def slow(pair: RawPair, seconds: float) -> Verdict:
    time.sleep(seconds)
    return pair


@dataclasses.dataclass(frozen=True)
class SameText(AcrossRule):
    reason = "same text"

    def candidate(self, pair: RawPair) -> Candidate | None:
        return Candidate((hashlib.sha256(pair.texts[0].encode()).digest()[:16],))


@dataclasses.dataclass(frozen=True)
class LongestOfPicture(AcrossRule):
    reason = "shorter text of the same picture"

    def candidate(self, pair: RawPair) -> Candidate | None:
        if not pair.pictures:
            return None
        return Candidate((hashlib.sha256(pair.pictures[0].encoded).digest()[:8],), len(pair.texts[0]))


def caption(pair: RawPair) -> Record | None:
    if not pair.pictures:
        return None
    images = (pair.pictures[0].encoded,)
    return Record(pair.id, "caption", pair.source, "en", pair.license, images, {"caption": pair.texts[0]})


def text(pair: RawPair) -> Record | None:
    if "nothing" in pair.texts[0]:
        return None
    if "refused" in pair.texts[0]:
        raise UserError(f"{pair.id} is refused")
    return Record(pair.id, "text", pair.source, "en", pair.license, (), {"text": pair.texts[0]})


CUT = Layout(files, read_file, cut=True)
WHOLE = Layout(files, read_file)
CORPUS = Corpus("small", CUT, ("caption", "text"), "CC0-1.0", "https://example.org", {"train": "train"}, "en")
RECIPE = (rule(not_short, least=4), rule(lower_case), rule(opened))
ACROSS = (LongestOfPicture(), SameText())
COMPOSERS: dict[str, Callable[[RawPair], Record | None]] = {"caption": caption, "text": text}


def job(folder: Path | str, output: Path | str, **changes: Any) -> Job:
    """A job with the rules of this file; its shards are small."""
    start = Job(
        CORPUS, "train", str(folder), str(output), RECIPE, ACROSS, COMPOSERS, code="tests", bytes_per_shard=20_000
    )
    return dataclasses.replace(start, **changes)


def picture(number: int) -> bytes:
    """A small PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (4 + number % 5, 6), (number % 256, number // 256 % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: epath.PathLike, rows: int, *, per_file: int = 100, pictures: int = 30, seed: int = 0) -> None:
    """Writes rows of all kinds: short, equal, with and without picture, some of which are missing, and no JSON."""
    draw = random.Random(seed)
    for number in range(pictures):
        storage.write_bytes(storage.path(folder) / "pictures" / f"{number}.png", picture(number))
    for first in range(0, rows, per_file):
        lines = []
        for number in range(first, min(rows, first + per_file)):
            kind = draw.choice(
                ["plain"] * 6 + ["short", "picture", "picture", "missing", "broken", "nothing", "refused"]
            )
            words = " ".join(draw.choice(["Red", "kite", "over", "hills", "a", "boat"]) for _ in range(3))
            row: dict[str, Any] = {"id": f"row-{number}", "text": f"{words} {number % 40}"}
            if kind == "short":
                row["text"] = "x"
            elif kind in ("nothing", "refused"):
                row["text"] += f" {kind}"
            elif kind in ("picture", "missing"):
                row["picture"] = f"pictures/{draw.randrange(pictures) + (kind == 'missing') * pictures}.png"
            lines.append("{broken" if kind == "broken" else json.dumps(row))
        name = f"{first // per_file:04d}.jsonl"
        storage.write_bytes(storage.path(folder) / name, "".join(line + "\n" for line in lines).encode())


def add_missing_pictures(folder: epath.PathLike, pictures: int = 30) -> None:
    """Writes the pictures that rows of the kind "missing" name."""
    for number in range(pictures, 2 * pictures):
        storage.write_bytes(storage.path(folder) / "pictures" / f"{number}.png", picture(number))


def register() -> None:
    """Makes the corpus known to the command."""
    table.CORPORA["small"] = CORPUS
    recipes.RECIPES["small"] = RECIPE
    recipes.ACROSS["small"] = ACROSS
    composers.COMPOSERS.update(COMPOSERS)


if __name__ == "__main__":
    from data_pipelines.__main__ import main
    from tests.support import small_corpus

    small_corpus.register()
    main(["small", *sys.argv[1:]])
