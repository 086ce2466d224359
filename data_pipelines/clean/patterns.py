"""Irregular patterns of web captions (paper, A.1, step 8): those to remove from a text, and texts to drop.

Every pattern has a name, under which the report counts it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

import regex

_WEB_END = r"[^\s\p{Han}<>()\"'，。、；）】》]"
_DOMAINS = "com|org|net|edu|gov|info|biz|shop|blog|cn|de|fr|jp|co\\.uk|ru|it|es|nl|eu|io|tv"
_SUFFIXES = "jpe?g|png|gif|bmp|tiff?|webp|svg|eps|psd|pdf|docx?|pptx?|xlsx?|mp[34]|avi|mov|zip|html?|php|aspx?"
_CAMERAS = "IMG|DSC|DSCN|DSCF|DSC_|PICT|CIMG|SAM|GOPR|MVI|VID|PANO|SDC|KIMG|PXL|HPIM|Screenshot|Screen_Shot|微信图片"
_AGENCIES = "shutterstock|istock(?:photo)?|alamy|dreamstime|depositphotos|123rf|getty ?images|bigstock|视觉中国|千图网"
_PHRASES = (
    r"(?:please )?click (?:here|on (?:the )?(?:image|picture|photo))?"
    r"(?: ?(?:to|for) (?:enlarge|zoom|view|see|download|open|larger|full)"
    r"(?:[ -](?:image|view|size|details?|more|picture|photo))*)?(?<!click )",
    r"(?:royalty[ -]?free )?(?:stock|royalty[ -]free) (?:photos?|pictures?|images?|photography|pics|illustrations?|"
    r"vectors?|footage|videos?|clip ?art)",
    r"royalty[ -]free",
    r"(?:image|photo|picture|thumbnail) (?:is )?(?:not (?:available|found)|unavailable|coming soon)",
    r"no (?:image|photo|picture) (?:is )?available",
    r"(?:all rights reserved|copyrighted material)",
    r"(?:read|learn|see|view|find out) more",
    r"(?:buy|shop|order|download) (?:it )?now|add to (?:cart|wish ?list|basket)|free (?:shipping|download)|pin it",
    r"点击(?:查看|放大|下载|进入|购买)(?:大图|原图|图片|详情)?|(?:高清)?图片(?:素材|下载)|素材下载|免费下载|版权所有|未经许可",
    _AGENCIES,
)

# (name, pattern, replacement), in order.
_REWRITES: tuple[tuple[str, regex.Pattern[str], str], ...] = tuple(
    (name, regex.compile(pattern, regex.IGNORECASE), replacement)
    for name, pattern, replacement in (
        ("e-mail", r"(?<![A-Z0-9._+-])[A-Z0-9._+-]++@[A-Z0-9-]+(?:\.[A-Z0-9-]+)++", " "),
        (
            "URL",
            rf"(?:(?:https?|ftp)://|(?<![a-z0-9])www\.){_WEB_END}*+"
            rf"|(?<![a-z0-9_.@-])(?:[a-z0-9][a-z0-9-]*+\.)+?(?:{_DOMAINS})(?![a-z0-9_-]|\.[a-z0-9])(?:/{_WEB_END}*+)?",
            " ",
        ),
        (
            "file name",
            rf"(?:(?<![\p{{Latin}}0-9_.-])[\p{{Latin}}0-9_-]++|(?<!\w)\p{{Han}}++)(?:\(\d{{1,3}}\))?(?:\.[a-z0-9_-]++)*?\.(?:{_SUFFIXES})(?![a-z0-9_])"
            rf"|(?<![a-z0-9])(?:{_CAMERAS})[ _-]?\d{{3,}}+(?:[_-]\d++)*+",
            " ",
        ),
        (
            "phone number",
            r"(?<![a-z0-9_+])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,4}\d{2,4}"
            r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}|1[3-9]\d{9}|0\d{2,3}-\d{7,8}|[48]00-\d{3,4}-\d{3,4})"
            r"(?![a-z0-9_-])",
            " ",
        ),
        ("hashtag", r"(?<![a-z0-9_&#])#[\p{L}_]\w*+#?", " "),
        ("mention", r"(?<![a-z0-9_.@])@(?=\w)(?:[a-z0-9_.]++|\w++)", " "),
        (
            "credit",
            r"[(\[（【]\s*(?:photos?|images?|pictures?|pics?|摄影|图片来源|图)\s*(?:by|credits?|courtesy|via|source|:|：)"
            r"[^()\[\]（）【】]*+[)\]）】]",
            " ",
        ),
        ("boilerplate", rf"(?<![a-z\d])(?:{'|'.join(_PHRASES)})(?![a-z\d])", " "),
        ("dimensions", r"(?<![a-z0-9_.])\d{3,5}\s?(?:px)?\s?[x×*]\s?\d{3,5}(?:\s?(?:px|pixels))?(?![a-z0-9_])", " "),
        ("repeated character", r"([^\w\s])\1{3,}+", r"\1"),
        ("repeated character", r"(\p{L})\1{4,}+", r"\1"),
        ("repeated word", r"(?<!\w)(\p{L}[\w'-]*+)(?:[\s,，、]+\1(?!\w)){2,}+", r"\1"),
        ("repeated word", r"(\p{Han}{2,8}?)\1{2,}+", r"\1"),
        ("empty brackets", r"(?<![a-z0-9_])(?:\(\s*+\)|\[\s*+\])|\{\s*+\}|（\s*+）|【\s*+】|《\s*+》|“\s*+”", " "),
    )
)
PATTERNS = (*dict.fromkeys(name for name, _, _ in _REWRITES), "dangling sign")

_DANGLING = frozenset("|:;,/\\•·*_~=+<>")
_DASHES = frozenset("-–—")  # at the end only: at the beginning they mark speech
_PLACEHOLDER = regex.compile(
    r"(?:untitled|no (?:title|description|caption|alt)|image|images|photo|picture|pic|thumbnail|thumb|logo|icon|banner|"
    r"avatar|null|none|undefined|n/?a|default|unnamed|placeholder|loading|spacer|blank|screenshot|slide|图|图片|照片|无标题|"
    r"未命名|缩略图|示意图)(?:[ _#-]*+\d++)?(?: of \d++)?\W*+",
    regex.IGNORECASE,
)
_CODE = regex.compile(r"[{};=\\<>|\[\]]")
_LONG_WORD = regex.compile(r"[A-Za-z0-9+/=_-]{40}")
_DIGIT = regex.compile(r"\d")


def without_patterns(text: str) -> tuple[str, tuple[str, ...]]:
    """Removes all patterns, once. Returns the text and the names of the patterns that matched."""
    names = []
    for name, pattern, replacement in _REWRITES:
        text, count = pattern.subn(replacement, text)
        if count:
            names.append(name)
    trimmed = _without_dangling(text)
    if trimmed != text:
        names.append("dangling sign")
    return trimmed, tuple(dict.fromkeys(names))


def _without_dangling(text: str) -> str:
    """Removes signs that separate words, such as "|", if they begin or end the text as words of their own."""
    words = text.split()
    first, last = 0, len(words)
    while first < last and _DANGLING.issuperset(words[first]):
        first += 1
    while last > first and (_DANGLING | _DASHES).issuperset(words[last - 1]):
        last -= 1
    return text if (first, last) == (0, len(words)) else " ".join(words[first:last])


def _broken(text: str) -> bool:
    return "\ufffd" in text


def _mostly_digits(text: str) -> bool:
    digits = len(_DIGIT.findall(text))
    return digits >= 4 and 2 * digits > sum(map(str.isalnum, text))


def _mostly_punctuation(text: str) -> bool:
    return 3 * sum(map(str.isalnum, text)) < sum(not character.isspace() for character in text)


def _placeholder(text: str) -> bool:
    return _PLACEHOLDER.fullmatch(text) is not None


def _code(text: str) -> bool:
    return len(_CODE.findall(text)) * 12 > max(len(text), 48)


def _long_word(text: str) -> bool:
    return _LONG_WORD.search(text) is not None


def _repetitive(text: str) -> bool:
    words = text.lower().split()
    if len(words) < 9:
        return False
    return 3 * len(set(words)) < len(words) or 2 * max(collections.Counter(words).values()) > len(words)


_DROPS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("broken characters", _broken),
    ("a placeholder", _placeholder),
    ("mostly digits", _mostly_digits),
    ("mostly punctuation", _mostly_punctuation),
    ("code", _code),
    ("a word of 40 letters", _long_word),
    ("few different words", _repetitive),
)
IRREGULAR_TEXTS = tuple(name for name, _ in _DROPS)


def irregularity(text: str) -> str:
    """The name of the first pattern that a text as a whole has, one of `IRREGULAR_TEXTS`; "" if it has none."""
    return next((name for name, judge in _DROPS if judge(text)), "")
