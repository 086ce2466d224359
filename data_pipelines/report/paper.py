"""Tables 2 and 3 of the paper (arXiv 2308.12966), to set next to what was built."""

from __future__ import annotations

from typing import NamedTuple


class Figures(NamedTuple):
    """A line of Table 2: pairs before and after cleaning, and the per cent that remain, as printed."""

    original: str
    cleaned: str
    remaining: str


# Lines of Table 2 by the names of `data_pipelines.corpora.table`. In-house data are of no public corpus.
TABLE_2 = {
    "laion_en": Figures("2B", "280M", "14%"),
    "laion_coco": Figures("600M", "300M", "50%"),
    "datacomp": Figures("1.4B", "300M", "21%"),
    "coyo_700m": Figures("700M", "200M", "28%"),
    "cc12m": Figures("12M", "8M", "66%"),
    "cc3m": Figures("3M", "3M", "100%"),
    "sbu": Figures("1M", "0.8M", "80%"),
    "coco_captions": Figures("0.6M", "0.6M", "100%"),
    "laion_zh": Figures("108M", "105M", "97%"),
}
TABLE_2_TOTAL = Figures("5B", "1.4B", "28%")

# Lines of Table 3 by task: the name of the line, and its samples. The dialogues of stage 3 (section 3.3) are not in it.
TABLE_3 = {
    "caption": ("Captioning", "19.7M"),
    "vqa": ("VQA", "3.6M"),
    "grounding": ("Grounding", "3.5M"),
    "ref_grounding": ("Ref Grounding", "8.7M"),
    "grounded_caption": ("Grounded Cap.", "8.7M"),
    "ocr": ("OCR", "24.8M"),
    "text": ("Pure-text Autoregression", "7.8M"),
    "dialogue": ("Dialogue", ""),
}

LANGUAGES = {"en": "English", "zh": "Chinese"}
