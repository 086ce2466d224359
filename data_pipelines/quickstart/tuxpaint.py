"""Stamps of the drawing program Tux Paint: photographs and drawings with alpha, an English and often a Chinese caption.

Debian package `tuxpaint-stamps-default`, GPL-2, 161 MB, 950 stamps (785 PNG, the rest SVG).

    stamps, counts = load(Path("data/cache"))
"""

from __future__ import annotations

from pathlib import Path

from data_pipelines.fetch.apt import fetch_package
from data_pipelines.quickstart.raw_stamp import RawStamp

PACKAGE = "tuxpaint-stamps-default"
LICENSE = "GPL-2.0-only"
ROOT = "usr/share/tuxpaint/stamps"
PATTERNS = (f"{ROOT}/*.png", f"{ROOT}/*.txt", f"{ROOT}/*.svg", f"usr/share/doc/{PACKAGE}/copyright")


def load(cache: Path) -> tuple[list[RawStamp], dict[str, int]]:
    """All stamps, sorted by id, fetched into `cache` on first use.

    Returns:
      The stamps and counts: `png`, `svg_without_picture` (the caption is used, the picture is not), `zh_captions`.

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    return read(fetch_package(PACKAGE, cache, PATTERNS) / ROOT)


def read(root: Path) -> tuple[list[RawStamp], dict[str, int]]:
    """Reads an unpacked stamps folder; see `load`."""
    stamps = []
    counts = {"png": 0, "svg_without_picture": 0, "zh_captions": 0}
    for text in sorted(root.rglob("*.txt")):
        picture = text.with_suffix(".png")
        if not picture.exists() and not text.with_suffix(".svg").exists():
            continue
        caption_en, caption_zh = parse_captions(text.read_text(encoding="utf-8", errors="replace"))
        if not caption_en:
            continue
        name = text.relative_to(root).with_suffix("").as_posix()
        stamps.append(
            RawStamp(
                id=name,
                category=name.split("/")[0],
                caption_en=caption_en,
                caption_zh=caption_zh,
                license=LICENSE,
                source="tuxpaint",
                path=str(picture) if picture.exists() else "",
            )
        )
        counts["png" if picture.exists() else "svg_without_picture"] += 1
        counts["zh_captions"] += bool(caption_zh)
    return stamps, counts


def parse_captions(text: str) -> tuple[str, str]:
    """(English, simplified Chinese or "") of a stamp's text file: English first, then `<locale>.utf8=` lines."""
    lines = text.splitlines()
    english = lines[0].strip() if lines else ""
    chinese = next((line.split("=", 1)[1].strip() for line in lines[1:] if line.startswith("zh_CN.utf8=")), "")
    return english, chinese
