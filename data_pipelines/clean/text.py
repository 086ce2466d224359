"""Cleaning of captions (paper, Appendix A): one function per rule, every rule counted.

    kept, counts = clean_captions(captions)

Rules that need web-scale data (image size, CLIP score) do not apply here. These do: one form of each letter, HTML,
special tags, emoji, other scripts, length, several captions of one picture (the longest is kept), repeated sentences.
"""

from __future__ import annotations

import dataclasses
import html
import html.entities
import re
import unicodedata
from collections.abc import Callable, Sequence

from qwenvl_jax.data import tags

MIN_CHARACTERS = {"en": 3, "zh": 1}  # one hanzi is a word
MAX_CHARACTERS = 200


@dataclasses.dataclass(frozen=True)
class Caption:
    """One caption. Captions of equal `picture` (a checksum, or the id) describe the same image."""

    id: str
    picture: str
    language: str
    text: str
    license: str
    source: str


Rule = Callable[[Sequence[Caption]], list[Caption]]

# The elements of HTML (the living standard, obsolete ones included) and Word's paragraph mark. Other words in angle
# brackets are not tags: "if a<b and c>d".
_ELEMENTS = """
a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink blockquote body br
button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl dt em embed
fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe image
img input ins isindex kbd keygen label legend li link listing main map mark marquee math menu menuitem meta meter nav
nobr noembed noframes noscript object ol optgroup option output p param picture plaintext pre progress q rb rbc rp rt
rtc ruby s samp script search section select slot small source spacer span strike strong style sub summary sup svg
table tbody td template textarea tfoot th thead time title tr track tt u ul var video wbr xmp o:p
"""
# Attributes that have no value.
_FLAGS = """
allowfullscreen async autofocus autoplay checked compact controls default defer disabled download hidden ismap itemscope
loop multiple muted nohref noresize noshade novalidate nowrap open playsinline readonly required reversed selected
"""
_TAG = re.compile(
    rf"</(?:{'|'.join(_ELEMENTS.split())})\s*>"
    rf"|<(?:{'|'.join(_ELEMENTS.split())})(?:\s[^<>]*=[^<>]*|(?:\s+(?:{'|'.join(_FLAGS.split())}))*\s*/?)>"
    r"|<!--.*?-->|<!doctype[^<>]*>|<!\[CDATA\[|\]\]>",
    re.IGNORECASE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_SPECIAL = re.compile(r"<\|[^<>|]*\|>|</?(?:ref|box|quad|img|imgpad|person|unk|pad|eos|bos|s)>", re.IGNORECASE)
_EMOJI = re.compile(
    "[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55\u200d\ufe0f\u20e3\u231a-\u231b\u23e9-\u23fa]"
)
# Latin and its accents, general punctuation, currency, CJK ideographs and punctuation, full-width forms.
_FOREIGN = re.compile(r"[^\u0020-\u024f\u2000-\u206f\u20a0-\u20bf\u2122\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
_HANZI = re.compile(r"[\u4e00-\u9fff]")


def one_form(captions: Sequence[Caption]) -> list[Caption]:
    """Gives every letter one form (`tags.normal_form`) and removes invisible characters, such as U+200B.

    Two captions that look the same are equal afterwards.
    """
    return [_with_text(c, _visible(c.text)) for c in captions]


def _visible(text: str) -> str:
    if text.isascii():
        return text
    # Characters of the category Cf are invisible: zero widths, joiners, marks of direction, soft hyphens.
    return tags.normal_form("".join(character for character in text if unicodedata.category(character) != "Cf"))


def special_tags(captions: Sequence[Caption]) -> list[Caption]:
    """Removes strings that look like a model's or a corpus' special tokens, e.g. `<PERSON>`, `<|endoftext|>`.

    If a removal leaves another tag behind, as in `<a<|endoftext|>>`, that one is removed too.
    """
    return [_with_text(c, _until_stable(lambda text: _without_html(_SPECIAL.sub(" ", text)), c.text)) for c in captions]


def html_tags(captions: Sequence[Caption]) -> list[Caption]:
    """Removes HTML tags and resolves entities such as `&amp;`; a tag that an entity hid is removed too.

    A tag has the name of an element of HTML and, if anything more, attributes; an entity ends with a semicolon.
    """
    return [_with_text(c, _without_html(c.text)) for c in captions]


def _without_html(text: str) -> str:
    return _until_stable(lambda text: _TAG.sub(" ", _visible(_ENTITY.sub(_resolved, text))), text)


def _resolved(entity: re.Match[str]) -> str:
    """The character of an entity. Unknown entities stay; html.unescape would read "&notes;" as "&not" and "es;"."""
    text = entity.group()
    return html.unescape(text) if text[1] == "#" else html.entities.html5.get(text[1:], text)


def _until_stable(rewrite: Callable[[str], str], text: str) -> str:
    """Rewrites a text until it no longer changes.

    `rewrite` must make the text shorter, or change it only once; otherwise this does not end.
    """
    while (rewritten := rewrite(text)) != text:
        text = rewritten
    return text


def white_space(captions: Sequence[Caption]) -> list[Caption]:
    """Joins runs of white space and trims the ends."""
    return [_with_text(c, " ".join(c.text.split())) for c in captions]


def emoji(captions: Sequence[Caption]) -> list[Caption]:
    """Drops captions with emoji, which are rarely descriptions."""
    return [c for c in captions if not _EMOJI.search(c.text)]


def other_languages(captions: Sequence[Caption]) -> list[Caption]:
    """Drops captions with characters of other scripts than English and Chinese, and Chinese ones without a hanzi."""
    return [
        c for c in captions if not _FOREIGN.search(c.text) and (c.language == "en" or _HANZI.search(c.text) is not None)
    ]


def text_length(captions: Sequence[Caption]) -> list[Caption]:
    """Drops captions that are too short (punctuation apart) or longer than 200 characters."""
    return [
        c
        for c in captions
        if len(c.text) <= MAX_CHARACTERS and sum(x.isalnum() for x in c.text) >= MIN_CHARACTERS.get(c.language, 3)
    ]


def keep_longest(captions: Sequence[Caption]) -> list[Caption]:
    """Keeps the longest of several captions of one picture in one language; on a tie, the first."""
    longest: dict[tuple[str, str], Caption] = {}
    for item in captions:
        kept = longest.setdefault((item.picture, item.language), item)
        if len(item.text) > len(kept.text):
            longest[item.picture, item.language] = item
    chosen = {id(item) for item in longest.values()}
    return [c for c in captions if id(c) in chosen]


def repeated_sentences(captions: Sequence[Caption]) -> list[Caption]:
    """Drops a caption whose sentence occurred before in the same language, even for another picture."""
    first: dict[tuple[str, str], Caption] = {}
    for item in captions:
        first.setdefault((item.language, item.text), item)
    return list(first.values())


# Rules that rewrite come before rules that drop, so that text hidden by a tag is judged too. An invisible character may
# hide a tag, and an entity a special tag.
RULES: tuple[Rule, ...] = (
    one_form,
    html_tags,
    special_tags,
    white_space,
    emoji,
    other_languages,
    text_length,
    keep_longest,
    repeated_sentences,
)


def clean_captions(
    captions: Sequence[Caption], rules: Sequence[Rule] = RULES
) -> tuple[list[Caption], dict[str, dict[str, int]]]:
    """Applies the rules in order.

    Returns:
      The remaining captions in the same order, and per rule how many it changed and dropped.
    """
    kept = list(captions)
    counts = {}
    for rule in rules:
        before = {(c.id, c.language, c.text) for c in kept}
        length = len(kept)
        kept = rule(kept)
        dropped = length - len(kept)
        changed = sum((c.id, c.language, c.text) not in before for c in kept)
        counts[rule.__name__] = {"changed": changed, "dropped": dropped}
    return kept, counts


def _with_text(caption: Caption, text: str) -> Caption:
    return caption if text == caption.text else dataclasses.replace(caption, text=text)
