"""The sources of scenes and pictures of words, loaded once per process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL

from data_pipelines.fetch.apt import SourceUnavailable
from data_pipelines.quickstart import backgrounds, drawn_stamps, tuxpaint
from data_pipelines.quickstart.captions import Caption, clean_captions
from data_pipelines.quickstart.lexicon import vocabularies
from data_pipelines.quickstart.ocr_pictures import Lexicon
from data_pipelines.quickstart.raw_stamp import RawStamp
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.stamps import Stamp, select_stamps
from data_pipelines.quickstart.word_fonts import BUILT_IN, font_digest, word_fonts
from qwenvl_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """Loaded sources.

    Attributes:
      stamps: the stamps used in scenes.
      views: photographs at several scales, [h, w, 3] uint8 each.
      lexicons: words and fonts per language; a language without a font is absent.
      captions: cleaned captions of all stamps.
      scene_license, ocr_license: SPDX expressions of the pictures.
      fallback: why rendered drawings replace real pictures, or "".
      notes: the manifest's entry about the sources.
      digests: checksums of everything that the records are made of, besides the settings.
    """

    stamps: tuple[Stamp, ...]
    views: tuple[np.ndarray, ...]
    lexicons: dict[str, Lexicon]
    captions: tuple[Caption, ...]
    scene_license: str
    ocr_license: str
    fallback: str
    notes: dict[str, object]
    digests: dict[str, str]


def load_ingredients(settings: QuickstartSettings, cache: Path) -> Ingredients:
    """Loads the sources; the first use also fetches them.

    Args:
      settings: which source, how many stamps, and their sizes.
      cache: folder for downloads; with source "rendered" nothing is downloaded.

    Raises:
      UserError: if source "tuxpaint" is unavailable, or too few stamps are usable.
    """
    raws, photographs, counts, fallback = _pictures(settings, cache)
    scene = settings.scene
    widest_px = max(scene.scene_px, settings.ocr.picture_px)
    stamps = select_stamps(raws, scene.stamp_count, scene.sizes_px, settings.stamps, scene.grid_px)
    online = settings.source != "rendered" and not fallback
    english = word_fonts(settings.fonts, "en", cache) if online else [BUILT_IN]
    chinese = word_fonts(settings.fonts, "zh", cache) if online else []
    words_en, words_zh = vocabularies(raws, [(s.noun_en, s.noun_zh) for s in stamps], english, chinese)
    lexicons = {"en": Lexicon(tuple(words_en), tuple(english))}
    if words_zh:
        lexicons["zh"] = Lexicon(tuple(words_zh), tuple(chinese))
    lines = caption_lines(raws)
    captions, rules = clean_captions(lines)
    photo_licenses = sorted({p.license for p in photographs})
    return Ingredients(
        stamps=tuple(stamps),
        views=tuple(backgrounds.scale_views([photo.image_HWC for photo in photographs], widest_px)),
        lexicons=lexicons,
        captions=tuple(captions),
        scene_license=" AND ".join(sorted({s.license for s in stamps} | set(photo_licenses))),
        ocr_license=" AND ".join(photo_licenses),
        fallback=fallback,
        notes={
            "stamps": counts,
            "stamp_names": {s.id: [s.name_en, s.name_zh] for s in stamps},
            "backgrounds": {p.name: p.license for p in photographs},
            "fonts": {language: [f.name for f in lexicon.fonts] for language, lexicon in lexicons.items()},
            "ocr_words": {language: list(lexicon.words) for language, lexicon in lexicons.items()},
            "cleaning_rules": rules,
            "captions_kept": len(captions),
        },
        digests={
            "stamps": _digest([dataclasses.astuple(line) for line in lines]),
            "photographs": _digest([hashlib.sha256(photo.image_HWC.tobytes()).hexdigest() for photo in photographs]),
            **{f"font {font.name}": font_digest(font) for font in (*english, *chinese)},
            "Pillow": PIL.__version__,  # draws the words and encodes the pictures
        },
    )


def _digest(value: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def caption_lines(raws: Sequence[RawStamp]) -> list[Caption]:
    """The captions of all stamps, with a checksum of the picture that identifies copies."""
    lines = []
    for raw in raws:
        picture = hashlib.md5(Path(raw.path).read_bytes()).hexdigest() if raw.path else raw.id
        for language, text in (("en", raw.caption_en), ("zh", raw.caption_zh)):
            if text:
                lines.append(Caption(raw.id, picture, language, text, raw.license, raw.source))
    return lines


def _pictures(
    settings: QuickstartSettings, cache: Path
) -> tuple[list[RawStamp], list[backgrounds.Background], dict[str, int], str]:
    """Stamps, backgrounds, counts, and why rendered ones replace real ones ("" if they do not, or are wanted)."""
    reason = ""
    if settings.source != "rendered":
        try:
            raws, counts = tuxpaint.load(cache)
            return raws, backgrounds.load(cache), counts, ""
        except SourceUnavailable as error:
            reason = str(error)
        if settings.source == "tuxpaint":
            raise UserError(f"the Tux Paint stamps cannot be fetched ({reason}); use --source=rendered to go without")
    raws = drawn_stamps.stamps()
    return raws, drawn_stamps.backgrounds(), {"rendered": len(raws), "zh_captions": len(raws)}, reason
