"""Words look the same on every machine: fonts are known by their bytes, whatever is installed under their names."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import ImageFont

from data_pipelines.ocr.fonts import Font
from data_pipelines.quickstart import word_fonts
from data_pipelines.quickstart.ingredients import load_ingredients
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.shards import make_records
from data_pipelines.quickstart.word_fonts import FONT_SETS, PinnedFont


def _built_in_font(path: Path) -> Path:
    """Pillow's own font as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    face = ImageFont.load_default(10)
    assert isinstance(face, ImageFont.FreeTypeFont)
    path.write_bytes(face.font_bytes)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fonts of this machine."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.setattr(word_fonts, "FONT_FOLDERS", (str(folder),))
    return folder


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedFont:
    """The only font of a set "test"; the cache below `tmp_path` has its package."""
    file = _built_in_font(tmp_path / "cache/fonts-test/usr/share/fonts/truetype/test/Test.ttf")
    font = PinnedFont("Test.ttf", "fonts-test", word_fonts.font_digest(Font("Test.ttf", str(file))))
    monkeypatch.setitem(FONT_SETS, "test", {"en": (font,), "zh": (font,)})
    return font


def test_an_installed_font_of_the_right_bytes_is_used(installed: Path, pinned: PinnedFont, tmp_path: Path) -> None:
    file = _built_in_font(installed / "deep/Test.ttf")
    assert word_fonts.word_fonts("test", "en", tmp_path / "empty") == [Font("Test.ttf", str(file))]


def test_an_installed_font_of_other_bytes_is_not(installed: Path, pinned: PinnedFont, tmp_path: Path) -> None:
    file = _built_in_font(installed / "Test.ttf")
    file.write_bytes(file.read_bytes() + b"\0")
    [font] = word_fonts.word_fonts("test", "en", tmp_path / "cache")
    assert Path(font.path).is_relative_to(tmp_path / "cache")
    assert word_fonts.font_digest(font) == pinned.sha256


def test_a_fetched_font_of_other_bytes_is_named(
    installed: Path, pinned: PinnedFont, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [font] = word_fonts.word_fonts("test", "en", tmp_path / "cache")
    Path(font.path).write_bytes(b"another release of Debian")
    assert word_fonts.word_fonts("test", "en", tmp_path / "cache") == [font]
    assert "Test.ttf of fonts-test is not the file of Debian 12" in caplog.text


def test_without_the_fonts_words_are_english_and_drawn_by_pillow(
    installed: Path, pinned: PinnedFont, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)  # a machine without apt
    assert word_fonts.word_fonts("test", "en", tmp_path / "empty") == [word_fonts.BUILT_IN]
    assert word_fonts.word_fonts("test", "zh", tmp_path / "empty") == []


def test_rendered_records_do_not_depend_on_installed_fonts(
    settings: QuickstartSettings, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(settings, train=4)
    without = load_ingredients(few, tmp_path)
    monkeypatch.undo()
    with_all = load_ingredients(few, tmp_path)
    assert without.digests == with_all.digests
    assert make_records(few, without, "train", 0) == make_records(few, with_all, "train", 0)


def test_the_hash_of_the_settings_covers_every_source(settings: QuickstartSettings, tmp_path: Path) -> None:
    digests = load_ingredients(settings, tmp_path).digests
    assert set(digests) == {"stamps", "photographs", "font Pillow default", "Pillow"}
    hashes = {settings.digest({**digests, name: "other"}) for name in digests}
    assert len(hashes | {settings.digest(digests)}) == len(digests) + 1


def test_the_table_names_each_file_once() -> None:
    fonts = [font for languages in FONT_SETS.values() for fonts in languages.values() for font in fonts]
    assert len({font.file for font in fonts}) == len({font.sha256 for font in fonts}) == len(fonts)
    assert all(len(bytes.fromhex(font.sha256)) == 32 for font in fonts)
