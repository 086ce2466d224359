"""Fills templates with texts and regions, and fits phrases and captions of corpora into sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from types import ModuleType
from typing import NamedTuple

from data_pipelines.dialogues import templates_en, templates_zh
from qwenvl_jax.data.dialogues import Part

TEMPLATES: dict[str, ModuleType] = {"en": templates_en, "zh": templates_zh}

_FIELD = re.compile(r"\{(\w+)\}")
_DETERMINED = re.compile(
    r"(?:an?|the|this|that|these|those|his|her|its|their|my|your|our|some|several|many|two|three|four|five|six|\d+)\b",
    re.IGNORECASE,
)
_INDEFINITE = re.compile(r"^an? ")
_SENTENCE_END = (".", "!", "?", "。", "！", "？", "…", '"', "”")
_WORD = re.compile(r"[a-z0-9]+|[\u3400-\u9fff]")
# Words that a phrase about something else may also have.
_COMMON_ENGLISH = (
    "a an the this that these those his her its their of in on at to by with and or for from is are one two three "
    "left right top bottom middle center front back side near next behind under over above"
)
_COMMON = frozenset(_COMMON_ENGLISH.split()) | frozenset("的一个只条张在上下左右里中前后边和与")


def filled(template: str, **values: str | Sequence[Part]) -> list[Part]:
    """The parts of a turn: texts are put into the template, parts cut it; no value is read as a template."""
    parts: list[Part] = []
    position = 0
    text = ""
    for field in _FIELD.finditer(template):
        text += template[position : field.start()]
        position = field.end()
        value = values[field[1]]
        if isinstance(value, str):
            text += value
            continue
        if text:
            parts.append({"text": text})
        parts += value
        text = ""
    text += template[position:]
    if text:
        parts.append({"text": text})
    return parts


def named(phrase: str, language: str) -> str:
    """A phrase within a sentence: in English with "the" if it has no determiner, and a small first letter."""
    if language != "en":
        return phrase.rstrip("。. ")
    phrase = phrase.rstrip(". ")
    if _DETERMINED.match(phrase):
        return phrase[0].lower() + phrase[1:]
    if phrase.isupper() or (phrase.istitle() and " " in phrase):  # a name
        return phrase
    return f"the {phrase[0].lower()}{phrase[1:]}"


def definite(phrase: str, language: str) -> str:
    """As `named`, but with "the" in place of "a", for a thing whose position is asked."""
    return _INDEFINITE.sub("the ", named(phrase, language)) if language == "en" else named(phrase, language)


def sentence(text: str, language: str) -> str:
    """A caption as a sentence: a capital first letter and an end."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith(_SENTENCE_END) else text + TEMPLATES[language].END


def key_words(phrase: str) -> frozenset[str]:
    """The words, or the Chinese characters, that tell a phrase from others."""
    return frozenset(_WORD.findall(phrase.casefold())) - _COMMON


class Vocabulary(NamedTuple):
    """The words of texts and everything with which they begin."""

    words: frozenset[str]
    beginnings: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """The vocabulary of texts; see `key_words`."""
        words = frozenset[str]().union(*map(key_words, texts))
        return cls(words, frozenset(word[:end] for word in words for end in range(1, len(word) + 1)))

    def has_any(self, words: Set[str]) -> bool:
        """Whether it has any of these words, or a word of which one is the beginning of the other, such as a plural."""
        if words & self.beginnings:
            return True
        return any(word[:end] in self.words for word in words for end in range(1, len(word)))
