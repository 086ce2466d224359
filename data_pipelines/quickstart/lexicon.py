"""The fixed vocabularies of the OCR task: short words taken from the stamps' captions.

english, chinese = vocabularies(raws, [(s.noun_en, s.noun_zh) for s in stamps], fonts_en, fonts_zh)
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from data_pipelines.ocr.fonts import Font
from data_pipelines.quickstart.raw_stamp import RawStamp
from data_pipelines.quickstart.stamps import english_name, names_of

ENGLISH_WORDS, CHINESE_WORDS = 9, 3


def vocabularies(
    raws: Sequence[RawStamp],
    preferred: Iterable[tuple[str, str]],
    english_fonts: Sequence[Font],
    chinese_fonts: Sequence[Font],
) -> tuple[list[str], list[str]]:
    """English words of 3 to 6 letters and Chinese ones of 1 to 3 characters that all given fonts can draw.

    Args:
      raws: stamps whose short names ("A race car.") give the words, the most frequent first.
      preferred: (English noun, Chinese noun) pairs to take first, namely those of the stamps in the scenes.
      english_fonts: fonts for English; empty gives no English words.
      chinese_fonts: fonts for Chinese; empty gives no Chinese words.
    """
    preferred = list(preferred)
    english = [w for noun, _ in preferred for w in noun.lower().split()]
    english += _by_frequency(w for raw in raws if (name := english_name(raw.caption_en)) for w in name.split())
    chinese = [noun for _, noun in preferred]
    chinese += _by_frequency(names[1] for raw in raws if (names := names_of(raw)))
    return (
        _take([w for w in english if 3 <= len(w) <= 6], ENGLISH_WORDS, english_fonts),
        _take([w for w in chinese if 1 <= len(w) <= 3], CHINESE_WORDS, chinese_fonts),
    )


def _by_frequency(words: Iterable[str]) -> list[str]:
    counts = collections.Counter(words)
    return sorted(counts, key=lambda w: (-counts[w], w))


def _take(words: Iterable[str], count: int, fonts: Sequence[Font]) -> list[str]:
    if not fonts:
        return []
    return [w for w in dict.fromkeys(words) if all(font.covers(w) for font in fonts)][:count]
