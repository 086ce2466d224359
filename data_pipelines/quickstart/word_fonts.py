"""The fonts that the quickstart's words are drawn with: files of Debian packages, known by their checksums.

    english = word_fonts("dejavu", "en", Path("data/cache"))
    chinese = word_fonts("dejavu", "zh", Path("data/cache"))  # [] if it cannot be fetched

An installed file counts only if its bytes are those of the table. So it makes no difference to the data set which fonts
a machine has; otherwise "same settings, same pictures" would hold on one machine only.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

from data_pipelines.fetch.apt import SourceUnavailable, fetch_package
from data_pipelines.ocr.fonts import FONT_FOLDERS, Font

_log = logging.getLogger(__name__)


class PinnedFont(NamedTuple):
    """A font file of a package of Debian 12."""

    file: str
    package: str
    sha256: str


_DEJAVU = "fonts-dejavu-core"
_LIBERATION = "fonts-liberation"
# Font set -> language -> files. The second set is there to measure how much scores depend on fonts.
FONT_SETS: dict[str, dict[str, tuple[PinnedFont, ...]]] = {
    "dejavu": {
        "en": (
            PinnedFont(
                "DejaVuSans-Bold.ttf", _DEJAVU, "0d977336a6d5fba34eab8e3199eb218327161b5143749f802982c2bc34df0c96"
            ),
            PinnedFont("DejaVuSans.ttf", _DEJAVU, "abdc775b21b1bc470d50c97e790d276f2054b7504e56e5bd3e64f48d68582322"),
            PinnedFont(
                "DejaVuSerif-Bold.ttf", _DEJAVU, "e2fd85eba2de65ac270d1cdb1685e252eb827f600850cf62af2d20c41b22e945"
            ),
            PinnedFont(
                "DejaVuSansMono-Bold.ttf", _DEJAVU, "2964f6dac8e6e9d71613928340f17bf868e9ea51692cca333c79e74962f02233"
            ),
        ),
        "zh": (
            PinnedFont(
                "wqy-microhei.ttc",
                "fonts-wqy-microhei",
                "2420e8078af796b19a3f6ef13de527a1a91c1e7171eea115926c614ced1009b3",
            ),
        ),
    },
    "liberation": {
        "en": (
            PinnedFont(
                "LiberationSans-Bold.ttf",
                _LIBERATION,
                "361c61b82d575c5c35fd9157fda8b0194bcfcd0d88ea8521a4fb5dd53d33dddc",
            ),
            PinnedFont(
                "LiberationSans-Regular.ttf",
                _LIBERATION,
                "f8ace1f892b2bd9dc1792ba7f097fa7588f84fed48321480e04de5390828221f",
            ),
            PinnedFont(
                "LiberationSerif-Bold.ttf",
                _LIBERATION,
                "af228b9de767e5162168e433351b3d0e086648219c6c12ed888fba0bda3694d5",
            ),
            PinnedFont(
                "LiberationMono-Bold.ttf",
                _LIBERATION,
                "267ae0b63fc67980d11fc4cbb630de84d845c6bf350988ec56766baf98706b8b",
            ),
        ),
        "zh": (
            PinnedFont(
                "wqy-zenhei.ttc",
                "fonts-wqy-zenhei",
                "79c18ebe7b811951e8311bad7103ebeae8c337ed9988ea69e8a78a66cfe029b9",
            ),
        ),
    },
}


# Comes with Pillow, whose version the requirements pin.
BUILT_IN = Font("Pillow default", "")


def word_fonts(font_set: str, language: str, cache: Path) -> list[Font]:
    """The fonts of a set for a language ("en" or "zh"): all of the table, or what replaces them.

    If a file of the table is neither installed nor can be fetched, English is drawn with `BUILT_IN`, and there are no
    Chinese words. The digests of the data set tell them apart.
    """
    fonts = [_find(pinned, cache) for pinned in FONT_SETS[font_set][language]]
    found = [font for font in fonts if font is not None]
    if len(found) == len(fonts):
        return found
    return [BUILT_IN] if language == "en" else []


def font_digest(font: Font) -> str:
    """The checksum of the font's file; "" for the one that comes with Pillow."""
    return hashlib.sha256(Path(font.path).read_bytes()).hexdigest() if font.path else ""


def _find(pinned: PinnedFont, cache: Path) -> Font | None:
    """The installed or fetched font file; a fetched one with other bytes is used, with a warning."""
    for folder in (Path(folder) for folder in FONT_FOLDERS):
        for path in sorted(folder.rglob(pinned.file)) if folder.is_dir() else []:
            if font_digest(Font(pinned.file, str(path))) == pinned.sha256:
                return Font(pinned.file, str(path))
    try:
        folder = fetch_package(pinned.package, cache, ("usr/share/fonts/*.tt?", "usr/share/doc/*/copyright"))
    except SourceUnavailable:
        return None
    for path in sorted(folder.rglob(pinned.file)):
        font = Font(pinned.file, str(path))
        if font_digest(font) != pinned.sha256:
            _log.warning(
                "%s of %s is not the file of Debian 12: pictures and scores will differ", pinned.file, pinned.package
            )
        return font
    return None
