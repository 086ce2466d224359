"""The small corpus of every layout through the engine: what comes out is what reader, rules and composers say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.clean.image import open_pictures
from data_pipelines.clean.rule import apply, new_counts, rule
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora.table import CORPORA
from data_pipelines.duplicates.dedup import ExactDuplicates, LongestText, NearPictures, NearTexts
from data_pipelines.pair import RawPair
from data_pipelines.recipes.table import RECIPES
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora.table import FIXTURES

RENDERED = {"html_pages", "pdf_pages", "synthetic_pages"}  # take seconds per page


def changes_for(name: str) -> dict[str, Any]:
    """What makes a job of the small corpus one of another corpus."""
    corpus = CORPORA[name]
    recipe = RECIPES.get(name, (rule(open_pictures),))
    return {"corpus": corpus, "recipe": recipe, "composers": {task: COMPOSERS[task] for task in corpus.tasks}}


def expected(folder: Path, split: str, changes: dict[str, Any]) -> dict[str, list[Record]]:
    """The records of all tasks from a plain loop."""
    corpus = changes["corpus"]
    records: dict[str, list[Record]] = {task: [] for task in corpus.tasks}
    for row in corpus.read(folder, split):
        if not isinstance(row, RawPair):
            continue
        try:
            pair = apply(changes["recipe"], row, new_counts(changes["recipe"]))
            if pair is None:
                continue
            composed = {task: changes["composers"][task](pair) for task in corpus.tasks}
        except (UserError, OSError):
            continue
        for task, record in composed.items():
            if record is not None:
                records[task].append(record)
    return records


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in RENDERED else []) for name in FIXTURES]
)
def test_the_engine_writes_what_a_plain_loop_makes(name: str, run_small: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    FIXTURES[name](folder)
    changes = changes_for(name)
    split = next(iter(CORPORA[name].splits))
    manifest = run_small(folder, tmp_path / "output", split=split, across=(), **changes)
    plain = expected(folder, split, changes)
    for task, records in plain.items():
        if records:
            reader = RecordReader(tmp_path / "output" / task, split.lower().replace("-", "_"), verify=True)
            for written, record in zip(reader, records, strict=True):
                assert written.images == record.images and written.id == record.id
                assert json.dumps(written.content, sort_keys=True) == json.dumps(record.content, sort_keys=True)
    assert set(manifest["tasks"]) == {task for task, records in plain.items() if records}
    dropped = sum(sum(each["dropped"].values()) for each in manifest["rules"])
    assert manifest["rows"] == manifest["failed"]["rows"] + dropped + manifest["kept"] > 0


def test_rules_of_duplicates_find_copies_of_a_corpus(run_small: Callable[..., Any], tmp_path: Path) -> None:
    """A shard is there three times; the copies go, whichever rule is asked."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    FIXTURES["laion_en"](folder)
    changes = changes_for("laion_en") | {"recipe": (rule(open_pictures),)}
    alone = run_small(folder, tmp_path / "alone", across=(ExactDuplicates(), LongestText()), **changes)
    assert alone["kept"] > 1
    for tar in sorted(folder.glob("*.tar")):
        for copy in ("7", "8"):
            (folder / f"{copy}{tar.name[1:]}").write_bytes(tar.read_bytes())
            if tar.with_suffix(".parquet").exists():
                table = tar.with_suffix(".parquet").read_bytes()
                (folder / f"{copy}{tar.stem[1:]}.parquet").write_bytes(table)
    for across in ((ExactDuplicates(), LongestText()), (NearPictures(), NearTexts(), ExactDuplicates(), LongestText())):
        output = tmp_path / f"output-{len(across)}"
        manifest = run_small(folder, output, across=across, **changes)
        assert manifest["rows"] == 3 * alone["rows"]
        assert manifest["kept"] <= alone["kept"]
        kept = {record.id for record in RecordReader(output / "caption")}
        assert len(kept) == manifest["kept"] and not any(name.startswith(("7", "8")) for name in kept)


def test_a_job_of_every_corpus_has_a_digest(tmp_path: Path) -> None:
    from tests.support import small_corpus

    jobs = [small_corpus.job(tmp_path, tmp_path, **changes_for(name)) for name in CORPORA]
    assert len({job.digest() for job in jobs}) == len(jobs)
    assert jobs[0].digest() == dataclasses.replace(jobs[0], run="another", input="elsewhere").digest()
