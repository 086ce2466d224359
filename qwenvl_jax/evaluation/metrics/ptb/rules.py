"""The rules of the PTB tokenizer: which texts are one token.

At each position every rule is tried, and the one that reaches furthest wins; of several, the first. The context that a
rule asks for counts as reached but is not part of the token. Patterns see the kinds of `characters.kinds`; they are
matched in POSIX mode, whose choice is the longest one.

Literal words ignore case, classes such as `[A-Z]` do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import regex

from qwenvl_jax.evaluation.metrics.ptb import characters, words

_LETTER = rf"[A-Za-z{characters.LETTER}\u0130\u0131\u017f\u212a]"
_DIGIT = rf"[0-9{characters.DIGIT}]"
_ENTITY_LETTER = r"&[aeiouyAEIOUY](?i:acute|grave|uml);"
_WORD_LETTER = rf"(?:[A-Za-z{characters.LETTER}\u0130\u0131\u017f\u212a{characters.MARK}\xad]|{_ENTITY_LETTER})"
_WORD_CHARACTER = rf"(?:{_WORD_LETTER}|{_DIGIT})"
_WORD = rf"{_WORD_LETTER}{_WORD_CHARACTER}*(?:[.!?]{_WORD_LETTER}{_WORD_CHARACTER}*)*"
_APOSTROPHE = r"(?:['\x92\u2019]|(?i:&apos;))"
_LETTER_APOSTROPHE = r"(?:[`'\x92\u2019\x91\u2018\u201b]|(?i:&apos;))"
_SPACE = r"[ \t\u2000\xa0]"
_NEWLINE = r"(?:\r\n|[\r\n\x0b\x0c\x85\u2028\u2029])"
_SPACE_OR_NEWLINE = rf"(?:{_SPACE}|{_NEWLINE})"
_HYPHEN = r"[-_\u058a\u2010\u2011]"
_NOT_IN_ADDRESS = r"[^ \t\n\f\r\"<>|()]"
# Small letters, characters beyond ASCII and a few signs: the tokenizer counts no capital, digit or hyphen.
_DOMAIN_CHARACTER = r"[^\t\n\f\r \"$'(),\-./0-9:;<=>?@A-Z\[\\\]\^_`!{}|]"
_LAST_OF_ADDRESS = r"[^ \t\n\f\r\"<>|.!?(){},-]"
_NOT_IN_MAIL = r"[^ \t\n\f\r\"<>|(){}\xa0]"
_MAIL_LABEL = r"[^ \t\n\f\r\"<>|(){}.\xa0]+"
_PATH = rf"(?:/(?:{_NOT_IN_ADDRESS}+{_LAST_OF_ADDRESS}|{characters.BEYOND}))?"


def _any_of(texts: list[str]) -> str:
    return "(?i:" + "|".join(texts) + ")"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
      pattern: the group `token` is the token, the rest its context.
      rewrite: from the text of the token to what is written; None if nothing is.
      drop: how many characters at the end of the token are given back, which then start the next token.
    """

    pattern: regex.Pattern[str]
    rewrite: Callable[[str], str] | None
    drop: int = 0


def _same(text: str) -> str:
    return text


_CASELESS_GROUP = regex.compile(r"\(\?i:(?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")


def _with_turkish_i(pattern: str) -> str:
    """The pattern whose caseless words take \u0130 and \u0131 for an i, as Java does."""

    def widened(group: regex.Match[str]) -> str:
        # The i of a nested "(?i:" is none of the word's letters.
        letters = group.group().removeprefix("(?i:").replace("(?i:", "(?\0:")
        return "(?i:" + letters.replace("i", "[i\u0130\u0131]").replace("\0", "i")

    return _CASELESS_GROUP.sub(widened, pattern)


def _rule(token: str, context: str = "", rewrite: Callable[[str], str] | None = _same, drop: int = 0) -> Rule:
    return Rule(regex.compile(_with_turkish_i(rf"(?p)(?P<token>{token}){context}")), rewrite, drop)


def _without_soft_hyphens(text: str) -> str:
    return text.replace("\xad", "") or "-"


_LEFT_QUOTES = {"'": "`", "&apos;": "`", '"': "``", "&quot;": "``"}
_RIGHT_QUOTES = {"&apos;": "'", '"': "''", "&quot;": "''"}
_CURLY_QUOTES = {
    "\x91": "`", "\u2018": "`", "\u201b": "`", "\u2039": "`", "\x92": "'", "\u2019": "'", "\u203a": "'",
    "\x93": "``", "\u201c": "``", "\xab": "``", "\x94": "''", "\u201d": "''", "\xbb": "''",
}  # fmt: skip


def _replaced(text: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        text = text.replace(old, new)
    return text


def _left_quote(text: str) -> str:
    return _replaced(_replaced(text, _LEFT_QUOTES), _CURLY_QUOTES)


def _right_quote(text: str) -> str:
    return _replaced(_replaced(text, _RIGHT_QUOTES), _CURLY_QUOTES)


_FRACTIONS = {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_CURRENCIES = {"\xa2": "cents", "\xa3": "#", "\x80": "$", "\xa4": "$", "\u20a0": "$", "\u20ac": "$"}


def _brackets(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def _ampersand(text: str) -> str:
    return regex.sub("(?i:&amp;)", "&", text)


def _joined(text: str) -> str:
    return text.replace(" ", "\xa0")


def _written(replacement: str) -> Callable[[str], str]:
    return lambda text: replacement


_REDUCED = rf"{_APOSTROPHE}(?:[msdMSD]|(?i:re|ve|ll))"
_NOT = rf"(?i:n){_LETTER_APOSTROPHE}(?i:t)"
_JOINED_WORDS = (
    rf"(?:[dDoOlL]{_LETTER_APOSTROPHE}(?:{_LETTER}|{_DIGIT}))?(?:{_LETTER}|{_DIGIT})+"
    rf"(?:{_HYPHEN}(?:[dDoOlL]{_LETTER_APOSTROPHE}(?:{_LETTER}|{_DIGIT}))?(?:{_LETTER}|{_DIGIT})+)*"
)
_KNOWN_INITIALS = r"(?i:a\.k\.a)|(?i:canada|sino|korean|eu|japan|non)-(?i:u\.s)|(?i:u\.s)\.-(?i:u\.k|u\.s\.s\.r)"
_INITIALS = rf"(?:[A-Za-z](?:\.[A-Za-z])*|{_KNOWN_INITIALS})"
_DOTTED = rf"(?:[A-Za-z](?:\.[A-Za-z])+|{_KNOWN_INITIALS})"
_HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z0-9\xad]+|{_DOTTED}\.))+"
_LETTERS_AND = r"[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"
_NUMBER = rf"(?:{_DIGIT}+|{_DIGIT}*(?:[.:,\xad\u066b\u066c]{_DIGIT}+)+)"
_SENTENCE_START = "(?:" + "|".join(f"{word[0]}(?i:{regex.escape(word[1:])})" for word in words.SENTENCE_STARTS) + ")"
_SENTENCE_END = rf"{_SPACE_OR_NEWLINE}(?:{_SPACE_OR_NEWLINE}|[A-Z])"
_BEFORE_PUNCTUATION = "[,;:\u3001]"
_CAPITALISED = "|".join(f"{word[0]}(?i:{word[1:]})" for word in words.CAPITALISED_ABBREVIATIONS)
# One letter of these has to be a small one.
_PROPRIETARY = "(?i:pp?t)[ey](?i:s?)"
_MANUFACTURING = "(?i:m)[ft](?i:g)"
_ABBREVIATION = rf"(?:{_any_of(words.ABBREVIATIONS)}|{_PROPRIETARY}|{_CAPITALISED}|(?i:ed|ph)\.(?i:d))\."
_FACE = r"[-^x=~<>']"
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = (
    rf"<(?:[!?][A-Za-z-][^>\r\n]*|{_TAG_NAME}(?: +{_TAG_NAME}(?: *= *(?:'[^'\r\n]*'|\"[^\"\r\n]*\"|{_TAG_NAME}))?)*"
    rf" */?|/{_TAG_NAME}) *>"
)

RULES = (
    # Contractions of two words.
    _rule("(?i:cannot)", drop=3),
    _rule("(?i:gonna|gotta|lemme|gimme|wanna)", drop=2),
    _rule("(?i:'tis)", drop=2),
    _rule("(?i:'twas)", drop=3),
    # Tags and entities.
    _rule(_TAG, rewrite=_joined),
    _rule("(?i:&(?:md|mdash|ndash);)|[\x96\x97\u2013\u2014\u2015]", rewrite=_written("--")),
    _rule("(?i:&amp;)", rewrite=_ampersand),
    _rule("(?i:&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq);)|&#[0-9]+;"),
    # Words.
    _rule(_WORD, rf"(?:{_REDUCED})", rewrite=_without_soft_hyphens),
    _rule(r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", rf"{_NOT}", rewrite=_without_soft_hyphens),
    _rule(_WORD, rewrite=_without_soft_hyphens),
    _rule(
        rf"(?i:{_APOSTROPHE}n{_APOSTROPHE}?|dunkin{_APOSTROPHE}|somethin{_APOSTROPHE}|ol{_APOSTROPHE}|{_APOSTROPHE}em|"
        rf"{_APOSTROPHE}till?|{_APOSTROPHE}cause|cont{_APOSTROPHE}d\.?|nor{_APOSTROPHE}easter|c{_APOSTROPHE}mon|"
        rf"e{_APOSTROPHE}er|s{_APOSTROPHE}mores|ev{_APOSTROPHE}ry|li{_APOSTROPHE}l|nat{_APOSTROPHE}l|"
        rf"cap{_APOSTROPHE}n|c{_APOSTROPHE}est)|[oO]{_LETTER_APOSTROPHE}[oO]|[lLdDjJ]{_APOSTROPHE}"
        rf"|[A-HJ-XZn]{_LETTER_APOSTROPHE}{_LETTER}{{2}}{_LETTER}*|{_APOSTROPHE}[2-9]0(?i:s)"
        rf"|{_LETTER}{_LETTER}*[aeiouyAEIOUY]{_LETTER_APOSTROPHE}[aeiouA-Z]{_LETTER}*"
    ),
    _rule(rf"(?i:y){_APOSTROPHE}", _LETTER),
    # Addresses.
    _rule(rf"(?i:https?)://(?:[^ \t\n\f\r\"<>|(){{}}]+{_LAST_OF_ADDRESS}|{characters.BEYOND})"),
    _rule(rf"(?i:www)\.(?:[^ \t\n\f\r\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_PATH}"),
    _rule(rf"(?:{_DOMAIN_CHARACTER}+\.)+(?i:com|net|org|edu){_PATH}"),
    _rule(rf"(?i:&lt;|<)?[a-zA-Z0-9]{_NOT_IN_MAIL}*@(?:{_MAIL_LABEL}\.)*{_MAIL_LABEL}(?i:&gt;|>)?"),
    _rule(r"@[a-zA-Z_][a-zA-Z_0-9]*"),
    _rule(rf"#{_WORD_LETTER}+"),
    _rule(_REDUCED, r"[^A-Za-z]", rewrite=_right_quote),
    _rule(_NOT, r"[^A-Za-z]", rewrite=_right_quote),
    _rule("'", r"[A-Za-z][^ \t\n\r\xa0]", rewrite=_left_quote),
    _rule(_REDUCED, rewrite=_right_quote),
    _rule(_NOT, rewrite=_right_quote),
    # Numbers.
    _rule(rf"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}"),
    _rule(rf"[-+]?{_NUMBER}", rewrite=_without_soft_hyphens),
    _rule("[\u207a\u207b\u208a\u208b]?(?:\xb2+|\u2082+)"),
    _rule(rf"(?:{_DIGIT}{{1,4}}[- \xa0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}", rewrite=_joined),
    _rule(characters.FRACTION, rewrite=lambda text: _FRACTIONS.get(text, text)),
    _rule(
        r"-(?i:RRB|LRB|RCB|LCB|RSB|LSB)-|(?i:C\.D\.s)|(?i:pro|anti)-|(?i:s)(?:&|(?i:&amp;))(?:(?i:p)-500|(?i:ls))",
        rewrite=_ampersand,
    ),
    _rule(rf"{_APOSTROPHE}[0-9][0-9]", _SPACE_OR_NEWLINE),
    _rule(r"(?i:yahoo|jeopardy)!"),
    # Abbreviations.
    _rule(r"(?:(?i:co)|(?i:pt)[ey])\.", rf"{_SPACE}(?i:ltd)"),
    _rule(_ABBREVIATION, _SENTENCE_END),
    _rule(_ABBREVIATION, r"[\s\S]{2}"),
    _rule(_ABBREVIATION),
    _rule(rf"{_any_of(words.NUMBERED)}\.", rf"{_SPACE_OR_NEWLINE}?{_DIGIT}"),
    _rule(
        rf"{_INITIALS}\.",
        rf"{_SPACE_OR_NEWLINE}+(?:{_SENTENCE_START}|{_TAG}){_SPACE_OR_NEWLINE}",
        rewrite=lambda text: text if len(text) > 2 else text[:1],
    ),
    _rule(rf"(?:{_any_of(words.TITLES)}|{_MANUFACTURING}|{_INITIALS})\."),
    _rule(_INITIALS, _SPACE_OR_NEWLINE),
    _rule(
        rf"{_WORD_CHARACTER}+(?:\.{_WORD_CHARACTER}+)*\.{_any_of(words.FILE_ENDINGS)}",
        rf"(?:{_SPACE_OR_NEWLINE}|[.?!,])",
    ),
    _rule(rf"{_WORD}\.", _BEFORE_PUNCTUATION, rewrite=_without_soft_hyphens),
    # Telephone numbers.
    _rule(
        r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
        r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        rewrite=lambda text: _brackets(_joined(text)),
    ),
    # Quotes.
    _rule(r"\"|(?i:&quot;)", r"[A-Za-z0-9$]", rewrite=_left_quote),
    _rule(r"\"|(?i:&quot;)", rewrite=_right_quote),
    # Faces.
    _rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", r"[^A-Za-z0-9]", rewrite=_brackets),
    _rule(
        rf"(?:[\^x=~<>]\.\[\^(?i:x)=[^<\n]*<>\]|{_FACE}_{_FACE}|\({_FACE}[_.]?{_FACE}\)|\([\^x=~<>']-[\^x=~<>'`]\))",
        rewrite=_brackets,
    ),
    # Words with hyphens, slashes and ampersands.
    _rule(_HYPHENATED, rewrite=_without_soft_hyphens),
    _rule(_JOINED_WORDS),
    _rule(rf"{_HYPHENATED}\.", _BEFORE_PUNCTUATION, rewrite=_without_soft_hyphens),
    _rule(rf"(?:{_JOINED_WORDS})\.", _BEFORE_PUNCTUATION),
    _rule(_LETTERS_AND, rewrite=_ampersand),
    _rule(rf"{_LETTERS_AND}\.", _BEFORE_PUNCTUATION, rewrite=_ampersand),
    _rule(_SLASHED),
    # Symbols.
    _rule("<<|>>"),
    _rule("(?i:&lt;)|<", rewrite=_written("<")),
    _rule("(?i:&gt;)|>", rewrite=_written(">")),
    _rule(
        rf"{_APOSTROPHE}|''|[`\x91\x92\u2018\u2019\u201b\u201c\u201d\xab\xbb\x93\x94\u201a\u201e\u201f\u2039\u203a]{{1,2}}",
        rewrite=_right_quote,
    ),
    _rule(r"\.(?:[ \xa0]\.){2,4}|\.{3,5}|[\x85\u2026]", rewrite=_written("...")),
    _rule(r"-{1,2}"),
    _rule(r"-{3,}", rewrite=lambda text: "--" if len(text) <= 4 else text),
    _rule(r"\(", rewrite=_written("-LRB-")),
    _rule(r"\)", rewrite=_written("-RRB-")),
    _rule(r"\{", rewrite=_written("-LCB-")),
    _rule(r"\}", rewrite=_written("-RCB-")),
    _rule(r"\[", rewrite=_written("-LSB-")),
    _rule(r"\]", rewrite=_written("-RSB-")),
    _rule(characters.CURRENCY, rewrite=lambda text: _CURRENCIES.get(text, text)),
    _rule(r"[A-Z]*\$|#"),
    _rule(r"\*+|(?:\\\*){1,3}"),
    _rule(r"(?i:c)\+\+|(?i:[cf])#"),
    _rule(rf"[?!]+|_+|@+|#+|[.,;:\u3001/\\=&+%~^|@{characters.SYMBOL}\u2044\u207a\u207b\u208a\u208b]"),
    _rule(
        rf"(?i:&nbsp;)|[ \t\u2000\xa0\x00\u200b\u200e\u200f\ufeff{characters.UNKNOWN}{characters.BEYOND}\x01-\x1f\x7f]",
        rewrite=None,
    ),
)
