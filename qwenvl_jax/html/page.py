"""The frame of a report: one HTML page that needs no other file, in light or dark as the reader's system prefers.

In this package a parameter named `content`, or ending in `_html`, is HTML and goes into the page as it is. Every other
text is plain and is escaped here, so that no text from a record or a model can become part of a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from qwenvl_jax.html.style import CSS

# Control and format characters, among them those that turn the direction of text round, halves of surrogate pairs, and
# line breaks that are none in HTML. Line feeds, tabs and the joiners within emoji and Persian words are left.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001-\U000e007f]"
)


def page(title: str, content: str, *, style: str = "") -> str:
    """A whole HTML document.

    Args:
      title: shown in the browser's tab.
      content: of the page, from top to bottom.
      style: CSS rules that only this report needs.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{style}</style></head>\n"
        f"<body><main>\n{content}\n</main></body></html>\n"
    )


def header(title: str, intro_html: str, links: Iterable[tuple[str, str]] = (), content: str = "") -> str:
    """The top of a page: its title, a sentence or two, links to the sections and anything that follows them.

    Args:
      title: the heading.
      intro_html: text below the heading.
      links: (anchor, text) of each section.
      content: below the links.
    """
    anchors = "".join(f'<a href="#{escape(anchor)}">{escape(text)}</a>' for anchor, text in links)
    navigation = f"<nav>{anchors}</nav>" if anchors else ""
    return f'<header><h1>{escape(title)}</h1><p class="soft">{intro_html}</p>{navigation}{content}</header>'


def section(anchor: str, title: str, intro: str, content: str) -> str:
    """A part of the page that a link can lead to; without a paragraph if `intro` is empty."""
    paragraph = f'<p class="soft">{escape(intro)}</p>' if intro else ""
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>{paragraph}{content}</section>'


def card(title_html: str, content: str, style: str = "") -> str:
    """A box with a small heading. `style` names further CSS classes."""
    return f'<div class="{" ".join(["card", *style.split()])}"><h3>{title_html}</h3>{content}</div>'


def captioned(figure: str, lines_html: Iterable[str]) -> str:
    """A box with a picture and paragraphs below it; empty paragraphs are left out."""
    caption = "".join(f"<p>{line}</p>" for line in lines_html if line)
    return f'<figure class="card">{figure}<figcaption class="body">{caption}</figcaption></figure>'


def grid(cards: Iterable[str], *, wide: bool = False) -> str:
    """Boxes side by side, as many in a row as fit."""
    return f'<div class="grid{" wide" if wide else ""}">{"".join(cards)}</div>'


def bullets(items_html: Iterable[str]) -> str:
    """A list in small print."""
    return f'<ul class="small">{"".join(f"<li>{item}</li>" for item in items_html)}</ul>'


def visible(document: str) -> str:
    """A page, or a text, in which characters that nobody sees are written as numbers: ⟨U+202E⟩.

    For pages that show texts of strangers. The result can be encoded as UTF-8, and no text in it turns the direction of
    what follows.
    """
    return _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", document)
