"""Whether a text is English or Chinese: its characters decide first, and lingua then judges long Latin texts.

Figures on Tux Paint's stamps, whose sentences are translated into some 60 languages: of texts that pass the characters
and have at least 20 letters, the rule keeps all 176 English ones, and drops 98 % of those in the 19 other languages of
`LANGUAGES` and 89 % of those in languages that it does not know. It also keeps 99.5 % of the one-line descriptions of
Debian packages, which are full of names. Shorter texts are left to the characters: at 10 to 14 letters it would take
8 % of the English texts for another language (`benchmarks/language_rule.py`).

The models take 0.5 GB of memory and some seconds to load in every process; then a core judges some thousand texts a
second. lingua's mode of low accuracy needs a tenth of both, but to drop as much it loses 5 % of the English texts.
"""

from __future__ import annotations

import functools

import regex
from lingua import Language, LanguageDetector, LanguageDetectorBuilder

LETTERS = 20
PROBABILITY = 0.1

# The frequent languages of the web that are written in Latin letters. Every further one costs memory (30 MB) and takes
# probability from English.
LANGUAGES = (
    Language.ENGLISH,
    Language.BOKMAL,
    Language.CATALAN,
    Language.CROATIAN,
    Language.CZECH,
    Language.DANISH,
    Language.DUTCH,
    Language.FINNISH,
    Language.FRENCH,
    Language.GERMAN,
    Language.HUNGARIAN,
    Language.INDONESIAN,
    Language.ITALIAN,
    Language.POLISH,
    Language.PORTUGUESE,
    Language.ROMANIAN,
    Language.SPANISH,
    Language.SWEDISH,
    Language.TURKISH,
    Language.VIETNAMESE,
)

# Scripts, blocks and categories by their Unicode names:
#   a character of another script, also one that is assigned to no script (private use, unassigned);
#   a Latin letter outside the blocks with letters of European names, such as the doubly accented ones of Vietnamese;
#   a letter of no script, such as a mathematical bold A or the long vowel mark of Japanese kana;
#   an accent that composes with no letter, and a digit that is neither ASCII nor full-width.
_FOREIGN = regex.compile(
    r"""(?V1)
    [^\p{Script=Latin}\p{Script=Han}\p{Script=Common}\p{Script=Inherited}]
    | [\p{Script=Latin}--[\p{InBasicLatin}\p{InLatin1Supplement}\p{InLatinExtendedA}\p{InLatinExtendedB}
        \p{InNumberForms}\p{InLetterlikeSymbols}\p{InHalfwidthAndFullwidthForms}\p{InSuperscriptsAndSubscripts}]]
    | [[\p{Letter}&&\p{Script=Common}]--[\u00b5\p{InSpacingModifierLetters}\p{InLetterlikeSymbols}]]
    | [\p{Mark}--[\p{Variation_Selector}\u20e3]]
    | [\p{Decimal_Number}--[0-9\uff10-\uff19]]
    """,
    regex.VERBOSE,
)
_HAN = regex.compile(r"\p{Script=Han}")


def foreign_character(text: str) -> str:
    """The first character that neither English nor Chinese is written with; "" if there is none."""
    if text.isascii():
        return ""
    match = _FOREIGN.search(text)
    return match.group() if match else ""


def has_hanzi(text: str) -> bool:
    """Whether a text has a Chinese character."""
    return not text.isascii() and _HAN.search(text) is not None


def may_be_english(text: str, letters: int = LETTERS, probability: float = PROBABILITY) -> bool:
    """Whether a text in Latin letters is English with at least this probability; True if it has fewer letters."""
    if sum(map(str.isalpha, text)) < letters:
        return True
    return _detector().compute_language_confidence(text, Language.ENGLISH) >= probability


@functools.cache
def _detector() -> LanguageDetector:
    return LanguageDetectorBuilder.from_languages(*LANGUAGES).with_preloaded_language_models().build()
