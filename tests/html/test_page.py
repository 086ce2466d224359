"""Pages and tables: whole documents in which every text is escaped."""

from __future__ import annotations

import html.parser
import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.html import page as html_page
from qwenvl_jax.html.tables import Cell, table


class Elements(html.parser.HTMLParser):
    """The elements of a page. Checks that they close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def document(text: str) -> str:
    """A page in which every plain text is `text`."""
    content = [
        html_page.header(text, "intro", [(text, text)]),
        html_page.section(text, text, text, table([text], [[text], [1]], caption=text, total=True)),
        html_page.grid([html_page.card("title", "content", "chart"), html_page.captioned("", ["one", ""])]),
    ]
    return html_page.page(text, "\n".join(content))


def test_a_page_needs_no_other_file() -> None:
    page = document("plain")
    assert Elements(page).seen[:3] == ["html", "head", "meta"]
    assert not re.search(r"url\(|@import|<script|<link|src=", page)
    assert "prefers-color-scheme: dark" in page


def test_plain_text_never_becomes_an_element() -> None:
    hostile = "<script>\"'&amp;</style></table>"
    assert Elements(document(hostile)).seen == Elements(document("plain")).seen


def test_a_table_marks_its_total_and_keeps_cells_of_html() -> None:
    content = table(["name", "count"], [["a", Cell("<b>1</b>", "best")], ["total", 1]], text_columns=2, total=True)
    assert '<table class="left-2">' in content
    assert '<td class="best"><b>1</b></td>' in content
    assert content.count('<tr class="total">') == 1
    assert content.index('class="total"') > content.index("best")


@given(st.text())
def test_every_character_of_a_page_is_seen_and_can_be_encoded(text: str) -> None:
    shown = html_page.visible(text)
    shown.encode("utf-8")
    kinds = {unicodedata.category(letter) for letter in shown if letter not in "\n\t\u200c\u200d"}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_all_format_characters_are_written_as_numbers() -> None:
    for code in range(0x110000):
        letter = chr(code)
        unseen = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in "\n\t\u200c\u200d"
        if unseen:
            assert html_page.visible(letter) == f"⟨U+{code:04X}⟩", hex(code)
    assert html_page.visible("a 狗 👩‍👩 e\u0301\n") == "a 狗 👩‍👩 e\u0301\n"
