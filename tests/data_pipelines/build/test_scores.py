"""The step that scores pairs by CLIP before they are cleaned."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.__main__ import main
from data_pipelines.clean.pair import score_at_least
from data_pipelines.clean.rule import rule
from data_pipelines.compose import composers
from data_pipelines.corpora import table
from data_pipelines.duplicates import decontaminate
from data_pipelines.recipes import table as recipes
from data_pipelines.score.clip_model import NO_PICTURE, ClipModel
from qwenvl_jax.models.clip import CLIP_MODELS
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.scoring.clip import ClipScorer
from qwenvl_jax.scoring.clip_tokenizer import ClipTokenizer
from tests.scoring.clip_files import VOCABULARY, tiny_config, write_tiny
from tests.support import small_corpus
from tests.support.corpora.table import FIXTURES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = tiny_config(ClipTokenizer.load(VOCABULARY).vocab_size)
    checkpoint = write_tiny(tmp_path_factory.mktemp("clip"), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CLIP_MODELS, "tiny", config)
        yield ClipModel("tiny", str(checkpoint), str(VOCABULARY), batch_size=16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows in 4 files; one of the pictures is broken."""
    folder = tmp_path_factory.mktemp("scored") / "corpus"
    small_corpus.write(folder, 200, per_file=50)
    (folder / "pictures" / "3.png").write_bytes(b"\x89PNG broken")
    return folder


def expected_scores(folder: Path, model: ClipModel) -> dict[str, float | None]:
    """Row -> score; None for rows whose picture is broken. Rows without picture or text are left out."""
    rows = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line) if line.startswith('{"') else {}
            if "picture" in row and (folder / row["picture"]).exists():
                rows.append(row)
    pairs = [((folder / row["picture"]).read_bytes(), [row["text"].lower()]) for row in rows]
    scores = ClipScorer.load("tiny", model.checkpoint, model.vocabulary, 16).score(pairs)
    return {row["id"]: score[0] if isinstance(score, list) else None for row, score in zip(rows, scores, strict=True)}


def changes(model: ClipModel, least: float) -> dict[str, Any]:
    return {
        "clip": model,
        "recipe": (*small_corpus.RECIPE, rule(score_at_least, column="clip", least=least)),
        "across": (),
    }


def counts_of(manifest: dict[str, Any]) -> Any:
    (counts,) = (each for each in manifest["rules"] if each["rule"] == "score_at_least")
    return counts


def middle(scores: dict[str, float | None]) -> float:
    """A number between two scores, in the middle."""
    known = sorted(score for score in scores.values() if score is not None)
    half = len(known) // 2
    return (known[half - 1] + known[half]) / 2


def test_pairs_are_kept_by_their_scores(
    corpus: Path, model: ClipModel, run_small: Callable[..., Any], tmp_path: Path
) -> None:
    scores = expected_scores(corpus, model)
    least = middle(scores)
    manifest = run_small(corpus, tmp_path / "output", workers=1, **changes(model, least))
    kept = [score for score in scores.values() if score is not None and score >= least]
    low = [score for score in scores.values() if score is not None and score < least]
    assert len(kept) > 5 and len(low) > 5
    counts = counts_of(manifest)
    assert counts["dropped"]["clip too low"] == len(low)
    assert counts["seen"] - sum(counts["dropped"].values()) == len(kept)
    assert manifest["job"]["clip"] == model.identity
    failed = [json.loads(line) for line in (tmp_path / "output" / "failed.jsonl").read_text().splitlines()]
    broken = [row for row in failed if row["reason"] == NO_PICTURE]
    assert len(broken) == sum(score is None for score in scores.values()) > 0


def test_no_part_is_scored_twice(
    corpus: Path,
    model: ClipModel,
    run_small: Callable[..., Any],
    contents: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    settings = changes(model, middle(expected_scores(corpus, model)))
    run_small(corpus, tmp_path / "output", workers=1, keep_work=True, **settings)
    before = contents(tmp_path / "output")
    files = sorted((tmp_path / ".output.work" / "scores").iterdir())
    assert len(files) == 4
    made = {file: file.stat().st_mtime_ns for file in files[1:]}
    shutil.rmtree(tmp_path / "output")
    shutil.rmtree(tmp_path / ".output.work" / "clean")
    files[0].write_bytes(files[0].read_bytes()[:-20])  # not whole
    run_small(corpus, tmp_path / "output", workers=1, keep_work=True, **settings)
    assert contents(tmp_path / "output") == before
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == made
    json.loads(files[0].read_bytes())


def test_a_retry_scores_the_rows_that_failed(
    corpus: Path, model: ClipModel, run_small: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    settings = changes(model, -1.0)
    first = run_small(folder, tmp_path / "output", workers=1, **settings)
    assert first["failed"]["reasons"][NO_PICTURE] > 0
    small_corpus.add_missing_pictures(folder)
    (folder / "pictures" / "3.png").write_bytes(small_corpus.picture(3))
    second = run_small(folder, tmp_path / "output", workers=1, retry=True, **settings)
    assert not set(second["failed"]["reasons"]) & {NO_PICTURE, "picture missing"}
    assert counts_of(second)["dropped"] == counts_of(first)["dropped"]


def test_a_damaged_checkpoint_ends_a_run_in_one_sentence(
    corpus: Path, model: ClipModel, run_small: Callable[..., Any], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(Path(model.checkpoint).read_bytes()[:-7])
    other = dataclasses.replace(model, checkpoint=str(damaged))
    with pytest.raises(UserError, match=r"damaged.safetensors is truncated|ends in the middle of"):
        run_small(corpus, tmp_path / "output", workers=1, **changes(other, 0.0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clip_least=0.3"], "--clip_least needs a CLIP model; name it by --clip"),
        (["--clip=ViT-B-32"], "the recipe of small has no rule on CLIP scores; name the least, such as --clip_least"),
        (["--clip_vocabulary=v"], "--clip_vocabulary needs a CLIP model; name it by --clip"),
        (["--clip=ViT-B-32", "--clip_least=0.3"], "--clip_checkpoint= does not exist; name a file that is there"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    flags: list[str], message: str, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.CORPORA, "small", small_corpus.CORPUS)
        patch.setitem(recipes.RECIPES, "small", small_corpus.RECIPE)
        for task, composer in small_corpus.COMPOSERS.items():
            patch.setitem(composers.COMPOSERS, task, composer)
        with pytest.raises(SystemExit, match="2"):
            main(["small", f"--input={corpus}", f"--output={tmp_path / 'output'}", *flags])
    assert f"error: {message}" in capfd.readouterr().err


@pytest.mark.parametrize("corpus", sorted(name for name, each in table.CORPORA.items() if "caption" not in each.tasks))
def test_a_corpus_without_captions_is_not_scored(corpus: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([corpus, "--input=i", "--output=o", f"--split={next(iter(table.CORPORA[corpus].splits))}", "--clip=tiny"])
    assert f"error: --clip scores captions, and {corpus} has none; leave out --clip" in capfd.readouterr().err


@pytest.mark.slow
def test_a_mixture_scores_its_captions_alone_and_after_the_rule_on_evaluation_sets(
    model: ClipModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("coco_captions", "visual_genome"):
        FIXTURES[name](tmp_path / "raw" / name)
    build = ["table3", f"--input={tmp_path}/raw", "--workers=1"]
    main([*build, f"--output={tmp_path}/plain"])
    index = tmp_path / "evaluation.index"
    decontaminate.main([f"{tmp_path}/plain/coco_captions/caption:train", f"--output={index}"])
    files = [f"--clip_checkpoint={model.checkpoint}", f"--clip_vocabulary={model.vocabulary}"]
    clip = ["--clip=tiny", *files, "--clip_least=-1"]
    main([*build, f"--output={tmp_path}/scored", *clip, f"--evaluation_index={index}"])
    captions, regions = (
        json.loads((tmp_path / "scored" / name / "manifest.json").read_text())
        for name in ("coco_captions", "visual_genome")
    )
    assert [each["rule"] for each in captions["job"]["recipe"]][-2:] == ["not_in_evaluation", "score_at_least"]
    assert captions["job"]["clip"] and not regions["job"]["clip"]
    assert regions["job"]["recipe"][-1]["rule"] == "not_in_evaluation"
    plain = json.loads((tmp_path / "plain/visual_genome/manifest.json").read_text())
    assert regions["kept"] == plain["kept"] > 0
    dropped = {each["rule"]: each for each in captions["rules"]}
    assert dropped["not_in_evaluation"]["dropped"] and dropped["score_at_least"]["seen"] == 0
    assert "visual_genome is built without --clip" in capfd.readouterr().out
