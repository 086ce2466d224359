"""What the rule `english_or_chinese` keeps of English and of other Latin languages, by length.

    python benchmarks/language_rule.py --cache=data/cache

Tux Paint's stamps carry one sentence in up to 60 languages, of which a part is English by its characters. The other
English texts are the one-line descriptions of the Debian packages of this machine, which are full of names.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from lingua import Language

from data_pipelines.clean.language import LANGUAGES, PROBABILITY, foreign_character, may_be_english
from data_pipelines.fetch.apt import fetch_package
from data_pipelines.quickstart import tuxpaint
from qwenvl_jax.data.tags import normal_form

LENGTHS = ((10, 15), (15, 20), (20, 25), (25, 30), (30, 50), (50, 80), (80, 1000))
STATUS = Path("/var/lib/dpkg/status")
ALIASES = {"nn": "nb"}  # two written forms of one language


def sentences(cache: Path) -> set[tuple[str, str]]:
    """(language, sentence) of all stamps; English copies under other languages are left out."""
    english: set[str] = set()
    others: set[tuple[str, str]] = set()
    for file in fetch_package(tuxpaint.PACKAGE, cache, tuxpaint.PATTERNS).rglob("*.txt"):
        lines = file.read_text(errors="replace").splitlines()
        english |= {line.strip() for line in lines[:1]}
        for line in lines[1:]:
            match = re.match(r"([a-z]+)\S*\.utf8=(.+)", line)
            if match and match[1] != "en":
                others.add((ALIASES.get(match[1], match[1]), match[2].strip()))
    return {("en", text) for text in english} | {(code, text) for code, text in others if text not in english}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    arguments = parser.parse_args()
    known = {language.iso_code_639_1.name.lower() for language in LANGUAGES if language != Language.ENGLISH}
    groups: dict[str, list[str]] = {"English": [], "descriptions": [], "19 languages": [], "unknown languages": []}
    for code, text in sorted(sentences(arguments.cache)):
        group = "English" if code == "en" else "19 languages" if code in known else "unknown languages"
        groups[group].append(text)
    if STATUS.exists():
        lines = STATUS.read_text(errors="replace").splitlines()
        groups["descriptions"] = [line[13:].strip() for line in lines if line.startswith("Description: ")]
    start = time.perf_counter()
    may_be_english("a text that loads the models", 1)
    print(f"models loaded in {time.perf_counter() - start:.1f} s; probability of at least {PROBABILITY}")
    start = time.perf_counter()
    judged = 0
    for group, texts in groups.items():
        texts = [text for text in map(normal_form, texts) if not foreign_character(text)]
        for least, most in LENGTHS:
            chosen = [text for text in texts if least <= sum(map(str.isalpha, text)) < most]
            kept = sum(may_be_english(text, 1) for text in chosen)
            judged += len(chosen)
            print(f"{group:18s} {least:3d} to {most - 1:3d} letters: {kept} of {len(chosen)} kept")
    print(f"{judged / (time.perf_counter() - start):.0f} texts/s on one core")


if __name__ == "__main__":
    main()
