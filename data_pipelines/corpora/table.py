"""All public corpora, one entry each; training and evaluation share it. See `corpus` for the fields."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipelines.corpora import (
    ai2d,
    coco,
    conceptual,
    dialogue_json,
    doc_vqa,
    documents,
    flickr,
    gqa,
    grit,
    img2dataset,
    kgeography,
    nocaps,
    refcoco,
    synthdog,
    synthetic_pages,
    text,
    textcaps,
    visual_genome,
    vqa_json,
)
from data_pipelines.corpora.corpus import Corpus, Layout
from data_pipelines.corpora.evaluated import EVALUATED

_ONLY_TRAIN = {"train": ""}
_CAPTION = ("caption",)
_OWNERS = "pictures of their owners"
_LINKS_CC_BY = f"CC-BY-4.0 (links and captions); {_OWNERS}"
_GOOGLE = f"free for any purpose with credit to Google (links and captions); {_OWNERS}"
_LAION_SCORES = ("similarity", "pwatermark", "punsafe")
_COYO_SCORES = (
    "clip_similarity_vitb32",
    "clip_similarity_vitl14",
    "nsfw_score_opennsfw2",
    "nsfw_score_gantman",
    "watermark_score",
    "aesthetic_score_laion_v2",
)
_DATACOMP_SCORES = ("clip_b32_similarity_score", "clip_l14_similarity_score")


def _web(name: str, home_page: str, scores: tuple[str, ...], language: str = "") -> Corpus:
    """A corpus of links that img2dataset has downloaded."""
    return Corpus(name, img2dataset.layout(*scores), _CAPTION, _LINKS_CC_BY, home_page, _ONLY_TRAIN, language)


def _captions(name: str, layout: Layout, license_: str, home_page: str, splits: Mapping[str, str]) -> Corpus:
    """A corpus of English captions."""
    return Corpus(name, layout, _CAPTION, license_, home_page, splits, "en")


def _vqa(name: str, layout: Layout, license_: str, home_page: str, splits: Mapping[str, str]) -> Corpus:
    """A corpus of English questions."""
    return Corpus(name, layout, ("vqa",), license_, home_page, splits, "en")


def _phrases(name: str, layout: Layout, license_: str, home_page: str, splits: Mapping[str, str]) -> Corpus:
    """A corpus of English phrases with boxes."""
    return Corpus(name, layout, ("ref_grounding", "grounded_caption"), license_, home_page, splits, "en")


_UNSTATED = "not stated by the publisher; research use"
_REFER = "Apache-2.0 (phrases); pictures of COCO"
_TRAIN_AND_VAL = {"train": "train", "val": "val"}
_COCO_2014 = {"train": "train2014", "val": "val2014"}
_TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}
_UNC = {"train": "unc/train", "val": "unc/val", "test_a": "unc/testA", "test_b": "unc/testB"}

# Sorted by name.
_ALL = (
    _vqa(
        "ai2d",
        ai2d.LAYOUT,
        "AI2D licence (research, no redistribution)",
        "https://prior.allenai.org/projects/diagram-understanding",
        {"train": "train", "test": "test"},
    ),
    _captions(
        "cc12m", conceptual.CC12M, _GOOGLE, "https://github.com/google-research-datasets/conceptual-12m", _ONLY_TRAIN
    ),
    _captions(
        "cc3m",
        conceptual.CC3M,
        _GOOGLE,
        "https://ai.google.com/research/ConceptualCaptions",
        {"train": "training", "val": "validation"},
    ),
    _vqa(
        "chartqa",
        doc_vqa.CHARTQA,
        "GPL-3.0",
        "https://github.com/vis-nlp/ChartQA",
        {
            **_TRAIN_AND_VAL,
            "test": "test",
            "test_human": "test/test_human",
            "test_augmented": "test/test_augmented",
        },
    ),
    _captions(
        "coco_captions",
        coco.layout(),
        "CC-BY-4.0 (captions); pictures under the licences of Flickr",
        "https://cocodataset.org",
        {"train": "train2017", "val": "val2017", "train2014": "train2014", "val2014": "val2014"},
    ),
    _web("coyo_700m", "https://github.com/kakaobrain/coyo-dataset", _COYO_SCORES, "en"),
    _web("datacomp", "https://www.datacomp.ai", _DATACOMP_SCORES),
    _vqa("docvqa", doc_vqa.DOCVQA, _UNSTATED, "https://www.docvqa.org", _TRAIN_VAL_TEST),
    _vqa(
        "dvqa",
        doc_vqa.DVQA,
        "CC-BY-NC-4.0",
        "https://github.com/kushalkafle/DVQA_dataset",
        {"train": "train", "val_easy": "val_easy", "val_hard": "val_hard"},
    ),
    _captions(
        "flickr30k",
        flickr.LAYOUT,
        "non-commercial research and education; pictures under the terms of use of Flickr",
        "https://shannon.cs.illinois.edu/DenotationGraph",
        {"train": "train", "val": "val", "test": "test", "all": flickr.ALL},
    ),
    _vqa(
        "gqa",
        gqa.LAYOUT,
        "CC-BY-4.0",
        "https://cs.stanford.edu/people/dorarad/gqa",
        {
            "train": "train_balanced_questions",
            "train_all": "train_all_questions",
            "val": "val_balanced_questions",
            "testdev": "testdev_balanced_questions",
        },
    ),
    Corpus(
        "grit",
        grit.LAYOUT,
        ("grounding", "ref_grounding", "grounded_caption"),
        f"MS-PL (captions and boxes); {_OWNERS}",
        "https://huggingface.co/datasets/zzliang/GRIT",
        _ONLY_TRAIN,
        "en",
    ),
    Corpus(
        "image_text",
        img2dataset.layout(*_LAION_SCORES),
        _CAPTION,
        "unknown (unless a row states it)",
        "https://github.com/rom1504/img2dataset",
        _ONLY_TRAIN,
    ),
    _vqa("infovqa", doc_vqa.INFOVQA, _UNSTATED, "https://www.docvqa.org", _TRAIN_VAL_TEST),
    Corpus(
        "kgeography",
        kgeography.LAYOUT,
        ("vqa", "grounding", "ref_grounding", "grounded_caption"),
        "GPL-2.0-or-later",
        "https://apps.kde.org/kgeography",
        _ONLY_TRAIN,
    ),
    _web("laion_coco", "https://laion.ai/blog/laion-coco", _LAION_SCORES, "en"),
    _web("laion_en", "https://laion.ai/blog/laion-5b", _LAION_SCORES, "en"),
    _web("laion_zh", "https://laion.ai/blog/laion-5b", _LAION_SCORES, "zh"),
    Corpus(
        "llava",
        dialogue_json.LLAVA,
        ("dialogue",),
        f"CC-BY-4.0 and the terms of use of OpenAI (dialogues); {_OWNERS}",
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        _ONLY_TRAIN,
        "en",
    ),
    _captions("nocaps", nocaps.LAYOUT, "CC-BY-2.0", "https://nocaps.org", {"val": "val"}),
    _vqa("ocr_vqa", vqa_json.OCR_VQA, _UNSTATED, "https://ocr-vqa.github.io", {"train": "1", "val": "2", "test": "3"}),
    _vqa("okvqa", vqa_json.OKVQA, _UNSTATED, "https://okvqa.allenai.org", _COCO_2014),
    Corpus(
        "openclipart",
        img2dataset.layout(),
        _CAPTION,
        "CC0-1.0 (public domain)",
        "https://packages.debian.org/bookworm/openclipart-svg",
        _ONLY_TRAIN,
    ),
    Corpus(
        "qwen_vl_dialogues",
        dialogue_json.QWEN_VL,
        ("dialogue",),
        "unknown; that of the authors of the dialogues",
        "https://github.com/QwenLM/Qwen-VL",
        _ONLY_TRAIN,
    ),
    _phrases(
        "refcoco",
        refcoco.REFCOCO,
        _REFER,
        refcoco.HOME_PAGE,
        {**_UNC, "train_google": "google/train", "val_google": "google/val", "test_google": "google/test"},
    ),
    _phrases("refcoco_plus", refcoco.REFCOCO_PLUS, _REFER, refcoco.HOME_PAGE, _UNC),
    _phrases(
        "refcocog",
        refcoco.REFCOCOG,
        _REFER,
        refcoco.HOME_PAGE,
        {
            "train": "umd/train",
            "val": "umd/val",
            "test": "umd/test",
            "train_google": "google/train",
            "val_google": "google/val",
        },
    ),
    _captions(
        "sbu",
        conceptual.SBU,
        f"research (links and captions); {_OWNERS}",
        "https://www.cs.rice.edu/~vo9/sbucaptions",
        _ONLY_TRAIN,
    ),
    _vqa("st_vqa", vqa_json.ST_VQA, _UNSTATED, "https://rrc.cvc.uab.es/?ch=11", {"train": "train"}),
    *(
        Corpus(
            f"synthdog_{language}",
            synthdog.LAYOUT,
            ("vqa",),
            "MIT (generator); texts of Wikipedia CC-BY-SA",
            "https://github.com/clovaai/donut",
            {"train": "train", "val": "validation", "test": "test"},
            language,
        )
        for language in ("en", "zh")
    ),
    Corpus(
        "text", text.LAYOUT, ("text",), "unknown (unless a row states it)", "https://jsonlines.org", {"train": "train"}
    ),
    _captions(
        "textcaps",
        textcaps.LAYOUT,
        "CC-BY-4.0 (captions); pictures CC-BY-2.0",
        "https://textvqa.org/textcaps",
        {"train": "train", "val": "val"},
    ),
    _vqa("textvqa", vqa_json.TEXTVQA, "CC-BY-4.0", "https://textvqa.org", _TRAIN_VAL_TEST),
    Corpus(
        "tuxpaint_stamps",
        img2dataset.layout(),
        _CAPTION,
        "GPL-2.0-only",
        "https://packages.debian.org/bookworm/tuxpaint-stamps-default",
        _ONLY_TRAIN,
    ),
    _vqa("vgqa", visual_genome.LAYOUT, "CC-BY-4.0", visual_genome.HOME_PAGE, {"train": "question_answers.json"}),
    _phrases(
        "visual_genome",
        visual_genome.LAYOUT,
        "CC-BY-4.0",
        visual_genome.HOME_PAGE,
        {"train": "region_descriptions.json"},
    ),
    _vqa("vizwiz", vqa_json.VIZWIZ, "CC-BY-4.0", "https://vizwiz.org", _TRAIN_VAL_TEST),
    _vqa(
        "vqav2",
        vqa_json.VQAV2,
        "CC-BY-4.0",
        "https://visualqa.org",
        {**_COCO_2014, "test_dev": "test-dev2015", "test": "test2015"},
    ),
)

# Corpora whose pictures the readers render.
_RENDERED = (
    Corpus(
        "html_pages",
        documents.html_layout(),
        ("ocr",),
        f"unknown; {_OWNERS}",
        "https://commoncrawl.org",
        _ONLY_TRAIN,
    ),
    Corpus(
        "pdf_pages",
        documents.pdf_layout(),
        ("ocr",),
        f"unknown; {_OWNERS}",
        "https://commoncrawl.org",
        _ONLY_TRAIN,
    ),
    Corpus(
        "synthetic_pages",
        synthetic_pages.LAYOUT,
        ("ocr",),
        "of the texts and photographs",
        "https://github.com/clovaai/donut",
        _ONLY_TRAIN,
    ),
)

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus for corpus in sorted((*_ALL, *EVALUATED, *_RENDERED), key=lambda corpus: corpus.name)
}
