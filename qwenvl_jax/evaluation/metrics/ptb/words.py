"""Words that the PTB tokenizer knows: abbreviations, contractions, endings of file names.

Case does not count unless a comment says otherwise.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


# A period after these belongs to them, whatever follows.
ABBREVIATIONS = _words(
    """
al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri
ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt sep
sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo
"""
)
# A period after these belongs to them, even at the end of the caption.
TITLES = _words(
    """
adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov
govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps rev sen
sens sfc sgt spc st ste supt supts treas vs wm
"""
)
# As ABBREVIATIONS, but only with a capital, because the small word is a common one.
CAPITALISED_ABBREVIATIONS = _words("Ark Az Del Ill La Mass Miss Ore Pa Tex Wash")
# A period after these belongs to them if a number follows.
NUMBERED = _words("art bldg ca fig figs no nos op pp prop")
# A single letter with a period ends its sentence if one of these words follows.
SENTENCE_STARTS = _words(
    """
A About According After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms. Now Once One Other Our
She Since So Some Such That The Their Then There These They This We What When While Yet You
"""
)
# They are split here, although no space is between both parts.
MERGED = (("can", "not"), ("gon", "na"), ("got", "ta"), ("gim", "me"), ("lem", "me"), ("wan", "na"))
# Words that are clipped at their start; an apostrophe comes before.
CLIPPED = _words("em til till cause")
# Words with an apostrophe that no pattern of names covers: with a straight one only, and with any.
WITH_APOSTROPHE = _words("c'mon e'er ev'ry li'l nat'l nor'easter")
WITH_ANY_APOSTROPHE = _words("cap'n c'est ol'")
# Entities of SGML that are tokens as they are written.
ENTITIES = _words("ht lr qc ql qr tl ur cdq odq")
FILE_ENDINGS = _words(
    """
bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql tar
txt wav x xml zip
"""
)
