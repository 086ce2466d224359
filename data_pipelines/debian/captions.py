"""Captions from Debian packages as tars of pictures and captions, the layout of `corpora.img2dataset`.

`openclipart-png` has drawings of the Open Clip Art Library, and `openclipart-svg` what their authors wrote about them:
titles such as "AIGA_Symbol_Signs" or "Lemon SVG theme", sometimes a sentence. This is how captions of the web look, so
the recipe has work to do. `tuxpaint-stamps-default` has photographs and drawings with a sentence in English and often
one in Chinese.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.fetch.apt import fetch_package
from data_pipelines.quickstart import tuxpaint

ROWS_PER_TAR = 1000
OPENCLIPART_LICENSE = "CC0-1.0"
_ROOT = "usr/share/openclipart"
_METADATA_BYTES = 64 << 10  # an SVG has its title among the first of them

# (the bytes of a PNG, the content of the `.json` of the row).
Captioned = tuple[bytes, Mapping[str, Any]]


def write_openclipart(cache: Path, folder: Path) -> None:
    """Writes the tars of the corpus `openclipart`.

    Raises:
      SourceUnavailable: if a package is not available on this machine.
    """
    drawings = fetch_package("openclipart-svg", cache, (f"{_ROOT}/svg/*.svg", "usr/share/doc/*/copyright"))
    pictures = fetch_package("openclipart-png", cache, (f"{_ROOT}/png/*.png", "usr/share/doc/*/copyright"))
    write_tars(folder, _openclipart(drawings / _ROOT / "svg", pictures / _ROOT / "png"))


def write_tuxpaint_stamps(cache: Path, folder: Path) -> None:
    """Writes the tars of the corpus `tuxpaint_stamps`: a row for every sentence.

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    write_tars(folder, _stamps(cache))


def write_tars(folder: Path, rows: Iterable[Captioned]) -> None:
    """Writes rows in their order; equal rows give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    numbered = enumerate(rows)
    for shard, first in enumerate(numbered):
        with tarfile.open(folder / f"{shard:05}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for number, (picture, facts) in itertools.chain([first], itertools.islice(numbered, ROWS_PER_TAR - 1)):
                text = json.dumps({"key": f"{number:09}", **facts}, ensure_ascii=False)
                for suffix, payload in (("png", picture), ("txt", facts["caption"].encode()), ("json", text.encode())):
                    member = tarfile.TarInfo(f"{number:09}.{suffix}")
                    member.size = len(payload)
                    tar.addfile(member, io.BytesIO(payload))


def _openclipart(drawings: Path, pictures: Path) -> Iterator[Captioned]:
    for drawing in sorted(drawings.rglob("*.svg")):
        name = drawing.relative_to(drawings).with_suffix("")
        picture = pictures / name.with_suffix(".png")
        if picture.is_file():
            with drawing.open("rb") as file:
                caption = caption_of(file.read(_METADATA_BYTES).decode("utf-8", "replace"))
            facts = {"caption": caption, "url": name.as_posix(), "LICENSE": OPENCLIPART_LICENSE, "LANGUAGE": ""}
            yield picture.read_bytes(), facts


def caption_of(svg: str) -> str:
    """The longer one of the title and the description in the metadata of a drawing; "" if it has neither."""
    texts = []
    for tag in ("dc:title", "dc:description"):
        match = re.search(rf"<{tag}[^>]*>([^<]*)</{tag}>", svg)  # the first title is that of the work
        texts.append(" ".join(html.unescape(match[1]).split()) if match else "")
    return max(texts, key=len)


def _stamps(cache: Path) -> Iterator[Captioned]:
    stamps, _ = tuxpaint.load(cache)
    for stamp in stamps:
        if stamp.path:
            picture = Path(stamp.path).read_bytes()
            for language, caption in (("en", stamp.caption_en), ("zh", stamp.caption_zh)):
                if caption:
                    facts = {"caption": caption, "url": stamp.id, "LICENSE": stamp.license, "LANGUAGE": language}
                    yield picture, facts
