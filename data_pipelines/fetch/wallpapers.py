"""Photographs of a Debian package: 7 from `lomiri-wallpapers-16.04` (16 MB).

Three kinds of its pictures are not used: those under CC-BY-SA (a scene of the quickstart is also under the stamps' GPL,
which is compatible with CC-BY and CC0 only), a computer drawing, and two that show animals or a fruit, which no caption
would name.
"""

from __future__ import annotations

from pathlib import Path

from data_pipelines.fetch.apt import SourceUnavailable, fetch_package

PACKAGE = "lomiri-wallpapers-16.04"
PATTERNS = ("usr/share/backgrounds/*.jpg", f"usr/share/doc/{PACKAGE}/copyright")

# File -> licence, as the package's copyright file states it.
LICENSES = {
    "Picture_1A_by_freespace.jpg": "CC-BY-4.0",
    "Wine_by_Jakkub_Mede.jpg": "CC-BY-4.0",
    "aitzgorri_by_Aitzol_Berasategi.jpg": "CC-BY-4.0",
    "life_by_Aitzol_Berasategi.jpg": "CC-BY-4.0",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": "CC-BY-4.0",
    "seeding_by_Clements_Engelhardt.jpg": "CC0-1.0",
    "sunset_by_Aitzol_Berasategi.jpg": "CC-BY-4.0",
}


def wallpapers(cache: Path) -> list[Path]:
    """The files of the photographs, sorted by name.

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    folder = fetch_package(PACKAGE, cache, PATTERNS) / "usr/share/backgrounds"
    files = [folder / name for name in sorted(LICENSES) if (folder / name).exists()]
    if not files:
        raise SourceUnavailable(f"{PACKAGE} contains none of the expected photographs")
    return files
