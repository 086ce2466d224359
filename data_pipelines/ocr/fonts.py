"""Fonts to draw text with, and the families of `font_families` for synthetic pages.

fonts = page_fonts("zh", Path("data/cache"))    # one per family of the table, fetched from Debian without root
words = [w for w in words if fonts[0].covers(w)]
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from fontTools.ttLib import TTCollection, TTFont, TTLibError
from PIL import ImageFont

from data_pipelines.fetch.apt import SourceUnavailable, fetch_package
from data_pipelines.ocr.font_families import FAMILIES, Family
from qwenvl_jax.runtime.errors import UserError, one_line

FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "/System/Library/Fonts")

# Of the cache. Its packages hold the files of the table alone, others hold every face of a package.
PAGE_FONTS = "page_fonts"


@dataclasses.dataclass(frozen=True)
class Font:
    """One face of a font file. An empty `path` means the small font that comes with Pillow."""

    name: str
    path: str
    index: int = 0  # of the face in a collection (.ttc)

    @functools.lru_cache(maxsize=256)  # noqa: B019  a handful of fonts, which live as long as the process
    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The font at `size` pixels."""
        if self.path:
            return ImageFont.truetype(self.path, size, self.index)
        face = ImageFont.load_default(size)
        assert isinstance(face, ImageFont.FreeTypeFont)
        return face

    def covers(self, text: str) -> bool:
        """Whether the font has a glyph for every character. It would draw an empty box for a missing one."""
        code_points = self.code_points
        return all(character in " \n" or ord(character) in code_points for character in text)

    @property
    def code_points(self) -> frozenset[int]:
        """The characters that the font has glyphs for; empty if fontTools cannot read the file."""
        return _code_points(self.path, self.index)


def page_fonts(language: str, cache: Path) -> list[Font]:
    """The regular face of every family in the table of a language ("en" or "zh"), in the table's order.

    Each package is downloaded once; the cache keeps the files of the table and the licences.

    Raises:
      UserError: if a package is not available, because pages depend on which fonts there are.
    """
    families = FAMILIES[language]
    return [Font(family.name, str(_page_font(family, families, cache)), family.index) for family in families]


def font_file(path: str) -> Font:
    """The first face of a font file on a disk.

    Raises:
      UserError: if it is no font, or has no table of characters.
    """
    try:
        font = Font(Path(path).stem, path)
        font.at(12)
        if not font.code_points:
            raise UserError(f"{path} has no characters; name another font")
        return font
    except OSError as error:
        raise UserError(f"{path} is not a readable font ({one_line(error)}); name another font") from None


def code_points_below(folders: Sequence[str]) -> frozenset[int]:
    """All characters that some font file in the folders, at any depth, has a glyph for."""
    code_points: set[int] = set()
    for folder in folders:
        for file in sorted(Path(folder).rglob("*")) if Path(folder).is_dir() else []:
            if file.suffix.lower() in (".ttf", ".otf", ".ttc"):
                try:
                    code_points |= _code_points(str(file), 0)
                except (OSError, AssertionError, AttributeError):  # not a font, or one without a table of characters
                    continue
    return frozenset(code_points)


def _page_font(family: Family, families: Sequence[Family], cache: Path) -> Path:
    patterns = [f"usr/share/fonts/{each.file}" for each in families if each.package == family.package]
    try:
        folder = fetch_package(family.package, cache / PAGE_FONTS, (*patterns, "usr/share/doc/*/copyright"))
    except SourceUnavailable as error:
        raise UserError(
            f"the font {family.name} is not available ({error}); run where apt-get reaches a Debian mirror, "
            f"or copy {cache / PAGE_FONTS} from a machine that has it"
        ) from None
    file = folder / "usr/share/fonts" / family.file
    if not file.exists():
        raise UserError(f"package {family.package} has no {family.file}; the table is of Debian 12, so fetch it there")
    return file


@functools.lru_cache(maxsize=128)
def _code_points(path: str, index: int) -> frozenset[int]:
    if not path:
        return frozenset(range(0x20, 0x7F))
    try:
        if path.endswith(".ttc"):
            with TTCollection(path, lazy=True) as collection:
                return frozenset(collection.fonts[index].getBestCmap())
        with TTFont(path, lazy=True) as font:
            return frozenset(font.getBestCmap())
    except TTLibError:
        return frozenset()
