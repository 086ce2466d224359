"""Evaluation sets from public corpora: which corpora have questions of a benchmark, and all benchmarks by one command.

<input>/<corpus>/                         raw, as docs/benchmark_data.md describes it
<output>/<corpus>_<split>/                the output of `build`
<output>/<corpus>_<split>/evaluation/     the record folder that an evaluation reads; its split has the corpus' name

A corpus without a folder, and a split without files, is left out with a sentence.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.corpora.corpus import Corpus
from data_pipelines.corpora.table import CORPORA
from data_pipelines.report.evaluation_sets import counts_of, losses
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

# Corpora with one of these tasks have captions with references, questions, or phrases with boxes.
_ASKED = {"caption", "vqa", "ref_grounding", EVALUATION}
_log = logging.getLogger(__name__)

# Corpus -> the splits that papers report, in the order of the tables of Qwen-VL: captions, general questions, questions
# about text, phrases, benchmarks of instructions, and pure text, whose `dev` has the examples of few-shot prompts.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "nocaps": ("val",),
    "flickr30k": ("test",),
    "coco_karpathy": ("test",),
    "vqav2": ("val", "test_dev", "test"),
    "okvqa": ("val",),
    "gqa": ("testdev",),
    "vizwiz": ("val", "test"),
    "scienceqa": ("test",),
    "textvqa": ("val",),
    "docvqa": ("val", "test"),
    "infovqa": ("val", "test"),
    "chartqa": ("test_human", "test_augmented"),
    "ocr_vqa": ("val", "test"),
    "ai2d": ("test",),
    "refcoco": ("val", "test_a", "test_b"),
    "refcoco_plus": ("val", "test_a", "test_b"),
    "refcocog": ("val", "test"),
    "grit_refexp": ("test",),
    "seed_bench": ("test",),
    "mme": ("test",),
    "touchstone": ("en", "zh"),
    "mmbench": ("dev", "test"),
    "mmlu": ("dev", "test"),
    "cmmlu": ("dev", "test"),
    "ceval": ("dev", "val", "test"),
}
# What `python -m data_pipelines.debian --evaluation` fetches.
DEBIAN: dict[str, tuple[str, ...]] = {
    "debian_captions": ("test",),
    "debian_captions_zh": ("test",),
    "debian_maps": ("test",),
    "debian_words": ("test",),
    "debian_documents": ("test",),
    "debian_charts": ("test",),
    "debian_phrases": ("test",),
    "debian_phrases_zh": ("test",),
    "debian_choices": ("test",),
    "debian_yes_no": ("test",),
    "debian_capitals": ("dev", "test"),
}
# Names on the command line -> the benchmarks that they build.
COLLECTIONS = {"benchmarks": BENCHMARKS, "debian_benchmarks": DEBIAN}
# Corpora that are published in one folder: if there is no folder of the corpus' name, this one is read.
_SHARED = {"refcoco_plus": "refcoco", "refcocog": "refcoco"}

# (corpus, split, its folder, output) -> builds it and returns its manifest.
BuildSplit = Callable[[str, str, str, str], Mapping[str, Any]]


def as_benchmark(corpus: Corpus) -> Corpus:
    """The corpus whose only records are those of an evaluation.

    Raises:
      UserError: if it has nothing that can be asked and scored, or two kinds of questions, which no metric can join.
    """
    if {"vqa", "ref_grounding"} <= set(corpus.tasks):
        raise UserError(
            f"{corpus.name} has questions and phrases with boxes, which no benchmark can have together; omit "
            "--evaluation"
        )
    if not _ASKED & set(corpus.tasks):
        raise UserError(
            f"{corpus.name} has neither captions nor questions nor phrases with boxes, so it is no benchmark; omit "
            "--evaluation"
        )
    return dataclasses.replace(corpus, tasks=(EVALUATION,))


def build_benchmarks(name: str, folder: str, output: str, build_split: BuildSplit) -> list[Mapping[str, Any]]:
    """Builds every split of every benchmark of a collection that has files below a folder.

    Args:
      name: a key of COLLECTIONS.
      folder: the input, which has one folder per corpus.
      output: the folder to write; see the module.
      build_split: see `BuildSplit`.

    Returns:
      The manifests of those that were built.

    Raises:
      UserError: if no benchmark has a folder with its files, or, once all others are built, if one could not be built.
    """
    manifests = []
    missing = []
    failed = []
    for corpus, splits in COLLECTIONS[name].items():
        raw = _folder_of(corpus, storage.path(folder))
        if raw is None:
            missing.append(corpus)
            continue
        for split in splits:
            try:
                CORPORA[corpus].layout.files(raw, CORPORA[corpus].splits[split])
            except UserError as error:
                _log.info("%s, %s is left out: %s", corpus, split, error)
                continue
            try:
                manifests.append(
                    build_split(corpus, split, os.fspath(raw), os.fspath(storage.path(output) / f"{corpus}_{split}"))
                )
            except UserError as error:
                failed.append(f"{corpus}, {split}: {error}")
                _log.info("%s, %s could not be built: %s", corpus, split, error)
    if missing:
        _log.info("left out, because %s has no folder of this name: %s", folder, ", ".join(missing))
    if not manifests and not failed:
        raise UserError(
            f"{folder} has no folder with the files of a benchmark; it needs some of {', '.join(COLLECTIONS[name])}; "
            "see docs/benchmark_data.md"
        )
    if manifests:
        _log.info("%s", "\n".join(table(manifests)))
    if failed:
        others = f" ({len(failed)} could not be built, {len(manifests)} are)" if manifests or failed[1:] else ""
        raise UserError(
            f"{failed[0]}{others}; mend it and run the same command again, which builds only what is missing"
        )
    return manifests


def _folder_of(name: str, folder: epath.Path) -> epath.Path | None:
    for each in (name, _SHARED.get(name, name)):
        if storage.is_folder(folder / each):
            return folder / each
    return None


def table(manifests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of text: records, questions and pictures of every set, and what each lacks."""
    yield f"{'benchmark':<28}{'records':>10}{'questions':>12}{'pictures':>10}{'failed':>8}"
    for manifest in manifests:
        records, questions, pictures = counts_of(manifest)
        name = f"{manifest['corpus']}, {manifest['split']}"
        yield f"{name:<28}{records:>10,}{questions:>12,}{pictures:>10,}{manifest['failed']['rows']:>8,}"
        for phrase in losses(manifest):
            yield f"  {phrase}"
