"""Two benchmarks of reading: pages of Debian's installation guide, and words before photographs.

debian_documents    titles of sections, and the word after three words of a line (form of DocVQA)
debian_words        which words are written before a photograph (form of TextVQA)
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pypdfium2
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.debian.benchmarks.files import jpeg, png, write_bytes, write_json
from data_pipelines.debian.manuals import fonts_of, guide_of
from data_pipelines.fetch.wallpapers import wallpapers

PER_PAGE = 12  # questions about the words of a page
SCALE = 1.5  # pixels per point: 893 x 1263 for a page of A4
ANNOTATORS = 10  # whose answers VQA accuracy compares
SIZE = (640, 480)  # of a picture with words
_BEFORE = 3  # words that are named
_SECTION = re.compile(r"(\d+(?:\.\d+)+)\.? ([A-Z][^\n.]{5,60})")
_WORD = re.compile(r"[A-Za-z][A-Za-z-]+")


def questions_of(text: str, draw: random.Random) -> list[tuple[str, str]]:
    """Questions about a page and their answers: titles of its sections, and words after three others.

    The three words follow one another in a line, once on the page, and the fourth one is in the same line.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    asked = []
    numbers = [match[1] for line in lines if (match := _SECTION.fullmatch(line))]
    for line in lines:
        match = _SECTION.fullmatch(line)
        if match and numbers.count(match[1]) == 1:
            asked.append((f"What is the title of section {match[1]}?", match[2]))
    whole = " ".join(lines)
    follow = []
    for line in lines:
        words = line.split()
        for start in range(len(words) - _BEFORE):
            before = " ".join(words[start : start + _BEFORE])
            after = words[start + _BEFORE].rstrip(".,;:")
            named = all(map(_WORD.fullmatch, words[start : start + _BEFORE]))
            if named and _WORD.fullmatch(after) and whole.count(f"{before} ") == 1:
                follow.append((f'Which word follows "{before}" on the page?', after))
    return [*asked, *draw.sample(follow, min(len(follow), PER_PAGE))]


def write_documents(cache: Path, folder: Path, seed: int = 0) -> None:
    """Writes all pages of the English guide with their questions.

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    draw = random.Random(seed)
    document = pypdfium2.PdfDocument(gzip.decompress((guide_of(cache) / "en" / "install.en.pdf.gz").read_bytes()))
    rows: list[dict[str, Any]] = []
    for number in range(len(document)):
        page = document[number]
        asked = questions_of(page.get_textpage().get_text_range(), draw)
        if not asked:
            continue
        name = f"documents/page_{number:04}.png"
        write_bytes(folder / "val" / name, png(page.render(scale=SCALE).to_pil().convert("L")))
        rows += [
            {"questionId": len(rows) + index, "question": text, "image": name, "answers": [answer]}
            for index, (text, answer) in enumerate(asked)
        ]
    document.close()
    write_json(folder / "val" / "val_v1.0.json", {"dataset_name": "debian_documents", "data": rows})


def write_words(cache: Path, folder: Path, texts: Sequence[str], seed: int = 0) -> None:
    """Writes a picture per text: white letters with a black edge before a part of a photograph.

    Raises:
      SourceUnavailable: if a package is not available on this machine.
    """
    draw = random.Random(seed)
    photographs = [Image.open(path).convert("RGB") for path in wallpapers(cache)]
    fonts = fonts_of("en", cache)
    rows = []
    for number, text in enumerate(texts):
        name = f"{number:016x}"
        write_bytes(folder / "train_images" / f"{name}.jpg", jpeg(_written(text, photographs, fonts, draw)))
        answers = [text] * ANNOTATORS
        facts = {"question_id": number, "image_id": name, "image_width": SIZE[0], "image_height": SIZE[1]}
        rows.append({**facts, "question": "What is written in the picture?", "answers": answers})
    write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_name": "debian_words", "data": rows})


def _written(text: str, photographs: Sequence[Image.Image], fonts: Sequence[Path], draw: random.Random) -> Image.Image:
    photograph = draw.choice(photographs)
    scale = draw.uniform(1.0, 2.0) * min(photograph.width / SIZE[0], photograph.height / SIZE[1]) / 2
    width, height = int(SIZE[0] * scale), int(SIZE[1] * scale)
    left = draw.randint(0, photograph.width - width)
    top = draw.randint(0, photograph.height - height)
    picture = photograph.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    canvas = ImageDraw.Draw(picture)
    path = draw.choice(fonts)
    size = draw.randint(28, 64)
    font = ImageFont.truetype(str(path), size)
    while canvas.textlength(text, font) > SIZE[0] - 40 and size > 12:
        size -= 2
        font = ImageFont.truetype(str(path), size)
    width_px = int(canvas.textlength(text, font))
    corner = (draw.randint(10, max(10, SIZE[0] - width_px - 20)), draw.randint(10, SIZE[1] - 2 * size))
    canvas.text(corner, text, fill="white", font=font, stroke_width=2, stroke_fill="black")
    return picture
