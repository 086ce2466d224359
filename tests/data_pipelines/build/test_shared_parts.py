"""Small files share parts: the output is that of one part per file, and nothing less is noticed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.build import parts
from data_pipelines.build.parts import InputFile, Part
from qwenvl_jax.runtime.errors import UserError
from tests.support import small_corpus

JOB = small_corpus.job("/corpus", "/output")


def inputs(sizes: list[int]) -> dict[str, InputFile]:
    return {f"{n:07d}.jsonl": InputFile(f"{n:07d}.jsonl", f"content {n}", (size,)) for n, size in enumerate(sizes)}


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 20), st.integers(1, 30))
def test_every_row_of_every_file_belongs_to_one_part(sizes: list[int], limit: int, many: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "BYTES_PER_STRIDE", limit)
        patch.setattr(parts, "MANY_FILES", many)
        every = parts.list_parts(JOB, inputs(sizes))
    seen = [(file.name, row) for part in every for file in part.files for row in range(70) if part.has(row)]
    assert sorted(seen) == [(name, row) for name in inputs(sizes) for row in range(70)]
    assert [part.number for part in every] == list(range(len(every)))
    assert len({part.digest for part in every}) == len(every)
    for part in every:
        assert len(part.files) == 1 or (part.strides == 1 and sum(file.size for file in part.files) <= limit)
        positions = [part.numbered(index, row).position for index in range(len(part.files)) for row in (0, 1, 10**9)]
        assert positions == sorted(set(positions))
        last = {"file": part.files[-1].name, "row": 7}
        assert part.position(last) == part.numbered(len(part.files) - 1, 7).position


def test_hundreds_of_thousands_of_small_files_are_some_thousand_parts() -> None:
    every = parts.list_parts(JOB, inputs([20_000] * 300_000))
    assert 4000 < len(every) < 20_000
    assert max(sum(file.size for file in part.files) for part in every) <= parts.BYTES_PER_STRIDE


def test_large_files_and_small_corpora_have_a_part_per_file() -> None:
    assert len(parts.list_parts(JOB, inputs([100] * 8191))) == 8191
    whole = dataclasses.replace(JOB, corpus=dataclasses.replace(small_corpus.CORPUS, layout=small_corpus.WHOLE))
    assert len(parts.list_parts(whole, inputs([parts.BYTES_PER_STRIDE] * 20_000))) == 20_000


@given(st.integers(0, 99), st.booleans())
def test_one_file_more_or_less_changes_the_parts_next_to_it_alone(chosen: int, added: bool) -> None:
    before = inputs([10] * 100)
    after = {name: file for name, file in before.items() if added or name != f"{chosen:07d}.jsonl"}
    if added:
        name = f"{chosen:07d}.more.jsonl"
        after = dict(sorted({**before, name: InputFile(name, "content", (10,))}.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MANY_FILES", 20)
        lists: list[set[str]] = [{part.digest for part in parts.list_parts(JOB, each)} for each in (before, after)]
    assert len(lists[0]) > 10 and len(lists[1] - lists[0]) <= 2


@pytest.mark.parametrize("many", [2, 5])
def test_shared_parts_change_nothing(
    many: int, run_small: Any, contents: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a retry of some rows, after which a file has changed under its name, size and times."""
    corpus = tmp_path / "corpus"
    small_corpus.write(corpus, 600, per_file=20)
    run_small(corpus, tmp_path / "apart")
    monkeypatch.setattr(parts, "MANY_FILES", many)
    run_small(corpus, tmp_path / "shared", keep_work=True)
    work = tmp_path / ".shared.work" / "clean"
    before = {path.name for path in work.iterdir()}
    assert 1 < len(before) < 20
    assert contents(tmp_path / "shared") == contents(tmp_path / "apart")
    small_corpus.add_missing_pictures(corpus)
    run_small(corpus, tmp_path / "shared", retry=True, keep_work=True)
    changed = corpus / "0013.jsonl"
    times = changed.stat()
    changed.write_text(changed.read_text().replace("Red", "Tan"))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert changed.stat().st_size == times.st_size
    retried = {path.name for path in work.iterdir()}
    run_small(corpus, tmp_path / "shared", keep_work=True)
    assert len(retried - {path.name for path in work.iterdir()}) <= 2  # a part and its attempt before
    monkeypatch.undo()
    run_small(corpus, tmp_path / "fresh")
    assert contents(tmp_path / "shared") == contents(tmp_path / "fresh")
    failed = [json.loads(line) for line in (tmp_path / "fresh" / "failed.jsonl").read_text().splitlines()]
    rows = [(row["file"], row["row"]) for row in failed]
    assert rows == sorted(rows) and {row for _, row in rows} <= set(range(20))


def test_a_reader_that_stops_does_not_stop_the_next_file(
    run_small: Any, contents: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    small_corpus.write(corpus, 120, per_file=10)

    def read_file(*arguments: Any) -> Any:
        for number, row in enumerate(small_corpus.read_file(*arguments)):
            if number == random.Random(arguments[-1].name).randrange(14):
                raise RuntimeError("stopped")
            yield row

    layout = dataclasses.replace(small_corpus.WHOLE, read_file=read_file)
    changed = dataclasses.replace(small_corpus.CORPUS, layout=layout)
    apart = run_small(corpus, tmp_path / "apart", corpus=changed)
    monkeypatch.setattr(parts, "MANY_FILES", 3)
    run_small(corpus, tmp_path / "shared", corpus=changed)
    assert apart["failed"]["reasons"]["the reader stopped"] > 3
    assert contents(tmp_path / "shared") == contents(tmp_path / "apart")


def test_the_changed_file_of_a_part_is_named(tmp_path: Path) -> None:
    small_corpus.write(tmp_path / "corpus", 60, per_file=10, pictures=1)
    job = small_corpus.job(tmp_path / "corpus", tmp_path / "output")
    files = tuple(parts.list_inputs(job, 1).values())
    part = Part(0, files, 0, 1, "digest")
    parts.check_unchanged(job, part)
    with (tmp_path / "corpus" / "0003.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"0003.jsonl changed while it was read"):
        parts.check_unchanged(job, part)
