"""Recipes of captions, dialogues and plain text (paper, A.1 and Table 2).

The paper names its rules without numbers and calls the CLIP thresholds harsh and specific to the data set. The numbers
here are published ones where there are any, and each can be changed in one line:

- Sides and shapes: at least 200 pixels and at most 1:3, as COYO-700M (its README) and the basic filter of DataComp
  (arXiv 2304.14108) have them.
- Lengths: more than two words and more than five characters, as the basic filter of DataComp; a Chinese caption needs
  two characters. The upper ends, 300 and 150 characters, are this project's choice: about 75 tokens.
- CLIP scores: the corpus' own column. LAION-400M chose 0.30 for OpenAI's ViT-B/32 after looking at pairs (arXiv
  2111.02114). LAION-2B-en was cut at 0.28 when it was made (arXiv 2210.08402), so 0.30 is the harsh threshold for it,
  and for the same model's scores of DataComp and COYO. LAION-zh keeps its own cut, 0.26 of a multilingual CLIP.

`REMAINING` has the shares that remain in Table 2. To calibrate a corpus: build a sample of it without the score rule,
take the scores of the remaining pairs, and set `least` to `clean.pair.least_for_share(scores, share)`, where `share` is
the remaining share of Table 2 divided by the share that the other rules left.
"""

from __future__ import annotations

from data_pipelines.clean import text
from data_pipelines.clean.across import AcrossRule
from data_pipelines.clean.image import aspect_ratio, open_pictures, smallest_side
from data_pipelines.clean.pair import language_matches, score_at_least, unsafe_at_most, watermark_at_most
from data_pipelines.clean.rule import Rule, rule
from data_pipelines.duplicates.dedup import ExactDuplicates, LongestText, NearTexts

# Table 2, in its rounding.
REMAINING = {
    "laion_en": 0.14,
    "laion_coco": 0.50,
    "datacomp": 0.21,
    "coyo_700m": 0.28,
    "cc12m": 0.66,
    "cc3m": 1.00,
    "sbu": 0.80,
    "coco_captions": 1.00,
    "laion_zh": 0.97,
}

_WEB_LENGTH = rule(text.text_length, least_en=6, least_zh=2, most_en=300, most_zh=150, least_words_en=3)
_ACADEMIC_LENGTH = rule(text.text_length, least_en=3, least_zh=1, most_en=300, most_zh=150)
_CAPTIONS = (rule(text.emoji), rule(text.english_or_chinese), rule(text.irregular_texts))
_PICTURES = (rule(open_pictures), rule(smallest_side, least=200), rule(aspect_ratio, most=3.0))


def _web(*of_the_corpus: Rule, language: str = "") -> tuple[Rule, ...]:
    """The eight rules of A.1, the cheapest first; rules on columns of the corpus come before all others."""
    languages = (rule(language_matches, language=language),) if language else ()
    return (*of_the_corpus, *text.REWRITING, *_CAPTIONS, *languages, _WEB_LENGTH, *_PICTURES)


# Captions that people wrote for research: special tags are dropped, and only pictures too small to show anything.
_ACADEMIC = (
    *text.REWRITING,
    rule(text.corpus_tags),
    rule(text.emoji),
    rule(text.english_or_chinese),
    _ACADEMIC_LENGTH,
    rule(text.longest_caption),
    rule(open_pictures, decode=True),
    rule(smallest_side, least=32),
    rule(aspect_ratio, most=5.0),
)
# Table 2 keeps all of COCO's captions, five for each picture, so the longest is not chosen here.
_COCO = (*text.REWRITING, _ACADEMIC_LENGTH, rule(open_pictures, decode=True))
# Sets that are used as benchmarks: only pictures that training would misread are changed.
_AS_PUBLISHED = (rule(open_pictures, decode=True, frames="first"),)

RECIPES: dict[str, tuple[Rule, ...]] = {
    "laion_en": _web(
        rule(score_at_least, column="similarity", least=0.30),
        rule(watermark_at_most, column="pwatermark", most=0.8),
        rule(unsafe_at_most, column="punsafe", most=0.5),
        language="en",
    ),
    "laion_zh": _web(rule(score_at_least, column="similarity", least=0.26), language="zh"),
    # Captions of a model, of which CLIP has chosen the best; no threshold is published for them.
    "laion_coco": _web(rule(score_at_least, column="top_similarity", least=0.30), language="en"),
    "datacomp": _web(rule(score_at_least, column="clip_b32_similarity_score", least=0.30)),
    "coyo_700m": _web(
        rule(score_at_least, column="clip_similarity_vitb32", least=0.30),
        rule(watermark_at_most, column="watermark_score", most=0.8),
        rule(unsafe_at_most, column="nsfw_score_opennsfw2", most=0.5),
        language="en",
    ),
    "image_text": _web(),
    "openclipart": _web(),
    "tuxpaint_stamps": _COCO,
    "cc3m": _ACADEMIC,
    "cc12m": _ACADEMIC,
    "sbu": _ACADEMIC,
    "textcaps": _COCO,
    "coco_captions": _COCO,
    "flickr30k": _AS_PUBLISHED,
    "nocaps": _AS_PUBLISHED,
    "llava": _AS_PUBLISHED,
    "qwen_vl_dialogues": _AS_PUBLISHED,
    "synthdog_en": _AS_PUBLISHED,
    "synthdog_zh": _AS_PUBLISHED,
    # Lines and lengths of plain text are its own; only characters are brought to one form.
    "text": (
        rule(text.mojibake),
        rule(text.one_form),
        rule(text.model_tokens),
        rule(text.text_length, least_en=100, least_zh=40, most_en=1_000_000, most_zh=1_000_000),
    ),
}

_SAME_PICTURE: tuple[AcrossRule, ...] = (LongestText(),)
_SAME_PAIR: tuple[AcrossRule, ...] = (ExactDuplicates(),)

ACROSS: dict[str, tuple[AcrossRule, ...]] = {
    **dict.fromkeys(
        ("laion_en", "laion_zh", "laion_coco", "datacomp", "coyo_700m", "image_text", "openclipart"), _SAME_PAIR
    ),
    **dict.fromkeys(("cc3m", "cc12m", "sbu"), _SAME_PICTURE),
    "text": (NearTexts(),),
}
