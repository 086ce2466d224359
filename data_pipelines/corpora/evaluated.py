"""The corpora that are only asked: benchmarks on which nothing is trained. They are a part of `table`."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipelines.corpora import (
    doc_vqa,
    exams,
    flickr,
    gqa,
    grit_refexp,
    mmbench,
    mme,
    nocaps,
    refcoco,
    science_qa,
    seed_bench,
    touchstone,
    vqa_json,
)
from data_pipelines.corpora.corpus import Corpus, Layout
from qwenvl_jax.data.evaluation_content import EVALUATION

_UNSTATED = "not stated by the publisher; research use"
_OWNERS = "pictures of their owners"
_TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}


def _benchmark(
    name: str, layout: Layout, license_: str, home_page: str, splits: Mapping[str, str], language: str = "en"
) -> Corpus:
    return Corpus(name, layout, (EVALUATION,), license_, home_page, splits, language)


_PUBLISHED = (
    _benchmark(
        "ceval",
        exams.CEVAL,
        "CC-BY-NC-SA-4.0",
        "https://github.com/hkust-nlp/ceval",
        {"dev": "dev", "val": "val", "test": "test"},
        "zh",
    ),
    _benchmark(
        "cmmlu",
        exams.CMMLU,
        "CC-BY-NC-4.0",
        "https://github.com/haonan-li/CMMLU",
        {"dev": "dev", "test": "test"},
        "zh",
    ),
    _benchmark(
        "coco_karpathy",
        flickr.COCO,
        "CC-BY-4.0 (captions); pictures under the licences of Flickr",
        "https://cs.stanford.edu/people/karpathy/deepimagesent",
        {"train": "train", "restval": "restval", "val": "val", "test": "test"},
    ),
    _benchmark(
        "grit_refexp",
        grit_refexp.LAYOUT,
        f"Apache-2.0 (phrases); {_OWNERS}",
        "https://github.com/allenai/grit_official",
        {"ablation": "ablation", "test": "test"},
    ),
    _benchmark(
        "mmbench",
        mmbench.LAYOUT,
        _UNSTATED,
        "https://github.com/open-compass/MMBench",
        {"dev": "dev", "test": "test", "dev_cn": "dev_cn", "test_cn": "test_cn"},
    ),
    _benchmark("mme", mme.LAYOUT, _UNSTATED, mme.HOME_PAGE, {"test": ""}),
    _benchmark(
        "mmlu",
        exams.MMLU,
        "MIT",
        "https://github.com/hendrycks/test",
        {"dev": "dev", "val": "val", "test": "test"},
    ),
    _benchmark(
        "scienceqa",
        science_qa.LAYOUT,
        "CC-BY-NC-SA-4.0",
        "https://github.com/lupantech/ScienceQA",
        {**_TRAIN_VAL_TEST, "test_text": f"test{science_qa.TEXT}"},
    ),
    _benchmark(
        "seed_bench",
        seed_bench.LAYOUT,
        f"CC-BY-NC-4.0 (questions); {_OWNERS}",
        "https://github.com/AILab-CVC/SEED-Bench",
        {"test": seed_bench.ALL, "image": "image", "video": f"{seed_bench.VIDEO}4", "video_8": f"{seed_bench.VIDEO}8"},
    ),
    _benchmark(
        "touchstone",
        touchstone.LAYOUT,
        _UNSTATED,
        "https://github.com/OFA-Sys/TouchStone",
        {"en": "en", "zh": "zh"},
        "",
    ),
)

# Evaluation sets that `python -m data_pipelines.debian --evaluation` makes, in the layouts of published benchmarks.
_PACKAGES = "https://packages.debian.org/bookworm"
_STAMPS = ("GPL-2.0-only", f"{_PACKAGES}/tuxpaint-stamps-default")
_MAPS = ("GPL-2.0-or-later", f"{_PACKAGES}/kgeography-data")
_DEBIAN = (
    _benchmark("debian_capitals", exams.MMLU, *_MAPS, {"dev": "dev", "test": "test"}),
    _benchmark("debian_captions", nocaps.LAYOUT, *_STAMPS, {"test": "val"}),
    _benchmark("debian_captions_zh", nocaps.LAYOUT, *_STAMPS, {"test": "val"}, "zh"),
    _benchmark(
        "debian_charts", doc_vqa.CHARTQA, "Unicode-DFS-2016", f"{_PACKAGES}/unicode-cldr-core", {"test": "test"}
    ),
    _benchmark("debian_choices", mmbench.LAYOUT, *_STAMPS, {"test": "dev"}),
    _benchmark(
        "debian_documents", doc_vqa.DOCVQA, "GPL-2.0-only", f"{_PACKAGES}/installation-guide-amd64", {"test": "val"}
    ),
    _benchmark("debian_maps", gqa.LAYOUT, *_MAPS, {"test": "testdev_balanced_questions"}),
    _benchmark("debian_phrases", refcoco.REFCOCO, *_MAPS, {"test": "unc/testA"}),
    _benchmark("debian_phrases_zh", refcoco.REFCOCO, *_MAPS, {"test": "unc/testA"}, "zh"),
    _benchmark(
        "debian_words",
        vqa_json.TEXTVQA,
        "GPL-2.0-or-later (words); CC-BY-4.0 or CC0-1.0 (photographs)",
        f"{_PACKAGES}/lomiri-wallpapers-16.04",
        {"test": "val"},
    ),
    _benchmark("debian_yes_no", mme.LAYOUT, "GPL-2.0-only; GPL-2.0-or-later (maps)", _STAMPS[1], {"test": ""}),
)

EVALUATED: tuple[Corpus, ...] = (*_PUBLISHED, *_DEBIAN)
