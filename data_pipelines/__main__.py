"""Builds record folders from a public corpus: reads, cleans, removes duplicates, composes and writes, exactly once.

    python -m data_pipelines CORPUS --input=FOLDER --output=FOLDER [--split=train] [--workers=2] [--retry] [--help]
    python -m data_pipelines MIXTURE --input=FOLDER --output=FOLDER [--workers=2] [--help]
    python -m data_pipelines CORPUS --evaluation --split=val --input=FOLDER --output=FOLDER [--help]
    python -m data_pipelines benchmarks --input=FOLDER --output=FOLDER [--help]

A mixture, such as table2, builds every one of its corpora that has a folder below the input. With --evaluation the
questions of a split become the records of a benchmark, uncleaned; `benchmarks` does this for every benchmark that has a
folder below the input. See docs/benchmark_data.md.

A run that was ended in any way continues when the same command is started again, and gives the same bytes. Flags of
Apache Beam, such as --runner=DataflowRunner, are passed on. See docs/pipelines.md (a run), docs/corpora.md (the corpora
and their folders) and docs/cleaning.md (their rules).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.build import benchmarks
from data_pipelines.build.build_mixture import build_mixture
from data_pipelines.build.job import Job, code_digest
from data_pipelines.build.mixtures import MIXTURES
from data_pipelines.clean.pair import score_at_least
from data_pipelines.clean.rule import Rule, rule
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora.synthetic_pages import CACHE
from data_pipelines.corpora.table import CORPORA
from data_pipelines.duplicates.decontaminate import decontamination
from data_pipelines.recipes.evaluation import EVALUATION_RECIPE
from data_pipelines.recipes.table import ACROSS, RECIPES
from data_pipelines.score.clip_model import CLIP, ClipModel, reads_clip, rules_before_score
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.record_writer import BYTES_PER_SHARD
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error, nearest


def _parser() -> Parser:
    parser = Parser("python -m data_pipelines", __doc__)
    parser.add_argument("corpus", metavar="CORPUS", nargs="?", help=f"one of {_names()}")
    parser.add_argument("--input", help="folder of the corpus (docs/corpora.md shows its files), on a disk or gs://")
    parser.add_argument("--output", help="folder to write, on a disk or gs://")
    parser.add_argument("--split", help="the split of the corpus to read; default train")
    parser.add_argument("--evaluation", action="store_true", help="write the questions of a benchmark, uncleaned")
    parser.add_argument("--workers", type=int, default=0, help="processes; default: one per core, at most 4")
    parser.add_argument("--clip", help="score pairs by this CLIP model, such as ViT-B-32; see docs/clip.md")
    parser.add_argument("--clip_checkpoint", default="", help="OpenCLIP checkpoint of the model, a file or folder")
    parser.add_argument("--clip_vocabulary", default="", help="OpenCLIP's vocabulary, bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--clip_least", type=float, help="lowest CLIP score that is kept; default: that of the recipe")
    parser.add_argument("--retry", action="store_true", help="read the failed rows of the finished output again")
    parser.add_argument("--evaluation_index", help="drop pairs close to this index; see docs/cleaning.md")
    packages = f"folder on a disk of fonts and Debian packages, from which pages are drawn; default {CACHE}"
    parser.add_argument("--cache", default=CACHE, help=packages)
    parser.add_argument("--keep_work", action="store_true", help="keep the work folder next to the output")
    size = f"size at which a shard ends; default {BYTES_PER_SHARD}"
    parser.add_argument("--bytes_per_shard", type=int, default=BYTES_PER_SHARD, help=size)
    return parser


def _names() -> str:
    several = ", ".join((*MIXTURES, *benchmarks.COLLECTIONS))
    return f"{', '.join(sorted(CORPORA))}, or several of them: {several}"


def _check(arguments: argparse.Namespace) -> None:
    name = arguments.corpus
    if name is None:
        raise UserError("name a corpus, such as python -m data_pipelines cc12m --input=.. --output=..; see --help")
    known = (*CORPORA, *MIXTURES, *benchmarks.COLLECTIONS)
    if name not in known:
        raise UserError(f"there is no corpus {name!r}{nearest(name, known)}; see --help")
    for flag in ("input", "output"):
        if not getattr(arguments, flag):
            raise UserError(f"--{flag} is missing; name a folder on a disk or gs://")
    if name not in CORPORA and (arguments.split or arguments.retry):
        raise UserError(f"{name} has neither --split nor --retry; name one corpus of {name} for that")
    if arguments.evaluation or name in benchmarks.COLLECTIONS:
        _check_evaluation(arguments)
    else:
        arguments.split = arguments.split or "train"
        for corpus in MIXTURES[name].corpora if name in MIXTURES else (name,):
            _check_training(corpus)
    if name in CORPORA:
        splits = CORPORA[name].splits
        if arguments.split not in splits:
            known_splits = f"; it has {', '.join(splits)}"
            raise UserError(
                f"{name} has no split {arguments.split!r}{nearest(arguments.split, splits) or known_splits}"
            )
    if arguments.workers < 0 or arguments.bytes_per_shard < 1:
        raise UserError("--workers must be 0 or more, and --bytes_per_shard 1 or more")
    if storage.is_remote(arguments.cache):
        raise UserError(f"--cache={arguments.cache} must be a folder on a disk, because fonts are read from it")
    _check_clip(arguments)


def _check_training(corpus: str) -> None:
    if CORPORA[corpus].tasks == (EVALUATION,):
        raise UserError(f"{corpus} is a benchmark, on which no model may be trained; add --evaluation and --split")
    if corpus not in RECIPES:
        raise UserError(f"there is no recipe for {corpus}; add one to data_pipelines/recipes/table.py")


def _check_evaluation(arguments: argparse.Namespace) -> None:
    name = arguments.corpus
    if name in MIXTURES:
        raise UserError(f"{name} is a mixture for training; name a corpus, or benchmarks for all benchmarks")
    if arguments.clip is not None or arguments.evaluation_index:
        raise UserError("--clip and --evaluation_index leave pairs out, but a benchmark is asked as a whole; omit them")
    if name in CORPORA:
        benchmarks.as_benchmark(CORPORA[name])
        if not arguments.split:
            raise UserError(f"--evaluation needs a --split of {name}; it has {', '.join(CORPORA[name].splits)}")


def _check_clip(arguments: argparse.Namespace) -> None:
    if arguments.clip is None:
        for flag in ("clip_checkpoint", "clip_vocabulary", "clip_least"):
            if getattr(arguments, flag) not in ("", None):
                raise UserError(f"--{flag} needs a CLIP model; name it by --clip, such as --clip=ViT-B-32")
    elif arguments.corpus in CORPORA and not _has_captions(arguments.corpus):
        raise UserError(f"--clip scores captions, and {arguments.corpus} has none; leave out --clip")


def _has_captions(corpus: str) -> bool:
    """Whether pairs of a corpus have texts that describe their pictures, as the CLIP score assumes."""
    return "caption" in CORPORA[corpus].tasks


def _clip(corpus: str, arguments: argparse.Namespace) -> ClipModel | None:
    if arguments.clip is None:
        return None
    if not _has_captions(corpus):
        logging.info("%s is built without --clip, because it has no captions", corpus)
        return None
    return ClipModel(
        arguments.clip,
        os.fspath(storage.absolute(arguments.clip_checkpoint)) if arguments.clip_checkpoint else "",
        os.fspath(storage.absolute(arguments.clip_vocabulary)) if arguments.clip_vocabulary else "",
    )


def _recipe(name: str, arguments: argparse.Namespace) -> tuple[Rule, ...]:
    """The recipe of a corpus with the rules that the flags add.

    If pairs are scored, it has a rule on the score. The rule on evaluation sets comes before that, because the score
    costs more than all rules, and at the end if there is no score.
    """
    recipe = RECIPES[name]
    on_score = [position for position, each in enumerate(recipe) if reads_clip(each)]
    least = arguments.clip_least
    if arguments.clip is None or not _has_captions(name):
        if on_score:
            raise UserError(f"the recipe of {name} needs a CLIP model; name it by --clip, such as --clip=ViT-B-32")
    elif least is not None:
        chosen = rule(score_at_least, column=CLIP, least=least)
        recipe = tuple(chosen if reads_clip(each) else each for each in recipe) + (() if on_score else (chosen,))
    elif not on_score:
        raise UserError(f"the recipe of {name} has no rule on CLIP scores; name the least, such as --clip_least=0.28")
    if not arguments.evaluation_index:
        return recipe
    before = rules_before_score(recipe)
    return (*before, decontamination(arguments.evaluation_index), *recipe[len(before) :])


def _job(name: str, split: str, folder: str, output: str, arguments: argparse.Namespace) -> Job:
    """The job that builds a split of a corpus: records for training, or those of a benchmark."""
    corpus = CORPORA[name]
    cache = os.fspath(storage.absolute(arguments.cache))
    corpus = dataclasses.replace(corpus, layout=corpus.layout.with_cache(cache))
    evaluates = arguments.evaluation or arguments.corpus in benchmarks.COLLECTIONS
    if evaluates:
        corpus = benchmarks.as_benchmark(corpus)
    return Job(
        corpus=corpus,
        split=split,
        input=os.fspath(storage.absolute(folder)),
        output=os.fspath(artifacts.output_folder(output)),
        recipe=EVALUATION_RECIPE if evaluates else _recipe(name, arguments),
        clip=None if evaluates else _clip(name, arguments),
        across=() if evaluates else ACROSS.get(name, ()),
        composers={task: COMPOSERS[task] for task in corpus.tasks},
        code=code_digest(),
        bytes_per_shard=arguments.bytes_per_shard,
        retry=arguments.retry,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one sentence on a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    with exit_on_user_error():
        arguments, beam_flags = _parser().parse_known_args(argv)
        _check(arguments)
        logging.disable(logging.WARNING)  # Beam's import warns about cloud clients that nothing here needs
        from data_pipelines import beam
        from data_pipelines.build.run import build

        logging.disable(logging.NOTSET)
        workers = arguments.workers or min(4, os.cpu_count() or 1)
        flags = [f"--{name}" for name in vars(arguments) if name != "corpus"]

        def build_split(name: str, split: str, folder: str, output: str) -> Mapping[str, Any]:
            job = _job(name, split, folder, output, arguments)
            return build(job, beam.options(beam_flags, workers, flags), workers, arguments.keep_work)

        name = arguments.corpus
        if name in benchmarks.COLLECTIONS:
            benchmarks.build_benchmarks(name, arguments.input, arguments.output, build_split)
        elif name in MIXTURES:

            def build_corpus(corpus: str, folder: str, output: str) -> Mapping[str, Any]:
                return build_split(corpus, "train", folder, output)

            build_mixture(name, MIXTURES[name], arguments.input, arguments.output, build_corpus)
        else:
            manifest = build_split(name, arguments.split, arguments.input, arguments.output)
            if arguments.evaluation:
                logging.info("%s", "\n".join(benchmarks.table([manifest])))


if __name__ == "__main__":
    main()
