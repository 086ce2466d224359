"""Builds a real corpus from Debian packages: captions, maps, manuals, end to end.

    python -m data_pipelines.debian --output=data/corpora [--cache=data/cache] [--pages=16] [--workers=2]
    python -m data_pipelines.debian --evaluation --output=data/debian [--cache=data/cache] [--workers=2]

With --evaluation it builds evaluation sets instead: more than 10,000 questions with known answers about the same data.

Packages are fetched without root and kept in the cache. A corpus whose package cannot be fetched is left out with one
sentence. See docs/real_corpus.md.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipelines.__main__ import main as build
from data_pipelines.debian import captions, manuals
from data_pipelines.debian.benchmarks.writers import Writer, benchmark_writers
from data_pipelines.fetch.apt import SourceUnavailable, fetch_package
from data_pipelines.ocr.html import find_chromium
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

MAPS = "kgeography-data"
MAP_PATTERNS = (
    "usr/share/kgeography/*.kgm",
    "usr/share/kgeography/*.png",
    "usr/share/locale/zh_CN/LC_MESSAGES/kgeography.mo",
    f"usr/share/doc/{MAPS}/copyright",
)
_VERSION = 2  # of what the writers write; another one makes the raw folders anew
_BENCHMARKS_VERSION = 1  # of what those of evaluation sets write
_log = logging.getLogger(__name__)


def writers(cache: Path, pages: int) -> Mapping[str, Writer]:
    """The writer of every corpus."""
    return {
        "openclipart": functools.partial(captions.write_openclipart, cache),
        "tuxpaint_stamps": functools.partial(captions.write_tuxpaint_stamps, cache),
        "kgeography": functools.partial(_write_maps, cache),
        "pdf_pages": functools.partial(manuals.write_pdf_pages, cache, pages=pages),
        "html_pages": functools.partial(_write_html_pages, cache, pages=pages),
        "synthetic_pages": functools.partial(manuals.write_synthetic_pages, cache, pages=pages),
        "text": functools.partial(manuals.write_text, cache),
    }


def prepare(folder: Path, writers: Mapping[str, Writer], settings: Mapping[str, object]) -> list[str]:
    """Writes the folders of raw corpora that are missing or were written with other settings.

    Args:
      folder: gets one folder per corpus.
      writers: see `writers`.
      settings: everything that the folders depend on, as JSON.

    Returns:
      One sentence for every corpus that is left out; it has no folder afterwards.
    """
    left_out = []
    for corpus, write in writers.items():
        target = folder / corpus
        note = folder / ".settings" / f"{corpus}.json"
        if target.is_dir() and note.is_file() and artifacts.read_json(note) == settings:
            continue
        note.unlink(missing_ok=True)  # if this run is killed, it must not speak of what the run has written
        shutil.rmtree(target, ignore_errors=True)
        try:
            with artifacts.built_beside(target) as building:
                write(Path(building))
            artifacts.write_json(note, settings)
        except (SourceUnavailable, UserError) as error:
            left_out.append(f"{corpus} is left out: {error}")
    return left_out


def _fetch_maps(cache: Path) -> Path:
    return fetch_package(MAPS, cache, MAP_PATTERNS) / "usr/share"


def _write_maps(cache: Path, folder: Path) -> None:
    shutil.copytree(_fetch_maps(cache), folder, dirs_exist_ok=True)


def _write_html_pages(cache: Path, folder: Path, pages: int) -> None:
    find_chromium()
    manuals.write_html_pages(cache, folder, pages)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one sentence on a user's mistake."""
    parser = Parser("python -m data_pipelines.debian", __doc__)
    parser.add_argument("--output", help="folder to write; default data/corpora, or data/debian with --evaluation")
    parser.add_argument("--evaluation", action="store_true", help="build evaluation sets instead of training data")
    parser.add_argument("--cache", default="data/cache", help="folder that keeps what was fetched; default data/cache")
    parser.add_argument("--pages", type=int, default=16, help="pages per language of each kind; default 16")
    parser.add_argument("--workers", type=int, default=0, help="processes; default: one per core, at most 4")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    with exit_on_user_error():
        arguments = parser.parse_args(argv)
        if arguments.pages < 1:
            raise UserError("--pages must be at least 1")
        started = time.monotonic()
        if storage.is_remote(arguments.cache):
            raise UserError(f"--cache={arguments.cache} must be a folder on a disk, where packages can be unpacked")
        cache = Path(storage.absolute(arguments.cache))
        if arguments.evaluation:
            raw, output, name = cache / "debian_benchmarks", arguments.output or "data/debian", "debian_benchmarks"
            chosen = benchmark_writers(cache, functools.partial(_fetch_maps, cache))
            settings: dict[str, object] = {"version": _BENCHMARKS_VERSION}
        else:
            raw, output, name = cache / "debian_corpora", arguments.output or "data/corpora", "debian"
            chosen = writers(cache, arguments.pages)
            settings = {"pages": arguments.pages, "version": _VERSION}
        for sentence in prepare(raw, chosen, settings):
            _log.info("%s", sentence)
        _log.info("fetched and laid out in %s after %.0f s", raw, time.monotonic() - started)
        folders = [f"--input={raw}", f"--output={os.fspath(output)}", f"--cache={cache}"]
        build([name, *folders, f"--workers={arguments.workers}"])
        _log.info("done after %.0f s", time.monotonic() - started)


if __name__ == "__main__":
    main()
