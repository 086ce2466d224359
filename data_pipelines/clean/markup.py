"""Text without HTML: tags are removed and entities are resolved as a browser does both; comparison signs stay.

Captions of the web are mostly the `alt` attributes of pictures, so an entity is read as in an attribute: "&copy 2020"
is a copyright sign, "Books&notes" is not "Books¬es". Lexbor, which follows the HTML standard, reads them. Its notion of
a tag is wider than a reader's ("a<b and c>d" has one), so tags are told apart here: a tag is the name of an element of
HTML with nothing behind it, with attributes that have no value in HTML, or with at least one attribute with a value.
"""

from __future__ import annotations

import re

from selectolax.lexbor import LexborHTMLParser

from qwenvl_jax.data.tags import normal_form

# The elements of HTML (the living standard, obsolete ones included) and Word's paragraph mark. The text of an inline
# element continues the text before it; all others begin and end a word.
_INLINE = """
a abbr acronym b basefont bdi bdo bgsound big blink cite code data del dfn em font i ins kbd label mark nobr o:p q
rb rbc rp rt rtc ruby s samp small span strike strong sub sup time tt u var wbr
"""
_OTHERS = """
address applet area article aside audio base blockquote body br button canvas caption center col colgroup datalist
dd details dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6 head
header hgroup hr html iframe image img input isindex keygen legend li link listing main map marquee math menu
menuitem meta meter nav noembed noframes noscript object ol optgroup option output p param picture plaintext pre
progress script search section select slot source spacer style summary svg table tbody td template textarea tfoot
th thead title tr track ul video xmp
"""
# Attributes that have no value.
_FLAGS = """
allowfullscreen async autofocus autoplay checked compact controls default defer disabled download hidden ismap itemscope
loop multiple muted nohref noresize noshade novalidate nowrap open playsinline readonly required reversed selected
"""
_INLINE_NAMES = frozenset(_INLINE.split())
_FLAG_NAMES = frozenset(_FLAGS.split())
_NAMES = "|".join(sorted((*_INLINE.split(), *_OTHERS.split()), key=len, reverse=True))
_ATTRIBUTE = r"""\s++([a-z_:@][\w:.@-]*+)(?>\s*+=\s*+(?>"[^"]*"|'[^']*'|[^\s"'<>][^\s<>]*+))?+"""
_UNNAMED_ATTRIBUTE = _ATTRIBUTE.replace("([", "(?:[", 1)
_TAG = re.compile(
    rf"</(?P<closed>{_NAMES})\s*+>"
    rf"|<(?P<open>{_NAMES})(?P<attributes>(?>{_UNNAMED_ATTRIBUTE})*+)\s*+/?>"
    # A quotation mark is missing, or the text ends within the tag.
    rf"|<(?P<broken>{_NAMES})\s++[a-z_:@][\w:.@-]*+\s*+=[^<>]*+(?:>|\Z)"
    r"|<!--.{0,4000}?-->|<!doctype\b[^<>]*+>|<\?[a-z][^<>]*+>|<!\[CDATA\[|\]\]>",
    re.IGNORECASE | re.DOTALL,
)
_NAME = re.compile(_ATTRIBUTE, re.IGNORECASE)
_NOT_SHOWN = re.compile(r"<(script|style|template)\b[^<>]*+>.{0,4000}?</\1\s*+>", re.IGNORECASE | re.DOTALL)


def without_markup(text: str) -> str:
    """Resolves entities and removes tags, once; a tag that an entity hid is left for the next time."""
    if "&" in text:
        text = _without_entities(normal_form(text))
    if "<" in text or "]]>" in text:
        text = _TAG.sub(_removed, _NOT_SHOWN.sub(" ", text))
    return text


def _without_entities(text: str) -> str:
    node = LexborHTMLParser('<a t="' + text.replace('"', "&quot;") + '">', is_fragment=True).css_first("a")
    return (node.attributes["t"] or "") if node else text


def _removed(tag: re.Match[str]) -> str:
    """The replacement of a tag: nothing for an inline element, else a space. The text itself if it is no tag."""
    attributes = tag["attributes"]
    if attributes and "=" not in attributes and not _FLAG_NAMES.issuperset(_NAME.findall(attributes.lower())):
        return tag.group()
    name = tag["closed"] or tag["open"] or tag["broken"] or ""
    return "" if name.lower() in _INLINE_NAMES else " "
