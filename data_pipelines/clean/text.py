"""Cleaning of captions (paper, Appendix A): one function per rule, every rule counted.

    kept, counts = clean_captions(captions)

The rules that need whole web corpora (image size, CLIP score) have no object here; these have: one form of each
letter, HTML, special tags, emoji, other scripts, length, several captions of one picture (the longest stays), repeated
sentences.
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

# What HTML calls an element (the living standard and what it has declared obsolete), and Word's paragraph mark. Other
# words in angle brackets are no tags: "if a<b and c>d".
_ELEMENTS = """
a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink blockquote body br
button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div dl dt em embed
fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i iframe image
img input ins isindex kbd keygen label legend li link listing main map mark marquee math menu menuitem meta meter nav
nobr noembed noframes noscript object ol optgroup option output p param picture plaintext pre progress q rb rbc rp rt
rtc ruby s samp script search section select slot small source spacer span strike strong style sub summary sup svg
table tbody td template textarea tfoot th thead time title tr track tt u ul var video wbr xmp o:p
"""
# Attributes that stand without a value.
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
    """Gives every letter its one form (`tags.normal_form`) and removes signs that nobody sees, such as U+200B.

    Two captions that look the same are the same afterwards.
    """
    return [_with_text(c, _visible(c.text)) for c in captions]


def _visible(text: str) -> str:
    if text.isascii():
        return text
    # Signs of the category Cf have no look: zero widths, joiners, marks of direction, soft hyphens.
    return tags.normal_form("".join(sign for sign in text if unicodedata.category(sign) != "Cf"))


def special_tags(captions: Sequence[Caption]) -> list[Caption]:
    """Removes strings that look like a model's or a corpus' special tokens, e.g. `<PERSON>`, `<|endoftext|>`.

    What is left around one may be a tag in its turn, as in `<a<|endoftext|>>`; it is removed too.
    """
    return [_with_text(c, _to_the_end(lambda text: _without_html(_SPECIAL.sub(" ", text)), c.text)) for c in captions]


def html_tags(captions: Sequence[Caption]) -> list[Caption]:
    """Removes HTML tags and resolves entities such as `&amp;`; a tag that an entity hid is removed too.

    A tag has the name of an element of HTML and, if anything more, attributes; an entity ends with a semicolon.
    """
    return [_with_text(c, _without_html(c.text)) for c in captions]


def _without_html(text: str) -> str:
    return _to_the_end(lambda text: _TAG.sub(" ", _visible(_ENTITY.sub(_resolved, text))), text)


def _resolved(entity: re.Match[str]) -> str:
    """The character of an entity; what is none stays, where html.unescape would take "&notes;" for "&not" and "es;"."""
    text = entity.group()
    return html.unescape(text) if text[1] == "#" else html.entities.html5.get(text[1:], text)


def _to_the_end(rewrite: Callable[[str], str], text: str) -> str:
    """Rewrites a text until nothing changes any more; `rewrite` must shorten what it changes, or change it once."""
    before = None
    while text != before:
        before, text = text, rewrite(text)
    return text


def white_space(captions: Sequence[Caption]) -> list[Caption]:
    """Joins runs of white space and trims the ends."""
    return [_with_text(c, " ".join(c.text.split())) for c in captions]


def emoji(captions: Sequence[Caption]) -> list[Caption]:
    """Drops captions with emoji: they are rarely descriptions."""
    return [c for c in captions if not _EMOJI.search(c.text)]


def other_languages(captions: Sequence[Caption]) -> list[Caption]:
    """Drops captions with characters of neither English nor Chinese, and Chinese ones without a hanzi."""
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
    """Of several captions of one picture in one language, keeps the longest (the first of equally long ones)."""
    longest: dict[tuple[str, str], Caption] = {}
    for item in captions:
        kept = longest.setdefault((item.picture, item.language), item)
        if len(item.text) > len(kept.text):
            longest[item.picture, item.language] = item
    chosen = {id(item) for item in longest.values()}
    return [c for c in captions if id(c) in chosen]


def repeated_sentences(captions: Sequence[Caption]) -> list[Caption]:
    """Drops a sentence that stood before, in the same language, whatever its picture."""
    first: dict[tuple[str, str], Caption] = {}
    for item in captions:
        first.setdefault((item.language, item.text), item)
    return list(first.values())


# Rules that rewrite come before those that drop, so that what a tag hid is judged too. An unseen sign may hide a tag,
# and an entity a special tag.
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
      What is left, in the same order, and per rule how many captions it changed and dropped.
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
