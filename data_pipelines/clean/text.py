"""Rules on the texts of a pair (paper, A.1, steps 4 to 8, and the special tags of academic sets).

    recipe = (*REWRITING, rule(emoji), rule(english_or_chinese), rule(text_length, least_en=5))

Rules that rewrite come before rules that drop, in the order of `REWRITING`: an entity may hide a tag, a tag a special
token, and mojibake a control character. Each of them repeats the ones before it if it changes a text, so applying
a recipe twice gives the same result as applying it once. A rule that drops judges every text by itself; a pair is
dropped if no text is left.
Questions, answers and dialogues are not touched (A.2: nothing special is done to them).
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata

import emoji as emoji_data
import ftfy
import regex

from data_pipelines.clean.language import LETTERS, foreign_character, has_hanzi, may_be_english
from data_pipelines.clean.markup import without_markup
from data_pipelines.clean.patterns import irregularity, without_patterns
from data_pipelines.clean.rewriting import Step, detached, drop_texts, rewrite_texts, settle
from data_pipelines.clean.rule import Rewritten, Verdict, rule
from data_pipelines.pair import RawPair
from qwenvl_jax.data import tags
from qwenvl_jax.data.languages import LANGUAGES, guess_language

# Format and control characters, and all others that are never drawn: zero widths, marks of direction, soft hyphens,
# variation selectors, Hangul fillers. White space stays, and the selector that makes a sign an emoji (U+FE0F).
_INVISIBLE = regex.compile(
    r"(?V1)[[\p{Cf}\p{Default_Ignorable_Code_Point}]--\ufe0f]|[\p{Cc}--\s]"
    r"|(?<![\p{Emoji}--[0-9#*]])\ufe0f(?!\u20e3)"
)
# Commands to a terminal (ECMA-48), such as colours (CSI), titles and links (OSC), and choices of a character set.
_TERMINAL = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: parameters, then one final character
    r"|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC, DCS, SOS, PM and APC: a text up to BEL or ESC \
    r"|[ -/]+[0-~])"
)
# Ligatures of printers and radicals that look like characters; NFC leaves them apart from what they stand for.
_FORMS = regex.compile(r"[\p{InAlphabeticPresentationForms}\p{InKangxiRadicals}]+")

# Tokens of this model and of others, written out.
_MODEL_TOKENS = regex.compile(
    r"<\|[^<>|]*+\|>|"
    + "|".join(
        regex.escape(tag) for tag in (*tags.IMAGE_TAGS, "<unk>", "<pad>", "<eos>", "<bos>", "<s>", "</s>", "<mask>")
    )
    + r"|<image>|<extra_id_\d++>|<<SYS>>|<</SYS>>|\[/?(?:INST|CLS|SEP|PAD|MASK|UNK)\]",
    regex.IGNORECASE,
)
# Words that academic caption sets have in place of names (CC12M: <PERSON>).
_CORPUS_TAGS = re.compile(
    r"<(?:person|people|name|number|date|time|location|place|organi[sz]ation|org|url|user|email|phone|emoticon)>",
    re.IGNORECASE,
)
# Signs of emoji lists that texts used before emoji: they are emoji only if U+FE0F follows.
_SIGNS = frozenset("©®™‼⁉ℹ↔↕↖↗↘↙↩↪Ⓜ▪▫▶◀◻◼⤴⤵〰〽㊗㊙")


def _fixed_encoding(text: str) -> str:
    return text if text.isascii() else ftfy.fix_encoding(text)


def _one_form(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    if "\x1b" in text:
        text = _TERMINAL.sub("", text)
    text = _FORMS.sub(lambda match: unicodedata.normalize("NFKC", match.group()), tags.normal_form(text))
    return tags.normal_form(_INVISIBLE.sub("", text))


def _without_tokens(text: str) -> str:
    return _MODEL_TOKENS.sub(" ", text)


def _without_patterns(text: str) -> str:
    return without_patterns(text)[0]


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


_STEPS: tuple[Step, ...] = (
    _fixed_encoding,
    _one_form,
    without_markup,
    _without_tokens,
    _without_patterns,
    _single_spaces,
)


def _rewriting(pair: RawPair, step: Step) -> RawPair:
    """Applies a step; if it changes a text, it and those before it until nothing changes."""
    steps = _STEPS[: _STEPS.index(step) + 1]
    return rewrite_texts(pair, lambda text: text if step(text) == text else settle(text, steps))


def mojibake(pair: RawPair) -> RawPair:
    """Repairs text that was decoded by the wrong encoding, such as "cafÃ©" (ftfy)."""
    return _rewriting(pair, _fixed_encoding)


def one_form(pair: RawPair) -> RawPair:
    """Gives every character one form (`tags.normal_form`) and removes those that are never drawn, such as U+200B.

    Accents are composed, lone surrogates become U+FFFD, CJK compatibility ideographs, Kangxi radicals and ligatures
    become plain characters. Commands to a terminal, such as ESC [31m, are removed as a whole. Full-width letters and
    signs stay full-width. Two texts that look the same are equal afterwards.
    """
    return _rewriting(pair, _one_form)


def html(pair: RawPair) -> RawPair:
    """Removes HTML tags and resolves entities (A.1, step 7; see `markup`)."""
    return _rewriting(pair, without_markup)


def model_tokens(pair: RawPair) -> RawPair:
    """Removes strings that are special tokens of this model or another one, such as `<|endoftext|>` and `<box>`."""
    return _rewriting(pair, _without_tokens)


def irregular_patterns(pair: RawPair) -> Verdict:
    """Removes URLs, file names, phone numbers and the other named patterns of `patterns.PATTERNS` (A.1, step 8)."""
    rewritten = _rewriting(pair, _without_patterns)
    if rewritten is pair:
        return pair
    names = {name for text in pair.texts for name in without_patterns(text)[1]}
    return Rewritten(rewritten, tuple(sorted(names)))


def white_space(pair: RawPair) -> RawPair:
    """Joins runs of white space into one space and trims the ends."""
    return _rewriting(pair, _single_spaces)


def corpus_tags(pair: RawPair) -> Verdict:
    """Drops texts with a special tag of an academic set, such as `<PERSON>` (A.1, last paragraph)."""
    return drop_texts(pair, lambda text: "a special tag" if _CORPUS_TAGS.search(text) else "")


def emoji(pair: RawPair) -> Verdict:
    """Drops texts with an emoji (A.1, step 5), also one that is written without U+FE0F, such as ☀.

    ©, ®, ™, arrows, small squares and a few more signs are emoji only with U+FE0F, because texts had them before.
    """
    return drop_texts(pair, lambda text: "an emoji" if _has_emoji(text) else "")


def _has_emoji(text: str) -> bool:
    if text.isascii():
        return False
    return any(match["emoji"] not in _SIGNS for match in emoji_data.emoji_list(text))


def english_or_chinese(pair: RawPair, letters: int = LETTERS) -> Verdict:
    """Drops texts with characters that neither English nor Chinese has, or in another language (A.1, step 4).

    A pair that is stated to be Chinese needs a Chinese character. Latin text of at least `letters` letters is tested
    for English (`language.may_be_english`); 0: no text is. A text with a Chinese character is taken for Chinese.
    """

    def reason_against(text: str) -> str:
        if foreign_character(text):
            return "a character of another script"
        if has_hanzi(text):
            return ""
        if pair.language == "zh":
            return "no Chinese character"
        return "" if not letters or may_be_english(text, letters) else "another language"

    return drop_texts(pair, reason_against)


def irregular_texts(pair: RawPair) -> Verdict:
    """Drops texts that are irregular as a whole: placeholders, mostly digits, code (`patterns.IRREGULAR_TEXTS`)."""
    return drop_texts(pair, irregularity)


def text_length(
    pair: RawPair,
    least_en: int = 3,
    least_zh: int = 1,
    most_en: int = 200,
    most_zh: int = 200,
    least_words_en: int = 1,
) -> Verdict:
    """Drops texts that are too short or too long (A.1, step 6).

    Args:
      pair: its stated language counts; else that of each text is guessed.
      least_en, least_zh: letters and digits; one hanzi is a word.
      most_en, most_zh: characters.
      least_words_en: words, separated by white space.
    """
    least = {"en": least_en, "zh": least_zh}
    most = {"en": most_en, "zh": most_zh}

    def reason_against(text: str) -> str:
        language = pair.language if pair.language in LANGUAGES else guess_language(text)
        if len(text) > most[language]:
            return "too long"
        if sum(map(str.isalnum, text)) < least[language]:
            return "too short"
        return "too few words" if language == "en" and len(text.split()) < least_words_en else ""

    return drop_texts(pair, reason_against)


def longest_caption(pair: RawPair) -> RawPair:
    """Keeps the longest of several texts of a pair, the first on a tie (A.1, last paragraph).

    `dedup.LongestText` does the same across pairs.
    """
    if len(pair.texts) < 2:
        return pair
    first = max(range(len(pair.texts)), key=lambda index: len(pair.texts[index]))
    regions = pair.regions if first == 0 else tuple(detached(region) for region in pair.regions)
    return dataclasses.replace(pair, texts=(pair.texts[first],), regions=regions)


REWRITING = tuple(rule(each) for each in (mojibake, one_form, html, model_tokens, irregular_patterns, white_space))
