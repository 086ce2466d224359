"""Three benchmarks from Tux Paint's stamps, pictures each of which has a sentence by its author.

debian_captions    the sentence is the reference caption (form of nocaps)
debian_choices     which of four sentences describes the picture, in all four rotations (form of MMBench)
debian_yes_no      whether a sentence describes the picture: its own, and another one (form of MME)
"""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data_pipelines.corpora.mmbench import ROTATION
from data_pipelines.debian.benchmarks.files import jpeg, write_bytes, write_json, write_table
from data_pipelines.quickstart import tuxpaint
from data_pipelines.quickstart.raw_stamp import load_rgba

OPTIONS = 4
QUESTION = "Which sentence describes the picture?"
_COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
_LETTERS = "ABCD"


class Stamp(NamedTuple):
    """A picture as a JPEG on white, its sentence in the wanted language, and its kind, such as "animals"."""

    picture: bytes
    sentence: str
    kind: str
    side: tuple[int, int]


def stamps(cache: Path, language: str) -> list[Stamp]:
    """All stamps that have a picture and a sentence in a language, "en" or "zh".

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    raw, _ = tuxpaint.load(cache)
    members = []
    for stamp in raw:
        sentence = stamp.caption_en if language == "en" else stamp.caption_zh
        if stamp.has_picture and sentence:
            image = Image.fromarray(load_rgba(stamp), "RGBA")
            members.append(Stamp(jpeg(image), sentence, stamp.category, image.size))
    return members


def write_captions(members: Sequence[Stamp], folder: Path) -> None:
    """Writes them in the form of nocaps."""
    images = []
    annotations = []
    for number, stamp in enumerate(members):
        name = f"{number:06}.jpg"
        width, height = stamp.side
        write_bytes(folder / "images" / name, stamp.picture)
        images.append({"id": number, "file_name": name, "width": width, "height": height, "domain": stamp.kind})
        annotations.append({"id": number, "image_id": number, "caption": stamp.sentence})
    write_json(folder / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})


def others(members: Sequence[Stamp], number: int, count: int, draw: random.Random) -> list[str]:
    """`count` different sentences of other pictures, half of them of pictures of the same kind if there are so many."""
    stamp = members[number]
    alike = sorted({each.sentence for each in members if each.kind == stamp.kind} - {stamp.sentence})
    chosen = draw.sample(alike, min(len(alike), (count + 1) // 2))
    rest = sorted({each.sentence for each in members} - {stamp.sentence, *chosen})
    return [*chosen, *draw.sample(rest, min(len(rest), count - len(chosen)))]


def write_choices(members: Sequence[Stamp], folder: Path, seed: int = 0) -> None:
    """Writes them in the form of MMBench; only the first rotation of a question has the picture."""
    draw = random.Random(seed)
    rotated: list[list[Sequence[object]]] = [[] for _ in range(OPTIONS)]
    for number, stamp in enumerate(members):
        options = [stamp.sentence, *others(members, number, OPTIONS - 1, draw)]
        draw.shuffle(options)
        for turn, rows in enumerate(rotated):
            turned = options[turn:] + options[:turn]
            answer = _LETTERS[turned.index(stamp.sentence)]
            image = number if turn else base64.b64encode(stamp.picture).decode()
            rows.append((number + turn * ROTATION, QUESTION, "", *turned, answer, stamp.kind, image))
    rows = [row for turn in rotated for row in turn]
    write_table(folder / "mmbench_dev_20230712.tsv", [_COLUMNS, *rows], "\t")


def write_yes_no(members: Sequence[Stamp], folder: Path, seed: int = 0) -> None:
    """Writes them as the subtask "existence" of MME."""
    draw = random.Random(seed)
    for number, stamp in enumerate(members):
        [other] = others(members, number, 1, draw)
        sentences = ((stamp.sentence, "Yes"), (other, "No"))
        write_bytes(folder / "existence" / f"{number:06}.jpg", stamp.picture)
        write_bytes(
            folder / "existence" / f"{number:06}.txt", yes_no_lines(sentences, "Does this describe the picture")
        )


def yes_no_lines(questions: Sequence[tuple[str, str]], before: str) -> bytes:
    """The text of a picture of MME: a line with a question, a tab and its answer for every sentence."""
    asked = (f"{before}: {' '.join(text.split())} Please answer yes or no.\t{answer}" for text, answer in questions)
    return "".join(f"{line}\n" for line in asked).encode()
