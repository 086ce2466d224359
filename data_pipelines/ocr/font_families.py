"""The 41 English and 11 Chinese font families of synthetic pages (paper, A.4): one table.

The paper names only the counts. These are text faces (serif, sans serif, slab, monospace, hand-written and calligraphic
for Chinese) of Debian packages under free licences; fonts of symbols and of decorations are left out. Every English
face has all of printable ASCII, and every Chinese one all 3,755 characters of GB 2312, level 1.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Family:
    """A font family.

    Attributes:
      name: as the font file states it.
      package: the Debian package.
      file: the regular face, below `usr/share/fonts` of the package.
      license: as the copyright file of the package states it.
      index: of the face in a collection (`.ttc`).
    """

    name: str
    package: str
    file: str
    license: str
    index: int = 0


_GPL = "GPL-2.0 with font exception"
_ARPHIC_CC = "Arphic-1999 and CC-BY-SA-4.0"

ENGLISH = (
    Family("Andika", "fonts-sil-andika", "truetype/andika/Andika-Regular.ttf", "OFL-1.1"),
    Family("Arimo", "fonts-croscore", "truetype/croscore/Arimo-Regular.ttf", "OFL-1.1"),
    Family("B612", "fonts-b612", "opentype/b612/B612-Regular.otf", "OFL-1.1"),
    Family("Cabin", "fonts-cabin", "opentype/cabin/Cabin-Regular.otf", "OFL-1.1"),
    Family("Caladea", "fonts-crosextra-caladea", "truetype/crosextra/Caladea-Regular.ttf", "Apache-2.0"),
    Family("Cantarell", "fonts-cantarell", "opentype/cantarell/Cantarell-Regular.otf", "OFL-1.1"),
    Family("Cardo", "fonts-cardo", "truetype/cardo/Cardo104s.ttf", "OFL-1.1"),
    Family("Carlito", "fonts-crosextra-carlito", "truetype/crosextra/Carlito-Regular.ttf", "OFL-1.1"),
    Family("Charis SIL", "fonts-sil-charis", "truetype/charis/CharisSIL-Regular.ttf", "OFL-1.1"),
    Family("Clear Sans", "fonts-clear-sans", "truetype/clear-sans/ClearSans-Regular.ttf", "Apache-2.0"),
    Family("Comfortaa", "fonts-comfortaa", "truetype/comfortaa/Comfortaa-Regular.ttf", "OFL-1.1"),
    Family("Comic Neue", "fonts-comic-neue", "opentype/comic-neue/ComicNeue-Regular.otf", "OFL-1.1"),
    Family("Cousine", "fonts-croscore", "truetype/croscore/Cousine-Regular.ttf", "OFL-1.1"),
    Family("DejaVu Sans", "fonts-dejavu-core", "truetype/dejavu/DejaVuSans.ttf", "Bitstream-Vera"),
    Family("DejaVu Serif", "fonts-dejavu-core", "truetype/dejavu/DejaVuSerif.ttf", "Bitstream-Vera"),
    Family("Dosis", "fonts-dosis", "opentype/dosis/Dosis-Medium.otf", "OFL-1.1"),
    Family("EB Garamond", "fonts-ebgaramond", "opentype/ebgaramond/EBGaramond12-Regular.otf", "OFL-1.1"),
    Family("Fira Code", "fonts-firacode", "truetype/firacode/FiraCode-Regular.ttf", "OFL-1.1"),
    Family("Gentium Book Basic", "fonts-sil-gentium-basic", "truetype/gentium-basic/GenBkBasR.ttf", "OFL-1.1"),
    Family("Go", "fonts-go", "fonts-go/Go-Regular.ttf", "BSD-3-Clause"),
    Family(
        "Goudy Bookletter 1911", "fonts-goudybookletter", "opentype/sortsmill/GoudyBookletter1911.otf", "public domain"
    ),
    Family("Hack", "fonts-hack", "truetype/hack/Hack-Regular.ttf", "MIT and Bitstream-Vera"),
    Family("Inconsolata", "fonts-inconsolata", "truetype/inconsolata/Inconsolata.otf", "OFL-1.0"),
    Family("Inter", "fonts-inter", "opentype/inter/Inter-Regular.otf", "OFL-1.1"),
    Family("JetBrains Mono", "fonts-jetbrains-mono", "truetype/jetbrains-mono/JetBrainsMono-Regular.ttf", "Apache-2.0"),
    Family("Karla", "fonts-karla", "truetype/karla/Karla-Regular.otf", "OFL-1.1"),
    Family("Lato", "fonts-lato", "truetype/lato/Lato-Regular.ttf", "OFL-1.1"),
    Family("Linux Biolinum", "fonts-linuxlibertine", "opentype/linux-libertine/LinBiolinum_R.otf", "OFL-1.1"),
    Family("Linux Libertine", "fonts-linuxlibertine", "opentype/linux-libertine/LinLibertine_R.otf", "OFL-1.1"),
    Family("Manrope", "fonts-manrope", "truetype/manrope/Manrope-Regular.ttf", "OFL-1.1"),
    Family("Old Standard TT", "fonts-oldstandard", "truetype/fonts-oldstandard/OldStandard-Regular.ttf", "OFL-1.0"),
    Family("Open Sans", "fonts-open-sans", "truetype/open-sans/OpenSans-Regular.ttf", "Apache-2.0"),
    Family("Play", "fonts-play", "truetype/play/Play-Regular.ttf", "OFL-1.1"),
    Family("Quattrocento", "fonts-quattrocento", "opentype/quattrocento/Quattrocento-Regular.otf", "OFL-1.1"),
    Family("Quicksand", "fonts-quicksand", "truetype/quicksand/Quicksand-Regular.ttf", "OFL-1.1"),
    Family("Roboto", "fonts-roboto-unhinted", "truetype/roboto/unhinted/RobotoTTF/Roboto-Regular.ttf", "Apache-2.0"),
    Family("Roboto Slab", "fonts-roboto-slab", "opentype/roboto/slab/RobotoSlab-Regular.otf", "Apache-2.0"),
    Family("STIX", "fonts-stix", "opentype/stix-word/STIX-Regular.otf", "OFL-1.1"),
    Family("Tinos", "fonts-croscore", "truetype/croscore/Tinos-Regular.ttf", "OFL-1.1"),
    Family("Tuffy", "fonts-tuffy", "truetype/tuffy/Tuffy.ttf", "public domain"),
    Family("Vollkorn", "fonts-vollkorn", "truetype/vollkorn/Vollkorn-Regular.ttf", "OFL-1.1"),
)

CHINESE = (
    Family("AR PL KaitiM GB", "fonts-arphic-gkai00mp", "truetype/arphic-gkai00mp/gkai00mp.ttf", "Arphic-1999"),
    Family("AR PL SungtiL GB", "fonts-arphic-gbsn00lp", "truetype/arphic-gbsn00lp/gbsn00lp.ttf", "Arphic-1999"),
    Family("AR PL UKai CN", "fonts-arphic-ukai", "truetype/arphic/ukai.ttc", "Arphic-1999"),
    Family("AR PL UMing CN", "fonts-arphic-uming", "truetype/arphic/uming.ttc", "Arphic-1999"),
    Family("BabelStone Han", "fonts-babelstone-han", "truetype/babelstone/BabelStoneHan.ttf", _ARPHIC_CC),
    Family("LXGW WenKai", "fonts-lxgw-wenkai", "truetype/lxgw-wenkai/LXGWWenKai-Regular.ttf", "OFL-1.1"),
    Family("Noto Sans CJK SC", "fonts-noto-cjk", "opentype/noto/NotoSansCJK-Regular.ttc", "OFL-1.1", 2),
    Family("Noto Serif CJK SC", "fonts-noto-cjk", "opentype/noto/NotoSerifCJK-Regular.ttc", "OFL-1.1", 2),
    Family("Smiley Sans", "fonts-smiley-sans", "truetype/smiley-sans/SmileySans-Oblique.ttf", "OFL-1.1"),
    Family(
        "WenQuanYi Micro Hei",
        "fonts-wqy-microhei",
        "truetype/wqy/wqy-microhei.ttc",
        "Apache-2.0 or GPL-3.0 with font exception",
    ),
    Family("WenQuanYi Zen Hei", "fonts-wqy-zenhei", "truetype/wqy/wqy-zenhei.ttc", _GPL),
)

FAMILIES = {"en": ENGLISH, "zh": CHINESE}
