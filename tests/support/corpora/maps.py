"""Fixture of KGeography's maps: two maps in the program's formats, and Chinese names for one of them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

MO = "locale/zh_CN/LC_MESSAGES/kgeography.mo"
PATTERNS = ("usr/share/kgeography/*.kgm", "usr/share/kgeography/*.png", f"usr/share/{MO}")
SEA = (65, 95, 173)
# Name -> (colour, the rectangles that it fills); x1, y1, x2, y2.
DIVISIONS = {
    "North": ((200, 10, 10), [(10, 10, 110, 50)]),
    "South": ((10, 200, 10), [(10, 60, 60, 100)]),
    "Islands": ((10, 10, 200), [(80, 60, 100, 80), (80, 90, 110, 100), (118, 98, 119, 99)]),
    "Atlantis": ((1, 2, 3), []),
}
CHINESE = {
    "shire.kgm\x04Shire": "夏尔",
    "shire.kgm\x04Farthings": "区",
    "shire.kgm\x04North": "北区",
    "shire.kgm\x04South": "南区",
}


def division(name: str, colour: tuple[int, int, int], extra: str = "") -> str:
    red, green, blue = colour
    channels = f"<red>{red}</red><green>{green}</green><blue>{blue}</blue>"
    return f"\t<division>\n\t\t<name>{name}</name>{extra}\n\t\t<color>{channels}</color>\n\t</division>\n"


def write_map(folder: Path, stem: str, name: str) -> None:
    """A map as the program has it: a palette picture and its `.kgm`."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((120, 130), np.uint8)
    palette = [*SEA]
    text = division("Water", SEA, "<ignore>yes</ignore>")
    for number, (title, (colour, rectangles)) in enumerate(DIVISIONS.items(), start=1):
        palette += colour
        text += division(title, colour, f"<capital>Port {title}</capital>")
        for x1, y1, x2, y2 in rectangles:
            pixels[y1:y2, x1:x2] = number
    image = Image.fromarray(pixels, "P")
    image.putpalette(palette)
    image.save(folder / f"{stem}.png")
    head = '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE kgeographyMap>\n<map>\n'
    facts = f"\t<mapFile>{stem}.png</mapFile>\n\t<name>{name}</name>\n\t<divisionsName>Farthings</divisionsName>\n"
    (folder / f"{stem}.kgm").write_text(f"{head}{facts}{text}</map>\n", encoding="utf-8")


def catalogue(messages: Mapping[str, str]) -> bytes:
    """A `.mo` file as msgfmt writes it."""
    entries = {"": "Content-Type: text/plain; charset=UTF-8\n", **messages}
    pairs = sorted((key.encode(), value.encode()) for key, value in entries.items())
    tables: list[bytes] = []
    body = b""
    start = 28 + 16 * len(pairs)
    for column in range(2):
        for pair in pairs:
            tables.append(struct.pack("<II", len(pair[column]), start + len(body)))
            body += pair[column] + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, start)
    return header + b"".join(tables) + body


def write_kgeography(folder: Path) -> None:
    """A map with Chinese names, one without, and one whose picture is missing."""
    write_map(folder / "kgeography", "shire", "Shire (Farthings)")
    write_map(folder / "kgeography", "bree", "Bree")
    write_map(folder / "kgeography", "gondor", "Gondor")
    (folder / "kgeography/gondor.png").unlink()
    target = folder / MO
    target.parent.mkdir(parents=True)
    names = {key.replace("\x04Shire", "\x04Shire (Farthings)"): value for key, value in CHINESE.items()}
    target.write_bytes(catalogue(names))
