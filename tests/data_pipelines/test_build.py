"""The whole data set from rendered sources is readable, complete and repeatable, and replaced only if it should be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines.quickstart.__main__ import main
from data_pipelines.quickstart.build import VOCABULARY, build
from data_pipelines.quickstart.ingredients import Ingredients
from data_pipelines.quickstart.scenes import SPLITS
from data_pipelines.quickstart.settings import QuickstartSettings
from data_pipelines.quickstart.shards import make_records, shard_count, write_shards
from qwenvl_jax.config import TokenizerConfig
from qwenvl_jax.data import formats
from qwenvl_jax.data.dialogues import DialogueContent, Turn
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import TRAINING_TASKS, Record, content_of, sample_count, samples_of, stated_sizes
from qwenvl_jax.data.tokenizer import load_tokenizer
from qwenvl_jax.runtime.errors import UserError


def checksums(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read(folder: Path, task: str, split: str) -> list[Record]:
    return list(RecordReader(folder / task, split, verify=True))


def samples(folder: Path, task: str, split: str) -> list[Record]:
    """Of a whole split, each as a record of its own."""
    return [sample for record in read(folder, task, split) for sample in samples_of(record)]


def contents(record: Record) -> list[Mapping[str, Any]]:
    """The content of each of its samples."""
    return [sample.content for sample in samples_of(record)]


def test_counts_and_manifest(built: Path, settings: QuickstartSettings, ingredients: Ingredients) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    for task in TRAINING_TASKS:
        count = 30 * settings.texts_per_scene + len(ingredients.captions) if task == "text" else 30
        assert len(RecordReader(built / task, "train")) == count
        assert len(RecordReader(built / task, "heldout")) == 9
        assert manifest["tasks"][task]["train"]["records"] == count
    assert manifest["rendered"] is True and manifest["settings_hash"] == settings.digest(manifest["digests"])
    assert manifest["sources"]["cleaning_rules"]["emoji"] == {"changed": 0, "dropped": 0}
    assert manifest["licenses"]["scenes"] == "CC0-1.0"
    assert (built / "report.html").read_text().count("<figure") >= 40
    assert Image.open(built / "contact_sheet.png").size[0] > 1000


def test_every_record_can_be_written_out_and_tokenised(built: Path) -> None:
    tokenizer = load_tokenizer(TokenizerConfig("sentencepiece", str(built / VOCABULARY)))
    assert tokenizer.vocab_size <= 400
    for task in TRAINING_TASKS:
        for split in SPLITS:
            for record in samples(built, task, split):
                pieces = formats.training_pieces(record)
                texts = [str(piece.value) for piece in pieces if piece.kind == "text"]
                assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)
                for payload, stated in zip(record.images, stated_sizes(record), strict=True):
                    assert decode_image(payload, stated=stated).size == (100, 100)
                    assert payload.startswith(b"\xff\xd8") and stated in (None, (100, 100))


def test_coordinates_are_multiples_of_ten(built: Path) -> None:
    for record in samples(built, "ref_grounding", "train"):
        (text,) = [str(p.value) for p in formats.training_pieces(record) if p.supervised and p.kind == "text"]
        numbers = [int(n) for n in text.translate(str.maketrans("(),", "   ")).split()]
        assert len(numbers) == 4 and all(n % 10 == 0 for n in numbers)


Box = tuple[int, int, int, int]


def named_boxes(grounding: Record) -> dict[Box, str]:
    """The name of the object in every box of a grounding record, in lower case."""
    content: Mapping[str, Any] = grounding.content
    segments = [segment for segment in content["segments"] if segment["boxes"]]
    return {tuple(segment["boxes"][0]): segment["text"].lower() for segment in segments}


def captioned_locations(caption: str) -> dict[str, str]:
    """Where a caption says that each object is: "A badger at the top left." gives {"a badger": "top left"}."""
    locations = {}
    for phrase in caption.lower().rstrip(".").split(" and "):
        name, _, location = re.split(r" (at|on|in) the ", phrase)
        locations[name] = location
    return locations


def location(box: Box) -> str:
    """Where the centre of a box is in a scene of 100 px; the middle is 44 to 56 in either direction."""
    across = (box[0] + box[2]) / 2
    down = (box[1] + box[3]) / 2
    row = "top" if down <= 44 else "bottom" if down > 56 else ""
    column = "left" if across <= 44 else "right" if across > 56 else ""
    return f"{row} {column}".strip() or "middle"


def boxed(record: Record) -> str:
    """The content of a text record with coordinates as one string, else "". Written words have no composition."""
    content: Mapping[str, Any] = record.content
    if content.get("task") == "ocr" or not ({"box", "segments"} & content.keys() or "(" in content.get("text", "")):
        return ""
    return json.dumps(content, sort_keys=True)


def test_tasks_speak_of_the_same_scene(built: Path) -> None:
    rows = [read(built, task, "train") for task in ("caption", "grounding", "ref_grounding", "grounded_caption")]
    for caption, grounding, referring, grounded in zip(*rows, strict=True):
        assert caption.images == grounding.images == referring.images == grounded.images
        names = named_boxes(grounding)
        assert {tuple(content["box"]): content["phrase"] for content in contents(referring)} == names
        assert {tuple(content["box"]): content["description"] for content in contents(grounded)} == names
        if caption.language == "en":
            locations = {name: location(box) for box, name in names.items()}
            assert captioned_locations(caption.content["caption"]) == locations


def test_a_picture_has_different_questions_and_a_heldout_one_has_one(built: Path) -> None:
    counts = []
    for record in read(built, "vqa", "train"):
        questions = [content["question"] for content in contents(record)]
        assert len(set(questions)) == len(questions)
        counts.append(len(questions))
    assert max(counts) == 4 and min(counts) >= 1
    for task in TRAINING_TASKS:
        assert all(sample_count(record) == 1 for record in read(built, task, "heldout"))


def test_pictures_of_the_splits_are_apart(built: Path) -> None:
    for task in TRAINING_TASKS:
        train, heldout = ({image for record in read(built, task, split) for image in record.images} for split in SPLITS)
        assert not train & heldout
    # A text with boxes describes one composition, so it belongs to one split, too.
    train_texts, heldout_texts = ({boxed(record) for record in read(built, "text", split)} - {""} for split in SPLITS)
    assert train_texts and heldout_texts
    assert not train_texts & heldout_texts


def test_ids_are_unique(built: Path) -> None:
    ids = [record.id for task in TRAINING_TASKS for split in SPLITS for record in read(built, task, split)]
    assert len(ids) == len(set(ids))


@pytest.fixture(scope="module")
def many_records(settings: QuickstartSettings, ingredients: Ingredients) -> dict[str, list[Record]]:
    """One shard of 250 records per task."""
    return make_records(dataclasses.replace(settings, train=250, records_per_shard=250), ingredients, "train", 0)


def turns_of(dialogue: Record) -> Sequence[Turn]:
    return content_of(dialogue, DialogueContent)["turns"]


def questions_of(dialogue: Record) -> list[str]:
    return [turn["parts"][-1]["text"] for turn in turns_of(dialogue)[::2]]


def test_turns_alternate_and_the_first_shows_every_picture(many_records: dict[str, list[Record]]) -> None:
    for dialogue in many_records["dialogue"]:
        turns = turns_of(dialogue)
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        shown = [part["image"] for part in turns[0]["parts"] if set(part) == {"image"}]
        assert shown == list(range(len(dialogue.images)))
        assert len(content_of(dialogue, DialogueContent)["sizes"]) == len(shown)


def test_dialogues_have_one_or_two_pictures_and_up_to_three_questions(many_records: dict[str, list[Record]]) -> None:
    shapes = {(len(dialogue.images), len(questions_of(dialogue))) for dialogue in many_records["dialogue"]}
    assert shapes == {(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)}  # a picture of words alone can only be read


def test_dialogues_ask_every_kind_of_question_and_none_twice(many_records: dict[str, list[Record]]) -> None:
    for dialogue in many_records["dialogue"]:
        questions = questions_of(dialogue)
        assert len(set(questions)) == len(questions)
    text = " ".join(question for dialogue in many_records["dialogue"] for question in questions_of(dialogue))
    which = ("Which picture shows", "Which picture says", "And in Picture")
    for phrase in (*which, "Where is it?", "Read the text in", "How many", "图1"):
        assert phrase in text


def test_boxes_in_answers_belong_to_the_named_object(many_records: dict[str, list[Record]]) -> None:
    names_by_image = {record.images[0]: named_boxes(record) for record in many_records["grounding"]}
    for dialogue in many_records["dialogue"]:
        answers = [part for turn in turns_of(dialogue)[1::2] for part in turn["parts"]]
        for part in answers:
            if "ref" not in part:
                continue
            names = names_by_image[dialogue.images[part["image"]]]
            x1, y1, x2, y2 = map(int, part["boxes"][0])
            name = names[x1, y1, x2, y2]
            if dialogue.language == "en":
                _, noun = name.split(" ", 1)
                assert part["ref"] == f"The {noun}"


def test_shards_do_not_depend_on_who_writes_them(
    built: Path, settings: QuickstartSettings, ingredients: Ingredients, tmp_path: Path
) -> None:
    work = [(split, shard) for split in SPLITS for shard in range(shard_count(settings, split))]
    for split, shard in reversed(work):
        write_shards(tmp_path, settings, ingredients, split, shard)
    written = checksums(tmp_path)
    assert written and written.items() <= checksums(built).items()


def test_a_finished_folder_is_left_alone(built: Path, settings: QuickstartSettings) -> None:
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*")}
    manifest = build(settings, built, built.parent / "cache")
    assert manifest["settings_hash"] == settings.digest(manifest["digests"])
    assert {p: p.stat().st_mtime_ns for p in built.rglob("*")} == before


def test_half_written_and_outdated_folders_are_replaced(tiny: QuickstartSettings, tmp_path: Path) -> None:
    output = tmp_path / "data"
    (output / "caption").mkdir(parents=True)
    leftover = output / "caption" / "quickstart-train.array_record-00000-of-00009"
    leftover.write_text("x")
    killed = tmp_path / ".data.0123abcd.tmp"
    killed.mkdir()
    build(tiny, output, tmp_path / "cache")
    assert not killed.exists() and not leftover.exists()
    first = checksums(output)
    next((output / "vqa").glob("*train*")).write_bytes(b"damaged")
    build(tiny, output, tmp_path / "cache")
    assert checksums(output) == first
    build(dataclasses.replace(tiny, seed=5), output, tmp_path / "cache")
    assert checksums(output)["manifest.json"] != first["manifest.json"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["data"]


def test_foreign_files_are_never_removed(tiny: QuickstartSettings, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="choose another --output"):
        build(tiny, tmp_path, tmp_path / "cache")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["text/thesis.txt", "ocr/scans-00000.array_record", "vocabulary/mine.model"])
def test_folders_with_our_names_and_foreign_files_are_never_removed(
    name: str, tiny: QuickstartSettings, tmp_path: Path
) -> None:
    kept = tmp_path / "data" / name
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    with pytest.raises(UserError, match="contains files that this pipeline did not write"):
        build(tiny, tmp_path / "data", tmp_path / "cache")
    assert kept.read_text() == "mine"


def test_a_full_disk_is_reported_before_the_work(
    tiny: QuickstartSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="free some space"):
        build(tiny, tmp_path / "data", tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        ["--train=0"],
        ["--scene.max_size=2"],
        ["--num_stamps=400"],
        ["--stamps=star/red,star/none,ring/red,ring/blue,cross/red,cross/blue"],
        ["--vocab_size=20"],
        ["--output=/dev/null/x"],
    ],
)
def test_mistakes_end_with_one_sentence(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--source=rendered", "--train=2", "--heldout=2", "--workers=1", f"--cache={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        main([*small, f"--output={tmp_path}/data", *wrong])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert not list(tmp_path.glob("*data*")) and not list(tmp_path.glob(".data*"))


def test_rendered_data_is_reported(built: Path, settings: QuickstartSettings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        build(settings, built, built.parent / "cache")
    assert "RENDERED" in caplog.text
    assert "RENDERED" in (built / "report.html").read_text()


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(built: Path, settings: QuickstartSettings, tmp_path: Path) -> None:
    build(settings, tmp_path / "data", tmp_path / "cache", workers=2)
    assert checksums(tmp_path / "data") == checksums(built)


def test_a_disk_that_fills_is_reported(
    tiny: QuickstartSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("write() failed: No space left on device; writing x")  # as ArrayRecord's writer says it

    monkeypatch.setattr("data_pipelines.quickstart.build.write_shards", full)
    with pytest.raises(UserError, match="no space left"):
        build(tiny, tmp_path / "data", tmp_path / "cache")
    assert not list(tmp_path.glob("*data*"))


def test_a_record_does_not_depend_on_its_shard(settings: QuickstartSettings, ingredients: Ingredients) -> None:
    coarse = dataclasses.replace(settings, records_per_shard=30)
    whole = make_records(coarse, ingredients, "train", 0)
    parts = [make_records(settings, ingredients, "train", shard) for shard in (0, 1)]
    for task in ("caption", "vqa", "grounding", "ref_grounding", "grounded_caption", "ocr"):
        assert [r for part in parts for r in part[task]] == whole[task]
