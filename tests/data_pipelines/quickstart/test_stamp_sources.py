"""Sources: caption files, packages unpacked without root, machines without apt."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.fetch import apt
from data_pipelines.quickstart import backgrounds, drawn_stamps, tuxpaint
from data_pipelines.quickstart.ingredients import caption_lines, load_ingredients
from data_pipelines.quickstart.raw_stamp import load_rgba
from data_pipelines.quickstart.settings import QuickstartSettings
from qwenvl_jax.runtime.errors import UserError

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb builds the package of this test")


def stamp_folder(root: Path) -> Path:
    folder = root / "usr/share/tuxpaint/stamps/animals"
    folder.mkdir(parents=True)
    (folder / "badger.txt").write_text("A badger.\nde.utf8=Ein Dachs.\nzh_CN.utf8=獾。\n", encoding="utf8")
    (folder / "fox.txt").write_text("A fox.\nzh_TW.utf8=狐狸。\n", encoding="utf8")
    (folder / "alone.txt").write_text("A text without a picture.\n")
    pixels = np.zeros((8, 9, 4), np.uint8)
    pixels[2:5, 3:6] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(folder / "badger.png")
    (folder / "fox.svg").write_text("<svg/>")
    (folder / "badger.ogg").write_text("a sound")
    return root / "usr/share/tuxpaint/stamps"


def test_stamps_are_read(tmp_path: Path) -> None:
    stamps, counts = tuxpaint.read(stamp_folder(tmp_path))
    assert counts == {"png": 1, "svg_without_picture": 1, "zh_captions": 1}
    badger, fox = stamps
    assert (badger.id, badger.category) == ("animals/badger", "animals")
    assert (badger.caption_en, badger.caption_zh, badger.license) == ("A badger.", "獾。", "GPL-2.0-only")
    assert load_rgba(badger)[3, 4].tolist() == [10, 20, 30, 255]
    assert fox.caption_zh == "" and not fox.has_picture
    assert [(c.language, c.text) for c in caption_lines(stamps)] == [
        ("en", "A badger."),
        ("zh", "獾。"),
        ("en", "A fox."),
    ]


@needs_dpkg
def test_a_package_is_unpacked_without_unwanted_files(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    stamp_folder(tree)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    subprocess.run(["dpkg-deb", "-b", str(tree), str(tmp_path / "tiny.deb")], check=True, capture_output=True)
    count = apt.unpack(tmp_path / "tiny.deb", tmp_path / "out", tuxpaint.PATTERNS)
    names = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names == {"badger.txt", "fox.txt", "alone.txt", "badger.png", "fox.svg"} and count == len(names)
    with pytest.raises(apt.SourceUnavailable):
        apt.unpack(tmp_path / "tiny.deb", tmp_path / "none", ("etc/*",))
    (tmp_path / "broken.deb").write_bytes((tmp_path / "tiny.deb").read_bytes()[:150])
    with pytest.raises(apt.SourceUnavailable):
        apt.unpack(tmp_path / "broken.deb", tmp_path / "broken", tuxpaint.PATTERNS)


def test_an_unpacked_package_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp_folder(tmp_path / tuxpaint.PACKAGE)
    monkeypatch.setenv("PATH", str(tmp_path))  # neither apt nor dpkg is there
    assert len(tuxpaint.load(tmp_path)[0]) == 2


def test_without_apt_the_scenes_are_rendered_and_the_reason_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ingredients = load_ingredients(QuickstartSettings(source="auto"), tmp_path / "cache")
    assert "apt-get is not installed" in ingredients.fallback
    assert {s.source for s in ingredients.stamps} == {"rendered"}
    assert ingredients.scene_license == "CC0-1.0"
    with pytest.raises(UserError, match="--source=rendered"):
        load_ingredients(QuickstartSettings(source="tuxpaint"), tmp_path / "cache")


def test_a_failing_download_is_unavailable_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in {"apt-get": "echo 'E: no network' >&2; exit 100", "dpkg-deb": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(apt.SourceUnavailable, match="no network"):
        apt.fetch_package("tiny", tmp_path / "cache", ("*",))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["apt"]


def test_rendered_stamps_match_their_captions() -> None:
    stamps = {s.id: s for s in drawn_stamps.stamps()}
    assert len(stamps) == len(drawn_stamps.SHAPES) * len(drawn_stamps.COLORS)
    ring = load_rgba(stamps["ring/red"])
    assert ring[80, 80, 3] == 0 and ring[80, 20, 3] == 255 and ring[80, 20, 0] > 150 > ring[80, 20, 2]
    assert stamps["star/orange"].caption_en == "An orange star." and stamps["star/red"].caption_zh == "一个红色星形。"


def test_views_are_large_enough_for_a_crop() -> None:
    images = [np.zeros((400, 90, 3), np.uint8), np.zeros((50, 60, 3), np.uint8)]
    views = backgrounds.scale_views(images, 100)
    assert len(views) == 6 and all(min(view.shape[:2]) >= 100 for view in views)
