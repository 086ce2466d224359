"""All public corpora, one entry each; training and evaluation share it. See `corpus` for the fields."""

from __future__ import annotations

from data_pipelines.corpora import img2dataset
from data_pipelines.corpora.corpus import Corpus

_ONLY_TRAIN = {"train": ""}
_LINKS_CC_BY = "CC-BY-4.0 (links and captions); pictures of their owners"
_LAION_SCORES = ("similarity", "pwatermark", "punsafe")


def _web(name: str, license_: str, home_page: str, *scores: str, language: str = "") -> Corpus:
    layout = img2dataset.layout(*scores)
    return Corpus(name, layout, ("caption",), license_, home_page, _ONLY_TRAIN, language)


# Sorted by name.
_ALL = (
    _web(
        "coyo_700m",
        _LINKS_CC_BY,
        "https://github.com/kakaobrain/coyo-dataset",
        "clip_similarity_vitb32",
        "clip_similarity_vitl14",
        "nsfw_score_opennsfw2",
        "nsfw_score_gantman",
        "watermark_score",
        "aesthetic_score_laion_v2",
        language="en",
    ),
    _web(
        "datacomp",
        _LINKS_CC_BY,
        "https://www.datacomp.ai",
        "clip_b32_similarity_score",
        "clip_l14_similarity_score",
    ),
    _web("laion_coco", _LINKS_CC_BY, "https://laion.ai/blog/laion-coco", *_LAION_SCORES, language="en"),
    _web("laion_en", _LINKS_CC_BY, "https://laion.ai/blog/laion-5b", *_LAION_SCORES, language="en"),
    _web("laion_zh", _LINKS_CC_BY, "https://laion.ai/blog/laion-5b", *_LAION_SCORES, language="zh"),
)

CORPORA: dict[str, Corpus] = {corpus.name: corpus for corpus in _ALL}
