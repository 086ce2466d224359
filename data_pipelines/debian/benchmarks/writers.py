"""The writer of every evaluation set from Debian packages; together they have more than 10,000 questions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from data_pipelines.debian.benchmarks import charts, documents, maps, stamps

WORDS = 900  # pictures with words

# (folder) -> writes a corpus into it as its reader expects it. Raises SourceUnavailable or UserError.
Writer = Callable[[Path], None]


def benchmark_writers(cache: Path, fetch_maps: Callable[[], Path]) -> Mapping[str, Writer]:
    """The writer of every corpus.

    Args:
      cache: folder that keeps the packages.
      fetch_maps: returns `usr/share` of the package of maps.
    """

    @functools.cache
    def stamps_in(language: str) -> list[stamps.Stamp]:
        return stamps.stamps(cache, language)

    def yes_no(folder: Path) -> None:
        stamps.write_yes_no(stamps_in("en"), folder)
        maps.write_positions(maps.maps(fetch_maps(), "en"), folder)

    def words(folder: Path) -> None:
        names = {name for pair in maps.maps(fetch_maps(), "en") for name in maps.divisions(pair)}
        chosen = sorted(name for name in names if name.isascii() and 4 <= len(name) <= 24)
        documents.write_words(cache, folder, chosen[:: max(1, len(chosen) // WORDS)])

    return {
        "debian_captions": lambda folder: stamps.write_captions(stamps_in("en"), folder),
        "debian_captions_zh": lambda folder: stamps.write_captions(stamps_in("zh"), folder),
        "debian_maps": lambda folder: maps.write_questions(maps.maps(fetch_maps(), "en"), folder),
        "debian_words": words,
        "debian_documents": functools.partial(documents.write_documents, cache),
        "debian_charts": functools.partial(charts.write_charts, cache),
        "debian_phrases": lambda folder: maps.write_phrases(maps.maps(fetch_maps(), "en"), folder),
        "debian_phrases_zh": lambda folder: maps.write_phrases(maps.maps(fetch_maps(), "zh"), folder),
        "debian_choices": lambda folder: stamps.write_choices(stamps_in("en"), folder),
        "debian_yes_no": yes_no,
        "debian_capitals": lambda folder: maps.write_capitals(fetch_maps(), folder),
    }
