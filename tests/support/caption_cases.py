"""Captions that try a tokenizer: texts that its rules know, glued in every way, and plain random characters."""

from __future__ import annotations

import random

_PIECES = str.split(
    """
a the dog Mr U.S. etc no. 5 isn't it's man's 1/2 $5 co. ltd a.m. I. The He well-known x-ray 3 10:30 555-1234 (650)
723-0293 "hi" 'n' rock 'tis 'twas cannot gonna e-mail http://a.b/c?d=e foo@bar.com AT&T R&D and/or 1980s '80s
O'Reilly d'Angelo y'all caf\u00e9 na\u00efve \u2026 \u2013 \u2014 \u201c \u201d \u2018 \u2019 C++ C# :) :-( <3 <b>
</b> <a href="x"> & &amp; &lt; &eacute; 100% \u00bd 1\u00bd \u00a35 \u20ac3 \u00a2 #tag @me . , ; : ! ? - -- ...
.... * / \\ [ ] { } _ ~ ^ | ` `` '' \u4e2d\u6587 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 e.g. i.e. St. vs. p.m.
Ph.D. Jr. x.txt www.foo.com 3.5 1,000 -5 +5 20th 4x4 t-shirt mother-in-law it\u2019s don\u2019t DON'T Can't U.K.
\U0001f436 \U0001f44d Inc. Calif. Ill. pro-life S&P-500 \u017fo K\u212a \u0130\u0131 ti\u0301 \u00ad
soft\u00adhyphen x\u00b2 H\u2082O ^_^ (-_-) >> << bldg. 7 fig. B. \ufb01sh \u0e20\u0e32\u0e29\u0e32 \u0663\u0664
\u00a0 \u3000 \u2122
"""
)
_GLUE = (" ",) * 8 + ("", "", "  ", ".", " ,", ",", "'", "-", "/")
_ASCII = "abehilmnoprstABDIMSU0123456789 .,'\"!?-_/&;:()<>@#$%^*+=~`|\\[]{}"
_RANGES = (
    (0xA1, 0x17F),
    (0x2010, 0x2027),
    (0x202A, 0x204F),
    (0x20A0, 0x20BF),
    (0x300, 0x36F),
    (0x400, 0x52F),
    (0x660, 0x66C),
    (0x900, 0x97F),
)
_MORE_RANGES = ((0x3000, 0x30FF), (0x4E00, 0x4EFF), (0x2100, 0x218F), (0xFF00, 0xFFEF), (0x1F600, 0x1F640))


def caption(draw: random.Random) -> str:
    """One line of up to nine pieces, seldom empty."""
    count = draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9))
    return "".join(draw.choice(_PIECES) + draw.choice(_GLUE) for _ in range(count))


_MORE_PIECES = str.split(
    """
a.com/x www.a.co.uk/ab <p> <br_/> <a_b='c_d'> <!--_x_--> &#39; &aacute; &ndash; &ht; I'm he'd we've they're can't
ain't Lemme wanna 'em 'til cap'n li'l ev'ry nor'easter pro- anti- :D ;-) =P >:( (^^) ^_- 12 12:30 +44_20_7946_0958
1/2/03 3-4/05 2_3/4 '60s '99 F# US$ HK$ A+B #x @y Yahoo!x a_b \u2010 \u2011 ` \u2018 \u2019 \u00ab \u2039 \u201a . .
. \u00b3 \u2080 \u207a \u00a4 \u00ad \u0301 \u200b \ue000 \\/ B. The I No. l'homme d'1a x-O'ab Hawai'i mfg. Pte. pty
mtg.
"""
)
_ENDS = (" ", "", "", "", "-", ".", ",", "'", "\u2019", "/", "_", "@")


def mixture(draw: random.Random) -> str:
    """One line of up to five pieces that are glued more tightly than those of `caption`, and of random characters."""
    parts = []
    for _ in range(draw.randint(1, 5)):
        kind = draw.random()
        if kind < 0.6:
            parts.append(draw.choice(_PIECES + _MORE_PIECES).replace("_", " "))
        elif kind < 0.8:
            parts.append("".join(draw.choice("abDnosty1205.-'/_,&+@") for _ in range(draw.randint(1, 5))))
        else:
            parts.append("".join(draw.choice("0123456789 -./+(),:'s") for _ in range(draw.randint(3, 9))))
        parts.append(draw.choice(_ENDS))
    return "".join(parts)


def noise(draw: random.Random) -> str:
    """One line of up to fifteen random characters without line breaks."""
    letters = []
    for _ in range(draw.randint(1, 15)):
        if draw.random() < 0.8:
            letters.append(draw.choice(_ASCII))
        else:
            letters.append(chr(draw.randint(*draw.choice(_RANGES + _MORE_RANGES))))
    return "".join(letters)
