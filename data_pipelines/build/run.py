"""A run: from the input to the finished output. A run that was ended continues when it is started again."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from data_pipelines import beam
from data_pipelines.build import parts as parts_lib
from data_pipelines.build import progress
from data_pipelines.build.across_pairs import Shuffle
from data_pipelines.build.clean_part import clean_part
from data_pipelines.build.finish import FAILED, MANIFEST, finish
from data_pipelines.build.job import Job
from data_pipelines.build.parts import InputFile, Part
from data_pipelines.build.score_part import note_unscored, score_part, unscored_parts
from data_pipelines.build.shards import building_folder, measure_group, plan_shards, write_range
from data_pipelines.build.survey import join_blocks, survey, survey_block
from data_pipelines.build.table import table
from data_pipelines.clean.evaluation import missing_pictures
from data_pipelines.report.page import REPORT
from qwenvl_jax.data.schema import TASKS
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.folder_lock import locked, removed_if_empty

_STATE = "state.json"
# The names of the files of an output. A folder with any other file was not written by this pipeline. `samples` is the
# former name of `examples`.
_OUTPUT = re.compile(
    rf"({'|'.join(TASKS)})/([a-z0-9_]+-[a-z0-9_]+\.array_record-\d+-of-\d+|dataset_info\.json|features\.json"
    r"|manifest\.json)|(?:examples|samples)/(dropped|kept)\.jsonl|manifest\.json|failed\.jsonl|report(\.html|/[^/]+)"
)
_log = logging.getLogger(__name__)


def build(job: Job, options: PipelineOptions, workers: int = 1, keep_work: bool = False) -> dict[str, Any]:
    """Builds the output of a job, unless a finished one is there.

    Args:
      job: `attempt` is set by this function.
      options: of Beam (`beam.options`).
      workers: threads that look at the input before the pipeline starts.
      keep_work: keeps the work folder even if no row has failed.

    Returns:
      The manifest of the output.

    Raises:
      UserError: if the input does not have the corpus' layout, `output` holds files of others, or another run works on
        it.
      StorageError, OSError: if storage does not answer, the disk is full, or a folder cannot be written.
    """
    _check_names(job)
    _check_output(job)
    refusal = f"another run works on {job.output}; wait for its end, end it, or choose another --output"
    with locked(job.work, refusal), removed_if_empty(job.work):
        finished = _finished(job)
        if job.retry:
            _check_retry(job, finished)
        elif finished is not None and missing_pictures(finished):
            _log.info("%s lacks pictures, which are looked for again", job.output)
            finished = None
        attempt = _attempt(job) + (1 if job.retry else 0)
        job = dataclasses.replace(job, attempt=attempt)
        started = time.monotonic()
        inputs = parts_lib.list_inputs(job, workers)
        nothing_to_retry = not job.retry or (finished is not None and not finished["failed"]["rows"])
        if finished is not None and nothing_to_retry and _same_inputs(finished, inputs):
            _log.info("%s is up to date", job.output)
            _end(job, finished, keep_work)
            return finished
        parts = parts_lib.list_parts(job, inputs)
        _remove_other_parts(job, parts)
        _remove_runs(job)
        parts_lib.save_parts(job, parts)
        _log.info("%s: %d files, %d parts", job.corpus.name, len(inputs), len(parts))
        with progress.shown(job, parts):
            beam.run_steps(_steps(job), options)
        manifest = finish(job, inputs)
        _publish(job)
        _log.info("%s\n%s is ready after %.1f s", table(manifest), job.output, time.monotonic() - started)
        _end(job, manifest, keep_work)
    return manifest


def _steps(job: Job) -> list[beam.Step]:
    blocks = functools.partial(parts_lib.block_numbers, job)
    steps = []
    if job.clip is not None:
        score = functools.partial(score_part, job)
        steps += [
            beam.Step("score: look", blocks, functools.partial(note_unscored, job)),
            beam.Step("score", functools.partial(unscored_parts, job), score, job.clip),
        ]
    groups = functools.partial(_group_numbers, job)
    steps += [
        beam.Step("clean", functools.partial(parts_lib.load_parts, job), functools.partial(clean_part, job)),
        beam.Step("survey", blocks, functools.partial(survey_block, job)),
        beam.Step("survey: join", functools.partial(list, [job]), join_blocks),
    ]
    for number, rule in enumerate(job.across):
        shuffle = Shuffle(job, number)
        buckets = functools.partial(_bucket_numbers, job, number)
        steps += [
            beam.Step(f"{number} {rule.name}: spread", groups, shuffle.spread),
            beam.Step(f"{number} {rule.name}: compare", buckets, shuffle.compare),
            beam.Step(f"{number} {rule.name}: gather", groups, shuffle.gather),
        ]
    return [
        *steps,
        beam.Step("measure", groups, functools.partial(measure_group, job)),
        beam.Step("write", functools.partial(plan_shards, job), functools.partial(write_range, job)),
    ]


def _group_numbers(job: Job) -> Sequence[int]:
    return range(len(survey(job).groups))


def _bucket_numbers(job: Job, rule: int) -> Sequence[int]:
    return range(survey(job).buckets[rule])


def _check_names(job: Job) -> None:
    """Rules are counted by their names."""
    names = [rule.name for rule in job.recipe] + [rule.name for rule in job.across]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"the recipe of {job.corpus.name} has {twice[0]} twice; give one of them a name of its own")


def _check_output(job: Job) -> None:
    output = storage.path(job.output)
    if storage.absolute(output) == storage.absolute(job.folder):
        raise UserError(f"--output={output} is the input; name another folder")
    if not storage.exists(output):
        return
    files = storage.files_below(output) if storage.is_folder(output) else [output.name]
    strange = [file for file in files if not _OUTPUT.fullmatch(file)]
    if strange or not storage.is_folder(output):
        raise UserError(
            f"{output} contains files that this pipeline did not write, such as {strange[0]!r}; choose another --output"
        )


def _finished(job: Job) -> dict[str, Any] | None:
    """The manifest of a finished output of the same settings and code; None if there is none."""
    output = storage.path(job.output)
    try:
        manifest = artifacts.read_json(output / MANIFEST)
        if manifest["digest"] != job.digest():
            return None
        for task, split in manifest["tasks"].items():
            sizes = storage.sizes_of(output / task, [shard["file"] for shard in split["shards"]])
            if sizes != {shard["file"]: shard["bytes"] for shard in split["shards"]}:
                return None
    except (UserError, KeyError, TypeError, FileNotFoundError):
        return None
    return manifest


def _same_inputs(manifest: Mapping[str, Any], inputs: Mapping[str, InputFile]) -> bool:
    return manifest["inputs"] == {file: each.content for file, each in inputs.items()}


def _check_retry(job: Job, finished: Mapping[str, Any] | None) -> None:
    if finished is None:
        raise UserError(
            f"--retry needs a finished output of this corpus, recipe and code in {job.output}; leave it out"
        )
    if finished["failed"]["rows"] and not storage.exists(job.work / "clean"):
        raise UserError(
            f"--retry needs {job.work}, which was removed; remove {job.output} and build it without --retry"
        )


def _attempt(job: Job) -> int:
    try:
        return artifacts.read_json(job.work / _STATE)["attempt"]
    except UserError:
        return 0


def _remove_other_parts(job: Job, parts: Sequence[Part]) -> None:
    """Removes files of parts that are not of this input, recipe and code, and what killed runs were writing."""
    digests = {part.digest for part in parts}
    for folder in (job.work / "clean", job.work / "scores"):
        for name in storage.names(folder) if storage.is_folder(folder) else ():
            if name.partition(".")[0] not in digests:
                storage.remove(folder / name)


def _remove_runs(job: Job) -> None:
    """Removes the folders of earlier runs."""
    for name in storage.names(job.work) if storage.is_folder(job.work) else ():
        if name.startswith(parts_lib.RUN):
            storage.remove(job.work / name)


def _publish(job: Job) -> None:
    """Gives the finished folder its name. The attempt is noted first: a retry that follows counts on."""
    output = storage.path(job.output)
    artifacts.write_json(job.work / _STATE, {"attempt": job.attempt})
    artifacts.replace_folder(building_folder(job), output)


def _end(job: Job, manifest: Mapping[str, Any], keep_work: bool) -> None:
    """Removes the work folder, or leaves in it what a retry needs. The last line names the report."""
    failed = manifest["failed"]["rows"]
    if not failed and not keep_work:
        storage.remove(job.work)
    elif not keep_work:
        for name in storage.names(job.work):
            if name.startswith(("across-", "shards-", parts_lib.RUN)):
                storage.remove(job.work / name)
        for file in parts_lib.superseded(job):
            storage.remove(file)
    if failed:
        size = _bytes_below(job.work)
        _log.info(
            "%d rows failed, see %s; the same command with --retry reads them again. %s (%.1f MB) is kept for that: "
            "remove it if you will not retry",
            failed,
            storage.path(job.output) / FAILED,
            job.work,
            size / 1e6,
        )
    _log.info("the report is %s", storage.path(job.output) / REPORT)


def _bytes_below(folder: epath.Path) -> int:
    sizes = storage.sizes(folder)
    below = sum(_bytes_below(folder / name) for name, size in sizes.items() if size is None)
    return below + sum(size or 0 for size in sizes.values())
