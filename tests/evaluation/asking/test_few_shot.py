"""Exemplars: which are drawn, that they depend on nothing else than seed and question, and how they are written."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.asking.few_shot import Exemplars
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Exemplar
from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.evaluation.benchmarks.published_records import SAMPLES, ask, record_for
from tests.evaluation.samples import noise, record_of, vqa_record

COUNT = 24


def question(number: int, part: int = 0, **changes: Any) -> dict[str, Any]:
    return {"id": f"{number}.{part}", "text": f"What is {number}?", "answers": [f"answer {number}.{part}"]} | changes


def picture_record(number: int, parts: int = 1, image: bytes | None = None, **changes: Any) -> Record:
    questions = [question(number, part, **changes) for part in range(parts)]
    record = record_of("evaluation", {"questions": questions}, name=f"r{number}", image=noise(number))
    return record if image is None else dataclasses.replace(record, images=(image,))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COUNT records with one, two or three questions; record 3 is damaged, record 4 has no answer."""
    folder = tmp_path_factory.mktemp("train") / "evaluation"
    records = [picture_record(number, 1 + number % 3) for number in range(COUNT)]
    records[3] = picture_record(3, image=b"")
    records[4] = picture_record(4, answers=[" "])
    write_records(folder, {"train": records}, name="few", records_per_shard=7)
    return folder


@pytest.fixture(scope="module")
def reader(train: Path) -> RecordReader:
    return RecordReader(train, "train")


def texts(exemplars: list[Exemplar]) -> list[str]:
    return [exemplar.question["answers"][0] for exemplar in exemplars]


def identifier_of(record: Record) -> str:
    content: Mapping[str, Any] = record.content
    return content["questions"][0]["id"]


def asked(identifier: str, image: int = 1000) -> Record:
    return record_of("evaluation", {"questions": [{"id": identifier, "text": "?"}]}, image=noise(image))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=8), st.integers(0, 3), st.integers(0, 5), st.integers(0, COUNT - 1))
def test_exemplars_are_distinct_and_never_show_a_picture_of_the_question(
    reader: RecordReader, identifier: str, seed: int, shots: int, image: int
) -> None:
    record = asked(identifier, image)
    chosen = Exemplars(reader, shots, seed=seed)(record, 0)
    assert len(chosen) == shots
    assert len({exemplar.images for exemplar in chosen}) == shots
    assert all(exemplar.images != record.images for exemplar in chosen)
    assert all(exemplar.images[0] and exemplar.question["answers"][0].strip() for exemplar in chosen)
    assert texts(chosen) == texts(Exemplars(reader, shots, seed=seed)(record, 0))


def test_more_shots_continue_the_same_draw(reader: RecordReader) -> None:
    """A curve over the number of shots then differs by the added exemplars alone."""
    assert texts(Exemplars(reader, 8)(asked("q"), 0))[:4] == texts(Exemplars(reader, 4)(asked("q"), 0))


def test_more_shots_continue_the_draw_from_many_records(monkeypatch: pytest.MonkeyPatch, reader: RecordReader) -> None:
    """As of the training split of VQAv2, of which only the drawn records are read."""
    read: list[int] = []

    def record(self: RecordReader, index: int) -> Record:
        read.append(index)
        return picture_record(index, 3)

    monkeypatch.setattr(RecordReader, "__len__", lambda self: 444_000)
    monkeypatch.setattr(RecordReader, "__getitem__", record)
    eight = texts(Exemplars(reader, 8)(asked("q"), 0))
    assert len(read) == 8
    for shots in (1, 2, 4):
        assert texts(Exemplars(reader, shots)(asked("q"), 0)) == eight[:shots]


def test_seeds_and_questions_draw_differently(reader: RecordReader) -> None:
    drawn = {tuple(texts(Exemplars(reader, 4, seed=seed)(asked(f"q{k}"), 0))) for seed in range(3) for k in range(3)}
    assert len(drawn) == 9


def test_every_usable_record_is_drawn_about_equally(reader: RecordReader) -> None:
    counts: Counter[str] = Counter()
    exemplars = Exemplars(reader, 2)
    for number in range(1500):
        counts.update(exemplar.question["id"].split(".")[0] for exemplar in exemplars(asked(f"q{number}"), 0))
    assert set(counts) == {str(number) for number in range(COUNT)} - {"3", "4"}
    mean = sum(counts.values()) / len(counts)
    assert max(abs(count - mean) for count in counts.values()) < 6 * mean**0.5


def test_the_order_of_questions_and_threads_change_nothing(reader: RecordReader) -> None:
    records = [asked(f"q{number}") for number in range(40)]
    exemplars = Exemplars(reader, 3)
    alone = {identifier_of(record): texts(exemplars(record, 0)) for record in records}
    random.Random(0).shuffle(records)
    fresh = Exemplars(reader, 3)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda record: texts(fresh(record, 0)), records))
    for record, drawn in zip(records, together, strict=True):
        assert drawn == alone[identifier_of(record)]


@pytest.mark.slow
def test_another_process_draws_the_same(train: Path, reader: RecordReader) -> None:
    program = (
        "import sys; from qwenvl_jax.data.readers.record_folder import RecordReader\n"
        "from tests.evaluation.asking.test_few_shot import Exemplars, asked, texts\n"
        "print(texts(Exemplars(RecordReader(sys.argv[1], 'train'), 5)(asked('q'), 0)))"
    )
    printed = subprocess.run([sys.executable, "-c", program, str(train)], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == str(texts(Exemplars(reader, 5)(asked("q"), 0)))


def test_the_leak_of_the_release_needs_a_word(reader: RecordReader) -> None:
    """With all pictures as exemplars, that of the question is among them only if the leak is wanted."""
    usable = COUNT - 2
    record = asked("q", image=5)
    assert noise(5) in [exemplar.images[0] for exemplar in Exemplars(reader, usable, leak=True)(record, 0)]
    with pytest.raises(UserError, match=f"has {usable - 1} exemplars .* but {usable} are needed"):
        Exemplars(reader, usable)(record, 0)


def test_records_of_other_tasks_and_unknown_choices_are_refused(tmp_path: Path, reader: RecordReader) -> None:
    write_records(tmp_path / "vqa", {"train": [vqa_record(0)]}, name="vqa")
    with pytest.raises(UserError, match="has records of the task vqa"):
        Exemplars(RecordReader(tmp_path / "vqa", "train"), 1)
    with pytest.raises(UserError, match="is not one of random, category"):
        Exemplars(reader, 1, "nearest")


def test_a_failed_read_is_not_passed_over(reader: RecordReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the exemplars would depend on the storage."""

    def fail(self: RecordReader, index: int) -> Record:
        raise StorageError("no answer")

    monkeypatch.setattr(RecordReader, "__getitem__", fail)
    with pytest.raises(StorageError):
        Exemplars(reader, 1)(asked("q"), 0)


def test_kept_records_are_few_megabytes(monkeypatch: pytest.MonkeyPatch, reader: RecordReader) -> None:
    """A record that is drawn again soon is not read again, and large pictures push each other out."""
    read: list[int] = []
    megabytes = 10
    payload = noise(1) + bytes(megabytes << 20)  # a JPEG may have anything behind its end

    def record(self: RecordReader, index: int) -> Record:
        read.append(index)
        return picture_record(index, image=payload)

    monkeypatch.setattr(RecordReader, "__getitem__", record)
    exemplars = Exemplars(reader, 4, leak=True)
    first = texts(exemplars(asked("q"), 0))
    assert texts(exemplars(asked("q"), 0)) == first
    assert len(read) == 4
    for number in range(30):
        exemplars(asked(f"q{number}"), 0)
    assert len(read) > 30
    kept = sum(len(each.images[0]) for each in exemplars._cache.values() if each)
    assert kept <= 64 << 20


def test_a_chat_has_no_exemplars() -> None:
    exemplar = Exemplar({"id": "1", "text": "?", "answers": ["yes"]}, "en", (noise(1),))
    with pytest.raises(UserError, match="a question in a chat has no exemplars"):
        ask(BENCHMARKS["mme"], asking=Asking(exemplars=lambda record, number: [exemplar]))


def exam_records(count: int) -> list[Record]:
    """Questions of two subjects in turn."""
    records = []
    for number in range(count):
        changes: dict[str, Any] = {"text": f"Question {number}", "category": ("law", "high_school_biology")[number % 2]}
        record = record_for("mmlu_test", id=str(number), right=number % 4, **changes)
        records.append(dataclasses.replace(record, id=f"e{number}"))
    return records


def test_examinations_show_the_first_of_the_same_subject(tmp_path: Path) -> None:
    write_records(tmp_path / "dev", {"dev": exam_records(14)}, name="dev", records_per_shard=3)
    exemplars = Exemplars(RecordReader(tmp_path / "dev", "dev"), 5, "category", seed=7)
    chosen = exemplars(record_for("mmlu_test"), 0)
    assert [exemplar.question["id"] for exemplar in chosen] == ["1", "3", "5", "7", "9"]
    with pytest.raises(UserError, match="has 0 exemplars"):
        exemplars(record_for("mmlu_test", category="virology"), 0)


def prompt(name: str, exemplars: list[Exemplar]) -> str:
    asking = Asking(exemplars=lambda record, number: exemplars)
    pieces = ask(BENCHMARKS[name], asking=asking).pieces
    return "".join(f"<img>{piece.value}</img>" if piece.kind == "image" else str(piece.value) for piece in pieces)


def test_shown_answers_follow_without_a_separator() -> None:
    exemplars = [
        Exemplar({"id": "1", "text": "What is it?", "answers": ["cat", "dog", "dog"]}, "en", (noise(7),)),
        Exemplar({"id": "2", "text": "How many?", "answers": ["2"]}, "en", (noise(8),)),
    ]
    assert prompt("vqav2_val", exemplars) == (
        "<img>0</img>What is it? Answer: dog<img>1</img>How many? Answer: 2<img>2</img>What is the man holding? Answer:"
    )
    caption = [Exemplar({"id": "1", "answers": ["A red bus.", "A bus."]}, "en", (noise(7),))]
    assert prompt("flickr30k_karpathy_test", caption) == (
        "<img>0</img>Describe the image in English: A red bus.<img>1</img>Describe the image in English:"
    )


def test_images_of_exemplars_come_first() -> None:
    exemplars = [Exemplar({"id": "1", "text": "?", "answers": ["x"]}, "en", (noise(7),))]
    record = record_for("vqav2_val")
    [first] = BENCHMARKS["vqav2_val"].questions(record, Asking(exemplars=lambda record, number: exemplars))
    assert first.images == (noise(7), *record.images)


def test_prompts_of_examinations_with_exemplars() -> None:
    exam = Exemplar({"id": "1", "text": "1+1?", "options": ["1", "2", "3", "4"], "right": 1}, "en", ())
    assert prompt("mmlu_test", [exam]) == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "Question: 1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        "Question: Which gas do plants take in?\nA. oxygen\nB. carbon dioxide\nC. helium\nD. neon\nAnswer:"
    )
    assert prompt("ceval_val", [exam]) == (
        "问题：1+1?\nA. 1\nB. 2\nC. 3\nD. 4\n答案：B\n\n问题：水的化学式是____。\nA. CO2\nB. O2\nC. H2O\nD. N2\n答案："
    )
    asking = Asking(exemplars=lambda record, number: [exam])
    assert len(ask(BENCHMARKS["mmlu_test"], SAMPLES["mmlu_test"], asking).pieces) == 1  # one text, tokenised at once
