r"""The shapes of tokens in captions, as stanford-corenlp 3.4.1 splits them.

The table was made from the outside: the program was given texts, and a shape was written down for each group of texts
that it keeps in one piece (`tests/evaluation/metrics/test_ptb.py` repeats the comparison). `tokenizer.split` takes the
longest shape at a position; among equally long ones, the first of the table.

Patterns see one character for each kind (`characters.kinds`), so `[A-Za-z\xe9]` stands for all letters. Where a pattern
says A-Z, other letters do not count.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from qwenvl_jax.evaluation.metrics.ptb import words

Spelling = Callable[[str], str]


class Shape(NamedTuple):
    """One way in which a token looks.

    Attributes:
      starts: the characters that it may begin with.
      pattern: the token. A group `rest` must follow and belongs to later tokens; it counts for the length.
      spelled: the token as written out; None if it is left out.
    """

    starts: re.Pattern[str]
    pattern: re.Pattern[str]
    spelled: Spelling | None


# ---- Characters

_OTHER_LETTERS = "\u00e9\u0130\u0131\u017f\u212a"  # the last four fold to ASCII, so they are kinds of their own
_MARK = "\u0301"
_HYPHENATION = "\u00ad"  # a soft hyphen, which leaves a word
_LETTER = f"[A-Za-z{_OTHER_LETTERS}]"
_DIGIT = "[0-9\u0663]"
_ALNUM = f"[A-Za-z0-9{_OTHER_LETTERS}\u0663]"
_SPACE = "[ \t\n\u2000]"
_ANY_SPACE = "[ \t\n\u2000\u00a0]"
_HYPHEN = "[-\u058a\u2010\u2011]"
_APOSTROPHE = "(?:['\u2019\x92]|&(?i:apos);)"
_CURLY_APOSTROPHE = "(?:[\u2019\x92]|&(?i:apos);)"
_NAME_APOSTROPHE = "(?:['\u2019\x92`\u2018\u201b\x91]|&(?i:apos);)"  # within names, quotation marks pass for one

# ---- Spellings

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_QUOTES: dict[str, str] = {
    **dict.fromkeys("\u2018\u2039\x91\u201b", "`"),
    **dict.fromkeys("\u2019\u203a\x92", "'"),
    **dict.fromkeys("\u201c\xab\x93", "``"),
    **dict.fromkeys("\u201d\xbb\x94", "''"),
}
_MONEY = {"\u20ac": "$", "\x80": "$", "\u20a0": "$", "\xa4": "$", "\xa3": "#", "\xa2": "cents"}
_FRACTIONS = {"\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": "''", "apos": "'"}


def _same(text: str) -> str:
    return text


def _as(token: str) -> Spelling:
    return lambda text: token


def _by(table: dict[str, str]) -> Spelling:
    """Every character by a table; the others as they are."""
    translation = str.maketrans(table)
    return lambda text: text.translate(translation)


def _joined(text: str) -> str:
    """A word without its soft hyphens; a hyphen if nothing else is left."""
    return text.replace(_HYPHENATION, "") or "-"


def _straight(text: str) -> str:
    return _quotes(text.replace("&apos;", "'"))


def _ampersands(text: str) -> str:
    return text.replace("&amp;", "&")


_quotes = _by(_QUOTES)
_unbroken = _by({" ": "\u00a0", "(": "-lrb-", ")": "-rrb-"})  # a token has no space
_face = _by({"(": "-lrb-", ")": "-rrb-"})


def _entity(text: str) -> str:
    return _ENTITIES[text.strip("&;").lower()]


# ---- Making the table

_ANYTHING = re.compile("", re.DOTALL)


def _shape(starts: str, pattern: str, spelled: Spelling | None = _same, *, cased: bool = True) -> Shape:
    """One row of the table.

    Args:
      starts: a class of characters without its brackets; empty for all.
      pattern: of the token.
      spelled: see `Shape`.
      cased: whether capitals and small letters differ.
    """
    flags = re.DOTALL if cased else re.DOTALL | re.IGNORECASE
    first = re.compile(f"[{starts}]", flags) if starts else _ANYTHING
    return Shape(first, re.compile(pattern, flags), spelled)


def _one_of(items: Iterable[str], *, capital: bool = False) -> str:
    """A pattern for any of some texts, long ones first. With `capital`, only the first letter must be as given."""
    patterns = []
    for item in sorted(items, key=len, reverse=True):
        whole = re.escape(item)
        patterns.append(f"{re.escape(item[0])}(?i:{re.escape(item[1:])})" if capital and len(item) > 1 else whole)
    return f"(?:{'|'.join(patterns)})"


# ---- Words

_IN_WORD = f"A-Za-z{_OTHER_LETTERS}{_MARK}{_HYPHENATION}"
_WORD_STARTS = f"{_IN_WORD}&"
_NUMBER_STARTS = "0-9\u0663"
_ALNUM_STARTS = f"A-Za-z0-9{_OTHER_LETTERS}\u0663"
_ACCENTED = "&(?i:[aeiou](?:acute|grave|uml));"  # as HTML writes accents; a letter like others
_WORD = f"(?:[{_IN_WORD}]|{_ACCENTED})(?:[{_IN_WORD}0-9\u0663]|{_ACCENTED})*"
_WORDS = f"{_WORD}(?:[.!?]{_WORD})*"  # a.b, yahoo!answers
_COUNTED = f"{_DIGIT}+{_LETTER}{_ALNUM}*"  # 20th, 4x4
_ELIDED = f"[dDlLoO]{_NAME_APOSTROPHE}{_ALNUM}{_ALNUM}+"  # o'clock, l'homme
_PART = f"(?:{_ELIDED}|{_ALNUM}+)"
_SNAKE = f"{_PART}(?:_{_PART})*"
_HYPHENATED = f"{_SNAKE}(?:{_HYPHEN}{_SNAKE})+"
_INITIALS = "(?:[A-Za-z]\\.){2,}"
_ASCII_PART = f"(?:{_INITIALS}|[A-Za-z0-9{_HYPHENATION}]+)"
_ASCII_HYPHENATED = f"[A-Za-z0-9][A-Za-z0-9.,{_HYPHENATION}]*(?:-{_ASCII_PART})+"  # u.s.-based
_FIRMS = "[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+"  # at&t
_SUFFIX = "(?:[sSmMdD]|[lL][lL]|[rR][eE]|[vV][eE])"  # of it's, I'm, he'd, we'll, you're, I've
# A period before a comma, colon or semicolon stays with any of these: "ltd.,".
_ENDED = (_WORDS, _COUNTED, f"{_DIGIT}+", _SNAKE, _HYPHENATED, _ASCII_HYPHENATED, _FIRMS)
_SLASHED = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"

_TAG_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = f"{_TAG_NAME}(?: *= *(?:\"[^\"\n]*\"|'[^'\n]*'|[A-Za-z0-9_:.-]+))?"
_TAG = f"(?:<{_TAG_NAME}(?: +{_ATTRIBUTE})* */?>|</{_TAG_NAME} *>|<[!?][A-Za-z-][^>\n]*>)"

MARKUP = (
    _shape("<", _TAG, _by({" ": "\u00a0"})),
    _shape("&", "&(?i:amp|lt|gt);|&(?:quot|apos);", _entity),
    _shape("&", "&(?:mdash|ndash|md);", _as("--"), cased=False),
    _shape("&", "&nbsp;", None, cased=False),
    _shape("&", "&#[0-9]+;|&(?:quot|apos);", cased=False),
    _shape("&", f"&{_one_of(words.ENTITIES)};", cased=False),
)

# Two tokens without a space between them.
CONTRACTIONS = (
    *(_shape("a-z", f"{first}(?P<rest>{second})", cased=False) for first, second in words.MERGED),
    _shape(
        f"A-Za-z{_HYPHENATION}",
        f"[A-Za-z{_HYPHENATION}]*(?![nN])[A-Za-z]{_HYPHENATION}*(?P<rest>[nN]{_NAME_APOSTROPHE}[tT])",
        _joined,
    ),
    _shape("nN", f"[nN]{_NAME_APOSTROPHE}[tT]", _straight),
    _shape(_WORD_STARTS, f"{_WORDS}(?P<rest>{_APOSTROPHE}{_SUFFIX})", _joined),
    # Before a letter of ASCII, a straight apostrophe opens a quotation.
    _shape("'\u2019\x92&", f"'{_SUFFIX}(?![A-Za-z])|{_CURLY_APOSTROPHE}{_SUFFIX}", _straight),
    _shape("'", "'t(?P<rest>is|was)", cased=False),
    _shape("'\u2019\x92&", f"{_APOSTROPHE}n{_APOSTROPHE}|{_CURLY_APOSTROPHE}n|'n(?={_SPACE})", cased=False),
    _shape("'\u2019\x92&", _APOSTROPHE + _one_of(words.CLIPPED), cased=False),
    _shape("dlj", f"[dlj]{_APOSTROPHE}", cased=False),
    _shape("y", f"y{_APOSTROPHE}(?P<rest>{_LETTER})", cased=False),
)

# A period belongs to these words. With `-?.` as its rest, a shape wins over a word that goes on with one letter.
ABBREVIATIONS = (
    _shape("a-z", f"{_one_of((*words.ABBREVIATIONS, 'ph.d'))}\\.(?P<rest>-?.)", cased=False),
    _shape("A-Z", f"{_one_of(words.CAPITALISED_ABBREVIATIONS, capital=True)}\\.(?P<rest>-?.)"),
    _shape("a-z", f"{_one_of(words.NUMBERED)}\\.(?P<rest> ?{_DIGIT})", cased=False),
    _shape("a-z", f"{_one_of(words.TITLES)}\\.", cased=False),
    # Of these, some letters must be small.
    _shape("pP", "[pP]{1,2}[tT][ey][sS]?\\.(?P<rest>-?.)"),
    _shape("mM", "[mM][ft][gG]\\."),
    # "aisle B. The": the sentence ends. A tag begins a sentence as well.
    _shape(
        "A-Za-z",
        f"[A-Za-z](?P<rest>\\.(?!\n){_ANY_SPACE}+"
        f"(?:{_one_of(words.SENTENCE_STARTS, capital=True)}|{_TAG}){_ANY_SPACE})",
    ),
    _shape("A-Za-z", f"{_INITIALS}|[A-Za-z]\\."),
    *(_shape(_WORD_STARTS + _NUMBER_STARTS, f"{word}\\.(?P<rest>[,;:])", _joined) for word in _ENDED),
)

WORDS = (
    _shape(_WORD_STARTS, _WORDS, _joined),
    _shape(_NUMBER_STARTS, _COUNTED),
    _shape(_ALNUM_STARTS, _SNAKE),
    _shape(_ALNUM_STARTS, _HYPHENATED),
    _shape("A-Za-z0-9", _ASCII_HYPHENATED, _joined),
    _shape("A-Z", _FIRMS, _ampersands),
    _shape("A-HJ-XZn", f"[A-HJ-XZn]{_NAME_APOSTROPHE}{_LETTER}{_LETTER}+"),  # m'lord
    _shape(_WORD_STARTS, f"{_LETTER}+[aeiouyAEIOUY]{_NAME_APOSTROPHE}[aeiouA-Z]{_LETTER}*"),  # hawai'i
    _shape("oO", f"[oO]{_NAME_APOSTROPHE}[oO]"),
    _shape("a-z", _one_of(words.WITH_APOSTROPHE), cased=False),
    _shape("a-z", _one_of(words.WITH_ANY_APOSTROPHE).replace("'", _APOSTROPHE), cased=False),
    _shape("ap", "(?:pro|anti)-", cased=False),
    _shape("cfs", "[cf]#|c\\+\\+|s&p-500", cased=False),
    _shape("A-Z", "[A-Z]+\\$"),  # us$
    _shape("A-Za-z0-9", f"{_SLASHED}(?:\\\\?/{_SLASHED}){{1,2}}"),  # and/or
    _shape("#", f"#(?:[{_IN_WORD}]|{_ACCENTED})+"),
    _shape("@", "@[A-Za-z_][A-Za-z0-9_]*"),
)

# ---- Numbers

_DIGITS = f"{_DIGIT}(?:{_HYPHENATION}*{_DIGIT})*"
_POINT = "[.,:\u066b\u066c]"
_GAP = "[- \u00a0]"
_AREA = f"(?:\\+{{0,2}}[0-9]{{2,4}}{_GAP})?(?:[0-9]{{2,4}}{_GAP}|\\([0-9]{{2,3}}\\)[ \u00a0]?)"
_ABROAD = f"\\+{{1,2}}[0-9]{{2,4}}{_GAP}"

NUMBERS = (
    _shape(
        f"-+0-9\u0663.,:\u066b\u066c{_HYPHENATION}",
        f"(?:[-+]?{_HYPHENATION}?{_DIGITS}|[-+]?{_POINT}{_DIGITS})(?:{_POINT}{_DIGITS})*",
        _joined,
    ),
    _shape(_NUMBER_STARTS, f"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}"),  # a date
    _shape(
        _NUMBER_STARTS, f"(?:{_DIGIT}{{1,4}}{_GAP})?{_DIGIT}{{1,4}}(?:\\\\?/|\u2044){_DIGIT}{{1,4}}", _unbroken
    ),  # 1 1/2
    _shape("'\u2019\x92&", f"{_APOSTROPHE}(?:[2-9]0[sS]|[0-9]{{2}}(?={_SPACE}))"),  # '80s
    _shape("+(0-9", f"(?:{_AREA}|{_ABROAD})[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}", _unbroken),  # a telephone
    _shape("\u00bd", "\u00bd", lambda text: _FRACTIONS.get(text, text)),
    _shape("\u207a\u207b\u208a\u208b\xb2\u2082", "[\u207a\u207b\u208a\u208b]?(?:\xb2+|\u2082+)"),
    _shape("\u207a\u207b\u208a\u208b", "."),
    _shape("\u20ac", "\u20ac", _by(_MONEY)),
)

# ---- Addresses and files

_NO_ADDRESS = ' \t\n<>|()"'
_IN_ADDRESS = f"[^{_NO_ADDRESS}{{}}]"
_TWO = "\ue001"  # a character that is two to the program, so it alone is long enough
_PATH = f"/(?:[^{_NO_ADDRESS}]+[^{_NO_ADDRESS}.,!?{{}}-]|{_TWO})"
_HOST = "[^ \t\nA-Z!\"$'(),./0-9:;<=>?@[\\]\\\\^_`{|}-]+"  # written in small letters, but of any script
_SITE = f"www\\.(?:[^{_NO_ADDRESS}.,!?{{}}]+\\.)+[a-z]{{2,4}}"
_FILE_PART = f"(?:[{_IN_WORD}0-9\u0663]|{_ACCENTED})+"
_MAIL = f"[^{_NO_ADDRESS}{{}}\u00a0.]+"

FILES = (
    _shape(
        _WORD_STARTS + _NUMBER_STARTS,
        f"{_FILE_PART}(?:\\.{_FILE_PART})*\\.(?i:{_one_of(words.FILE_ENDINGS)})(?=[ \t\n\u2000.,!?])",
    ),
)

ADDRESSES = (
    _shape("h", f"https?://(?:{_IN_ADDRESS}+[^{_NO_ADDRESS}.,!?{{}}-]|{_TWO})", cased=False),
    _shape("w", _SITE, cased=False),
    _shape("w", f"{_SITE}{_PATH}", cased=False),
    _shape("", f"{_HOST}(?:\\.{_HOST})*\\.(?i:com|net|org|edu)(?:{_PATH})?"),
    _shape("<&A-Za-z0-9", f"(?:<|&(?i:lt);)?[A-Za-z0-9][^{_NO_ADDRESS}{{}}\u00a0]*@{_MAIL}(?:\\.{_MAIL})*>?"),
)

# ---- Faces

_EYE = "[-^x=~<>']"

FACES = (
    _shape("<>:;=", "[<>]?[:;=][-'*o]?[dDpPO)(\\[\\]{@|\\\\](?![A-Za-z0-9])", _face),  # :-)
    _shape("-^x=~<>'", f"{_EYE}_{_EYE}"),  # ^_^
    _shape("(", f"\\((?:{_EYE}[_.]?{_EYE}|[\\^x=~<>']-[\\^x=~<>'`])\\)", _face),
)

# ---- Signs

_ONE_QUOTE = "\u2018\u2019\u201c\u201d\u2039\u203a\xab\xbb\x91-\x94\u201b"

SIGNS = (
    _shape("()[\\]{}", "[()\\[\\]{}]", _by(_BRACKETS)),
    _shape("/\\\\|~^=%$+<>\xa9\u2044\u201a\u201e\u201f&", "."),
    _shape("#@*_", "#+|@+|\\*+|_+"),
    _shape("\\\\<>", "\\\\\\*|<<|>>"),
    _shape("!?", "[!?]+"),
    _shape(".", "\\.{3,5}|\\.(?: \\.){2,4}", _as("...")),
    _shape("\u2026", "\u2026", _as("...")),
    _shape(".,;:\u3001", "."),
    _shape("-", "-{2,4}", _as("--")),
    _shape("\u2013\u2014\u2015\x96\x97", ".", _as("--")),
    _shape("-", "-+"),
    _shape('"', '"', _as("''")),
    _shape("'`", "''|``|['`]"),
    _shape(f"{_ONE_QUOTE}`\u201a\u201e\u201f", f"[{_ONE_QUOTE}`\u201a\u201e\u201f]{{2}}|[{_ONE_QUOTE}]", _by(_QUOTES)),
)

TABLE: tuple[Shape, ...] = (
    *MARKUP,
    *CONTRACTIONS,
    *ABBREVIATIONS,
    *FILES,
    *WORDS,
    *NUMBERS,
    *ADDRESSES,
    *FACES,
    *SIGNS,
)


@functools.cache
def shapes_from(first: str) -> tuple[Shape, ...]:
    """The shapes that may begin with the representative of a kind, in the order of the table."""
    return tuple(shape for shape in TABLE if shape.starts.match(first))
