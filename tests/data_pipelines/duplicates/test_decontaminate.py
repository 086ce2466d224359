"""Pairs that are close to evaluation samples: found, shown as evidence, and exact against brute force."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_pipelines.clean.rule import Dropped, Rule, apply, new_counts
from data_pipelines.duplicates import hash_index, untouched
from data_pipelines.duplicates.decontaminate import PICTURE, TEXT, decontamination, main
from data_pipelines.duplicates.evaluation_index import build_index, load_index, save_index
from data_pipelines.duplicates.hash_index import HashIndex
from data_pipelines.duplicates.signatures import distances
from data_pipelines.pair import Picture, Question, RawPair
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import Content
from qwenvl_jax.runtime.errors import UserError

QUESTION = "Which of the two red foxes behind the fence is closer to the wooden gate?"
ASKED = [{"question": QUESTION, "answer": "the left one"}, {"question": "What is this?", "answer": "a fox"}]


def scene(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (7, 9, 3), np.uint8))
    return small.resize((320, 240), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluation")
    captions = [
        Record(str(seed), "caption", "shown", "en", "CC0-1.0", (encoded(scene(seed)),), {"caption": "A short one."})
        for seed in range(6)
    ]
    asked = cast(Content, {"annotations": ASKED})
    vqa = Record("q", "vqa", "asked", "en", "CC0-1.0", (encoded(scene(0)),), asked)
    write_records(root / "captions", {"test": captions}, name="shown")
    write_records(root / "vqa", {"val": [vqa]}, name="asked")
    main([f"{root}/captions:test", f"{root}/vqa:val", f"--output={root}/index"])
    return root


@pytest.fixture(scope="module")
def rule(folder: Path) -> Rule:
    return decontamination(folder / "index")


def pair_with(image: Image.Image, form: str = "PNG", **options: int) -> RawPair:
    return RawPair("p", "test", "x", pictures=(Picture(encoded(image, form, **options)),))


def crop(image: Image.Image) -> Image.Image:
    return image.crop((7, 19, 295, 235))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("change", [crop, ImageOps.mirror, lambda i: i.convert("L"), lambda i: i.resize((224, 224))])
def test_changed_evaluation_pictures_are_found(rule: Rule, seed: int, change: object) -> None:
    verdict = rule(pair_with(change(scene(seed)), "JPEG", quality=30))  # type: ignore[operator]
    assert isinstance(verdict, Dropped) and verdict.reason == PICTURE
    (item,) = verdict.evidence
    assert item["pair"] == "p" and item["evaluation"] == f"shown/{seed}" and 0 <= item["distance"] <= 44
    for side in ("picture", "evaluation_picture"):
        assert Image.open(io.BytesIO(base64.b64decode(item[side]))).size <= (96, 96)


@pytest.mark.parametrize("seed", range(100, 120))
def test_other_pictures_stay(rule: Rule, seed: int) -> None:
    pair = pair_with(scene(seed))
    assert rule(pair) is pair


def test_texts_are_found_if_they_are_long(rule: Rule) -> None:
    asked = RawPair("p", "test", "x", questions=(Question(QUESTION.upper().replace("?", " ?"), ()),))
    verdict = rule(asked)
    assert isinstance(verdict, Dropped) and verdict.reason == TEXT
    assert verdict.evidence[0]["evaluation"] == "asked/q" and verdict.evidence[0]["evaluation_text"] == QUESTION
    common = RawPair("p", "test", "x", texts=("A short one.",), questions=(Question("What is this?", ()),))
    assert rule(common) is common


def test_untouched_samples_are_listed(folder: Path, rule: Rule, tmp_path: Path) -> None:
    counts = new_counts((rule,))
    for seed in (1, 4, 4, 100):
        apply((rule,), pair_with(scene(seed)), counts)
    assert counts[rule.name].causes == {"shown/1": 1, "shown/4": 2}
    rows = [{"rule": rule.name, **counts[rule.name].as_json()}]
    manifest = {"job": {"recipe": [rule.as_json()]}, "rules": rows}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    untouched.main([str(tmp_path), f"--index={folder}/index", f"--output={tmp_path}/clean.json"])
    lists = json.loads((tmp_path / "clean.json").read_text())
    assert lists == {
        "clean": ["shown/0", "shown/2", "shown/3", "shown/5", "asked/q"],
        "touched": ["shown/1", "shown/4"],
    }


def test_a_corpus_without_the_index_has_no_untouched_samples(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text('{"job": {"recipe": []}, "rules": []}')
    with pytest.raises(SystemExit) as ended:
        untouched.main([str(tmp_path), f"--index={folder}/index", f"--output={tmp_path}/clean.json"])
    assert ended.value.code == 2 and "was not built with this index" in capsys.readouterr().err


def test_equal_records_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    save_index(build_index([(folder / "captions", "test"), (folder / "vqa", "val")]), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (folder / "index").read_bytes()


def test_records_of_benchmarks_are_indexed(tmp_path: Path) -> None:
    """With questions, captions, a picture that is missing, and questions without a picture."""
    caption = "Two red foxes sleep behind the old fence next to the gate."
    records = [
        Record("q", "evaluation", "b", "en", "x", (encoded(scene(0)),), {"questions": [{"id": "1", "text": QUESTION}]}),
        Record("c", "evaluation", "b", "en", "x", (b"",), {"questions": [{"id": "2", "answers": [caption]}]}),
        Record("t", "evaluation", "b", "en", "x", (), {"questions": [{"id": "3", "text": "Who?", "answers": ["I"]}]}),
    ]
    write_records(tmp_path / "evaluation", {"test": records}, name="b")
    main([f"{tmp_path}/evaluation:test", f"--output={tmp_path}/index"])
    rule = decontamination(tmp_path / "index")
    pairs = [
        pair_with(scene(0)),
        RawPair("p", "test", "x", texts=(caption,)),
        RawPair("p", "test", "x", texts=(QUESTION,)),
        pair_with(scene(1)),
    ]
    verdicts = [rule(pair) for pair in pairs]
    assert [isinstance(verdict, Dropped) for verdict in verdicts] == [True, True, True, False]
    touched = [verdict.evidence[0]["evaluation"] for verdict in verdicts if isinstance(verdict, Dropped)]
    assert touched == ["b/q", "b/c", "b/q"]


def test_an_index_that_changed_is_noticed(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes((folder / "index").read_bytes())
    rule = decontamination(path)
    load_index.cache_clear()
    save_index(build_index([(folder / "vqa", "val")]), path)
    with pytest.raises(UserError, match="has changed since the recipe was made"):
        rule(pair_with(scene(1)))
    path.write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="is no index of evaluation sets"):
        decontamination(path)


@pytest.mark.parametrize("wrong", [["data/vqa"], ["{folder}/captions:nowhere"], ["/nowhere:test"]])
def test_mistakes_end_with_one_sentence(wrong: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*(text.format(folder=folder) for text in wrong), "--output=/dev/null/x"])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


@pytest.mark.parametrize("distance", [0, 15, 16, 44])
def test_the_lookup_is_exact(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 256, (3000, 32), np.uint8)
    queries = []
    for _ in range(60):  # some bits of a known hash turned around, at the limit and next to it
        bits = np.unpackbits(hashes[rng.integers(len(hashes))])
        turned = rng.permutation(256)[: max(0, distance + rng.integers(-2, 3))]
        bits[turned] ^= 1
        queries.append(np.packbits(bits))
    monkeypatch.setattr(hash_index, "_FEW", 0)
    index = HashIndex(hashes)
    hits = 0
    for query in queries:
        indices, counts = index.near(query, distance)
        expected = np.flatnonzero(distances(query, hashes) <= distance)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(counts, np.unpackbits(hashes[expected] ^ query, axis=1).sum(axis=1))
        hits += len(indices)
    assert hits >= 20


def test_an_empty_index_finds_nothing() -> None:
    indices, _ = HashIndex(np.zeros((0, 32), np.uint8)).near(np.zeros(32, np.uint8), 44)
    assert len(indices) == 0
