"""Fixtures of the corpora whose pictures are rendered: synthetic pages, PDF and HTML files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from data_pipelines.corpora.synthetic_pages import Order, write_orders
from tests.support.corpora.documents import Text, write_pdf

ENGLISH = (
    "The ferry leaves the harbour at seven in the morning and returns before the tide turns.",
    "Twelve baskets of apples stood in the cellar; nobody had counted the pears.",
    "A letter from the library asked for three books that she had never borrowed (or so she said).",
)


def write_photographs(folder: Path) -> None:
    """Three pictures of soft spots, and a file that is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(3):
        small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{seed}.jpg")
    (folder / "notes.txt").write_text("no picture")


def write_synthetic_pages(folder: Path, pages: int = 3) -> None:
    """Orders of two pages each, with everything that they need in folders below."""
    write_photographs(folder / "photographs")
    texts = "\n".join(json.dumps({"text": text}) for text in ENGLISH * 20)
    (folder / "texts").mkdir()
    (folder / "texts/texts.jsonl").write_text(texts)
    face = ImageFont.load_default(12)
    assert isinstance(face, ImageFont.FreeTypeFont)
    (folder / "font.ttf").write_bytes(face.font_bytes)
    order = Order("en", pages, "texts/texts.jsonl", seed=3, backgrounds=("photographs",), fonts=("font.ttf",))
    write_orders(folder, order, pages_per_file=2)


def write_pdf_pages(folder: Path) -> None:
    """A file of two pages below a folder, and one that is broken."""
    (folder / "2023").mkdir(parents=True)
    pages = [[Text(text, 72, 700 - 30 * line, size=10) for line, text in enumerate(ENGLISH)] for _ in range(2)]
    write_pdf(folder / "2023/report.PDF", pages)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\n")


def write_html_pages(folder: Path) -> None:
    """A page in a folder of its own, with a style, and one that leads to the network."""
    (folder / "site/styles").mkdir(parents=True)
    text = "".join(f"<p>{text}</p>" for text in ENGLISH)
    (folder / "site/styles/a.css").write_text("p { color: navy; font-size: 15px }")
    link = '<link rel="stylesheet" href="styles/a.css">'
    (folder / "site/index.html").write_text(f"<!doctype html><title>t</title>{link}<h1>Ferries</h1>{text}")
    outside = '<meta http-equiv="refresh" content="0;url=https://example.com"><img src="https://example.com/a.png">'
    (folder / "away.htm").write_text(f"<!doctype html>{outside}<p>{ENGLISH[0]}</p>")
