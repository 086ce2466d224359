"""Small record folders of annotated pictures in two languages, with what was annotated, and runs without Beam."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from data_pipelines import beam
from data_pipelines.dialogues.build import build
from data_pipelines.dialogues.concatenation import weights_of
from data_pipelines.dialogues.job import DialogueJob
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import Content

_ENGLISH = "dog cat fox owl car bus tree lamp boat kite desk ring hill pear drum sofa clock spoon bread horse"
_CHINESE = "狗猫车船树灯山花鸟鱼门桌钟鼓伞马羊牛梨枣"
_NOUNS = {"en": _ENGLISH.split(), "zh": list(_CHINESE)}
_COLOURS = {"en": ["red", "blue", "green", "Old"], "zh": ["红色的", "蓝色的", "绿色的"]}
_LINES = {"en": ["OPEN DAILY", "Fresh Bread", "No 17", "Exit"], "zh": ["欢迎光临", "请勿吸烟", "出口", "营业中"]}


@dataclasses.dataclass
class Truth:
    """What was annotated of one picture; boxes and quadrilaterals in pixels."""

    image: bytes
    language: str
    captions: list[str]
    questions: dict[str, str]
    boxes: dict[str, list[list[float]]]
    lines: dict[str, list[list[float]]]


def truths(count: int, seed: int = 0) -> list[Truth]:
    """Pictures of 200 x 100 pixels; every second is Chinese, and some have only one kind of annotation."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        language = "zh" if number % 2 else "en"
        image = Image.new("RGB", (200, 100), (number % 256, number // 256, 7))
        payload = io.BytesIO()
        image.save(payload, "PNG")
        nouns = rng.sample(_NOUNS[language], rng.randint(1, 5))
        space = " " if language == "en" else ""
        phrases = [f"{rng.choice(_COLOURS[language])}{space}{noun}" for noun in nouns]
        boxes = {phrase: [_box(rng) for _ in range(rng.choice([1, 1, 2]))] for phrase in phrases}
        lines = {text: _quad(rng) for text in rng.sample(_LINES[language], rng.randint(1, 3))}
        caption = f"a picture of {nouns[0]} number {number}" if language == "en" else f"第{number}张照片上的{nouns[0]}"
        question = "What animal is this?" if language == "en" else "这是什么？"
        kind = number % 5
        made.append(
            Truth(
                payload.getvalue(),
                language,
                [caption] if kind != 1 else [],
                {question: nouns[0]} if kind in (0, 2, 4) else {},
                boxes if kind != 2 else {},
                lines if kind in (2, 3) else {},
            )
        )
    return made


def _box(rng: random.Random) -> list[float]:
    left, top = rng.randint(0, 150), rng.randint(0, 70)
    return [left, top, left + rng.randint(5, 45), top + rng.randint(5, 25)]


def _quad(rng: random.Random) -> list[list[float]]:
    left, top, right, bottom = _box(rng)
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_folders(folder: Path, pictures: Sequence[Truth]) -> list[str]:
    """A record folder per task, with every picture once in each that has something of it."""
    records: dict[str, list[Record]] = {}

    def add(task: str, number: int, truth: Truth, content: dict[str, Any]) -> None:
        license = "CC-BY-4.0" if task == "caption" else "CC0-1.0 OR MIT"
        fields = (f"{number}", task, f"small_{task}", truth.language, license, (truth.image,), cast(Content, content))
        records.setdefault(task, []).append(Record(*fields))

    size = {"width": 200, "height": 100}
    for number, truth in enumerate(pictures):
        for caption in truth.captions:
            add("caption", number, truth, {"caption": caption})
        for question, answer in truth.questions.items():
            add("vqa", number, truth, {"question": question, "answer": answer})
        regions = [{"phrase": phrase, "box": box} for phrase, boxes in truth.boxes.items() for box in boxes]
        if regions:
            add("ref_grounding", number, truth, {"annotations": regions, **size})
            duals = [{"description": region["phrase"], "box": region["box"]} for region in regions]
            add("grounded_caption", number, truth, {"annotations": duals, **size})
        if truth.lines:
            lines = [{"text": text, "quad": quad} for text, quad in truth.lines.items()]
            add("ocr", number, truth, {"lines": lines, **size})
    for task, members in records.items():
        write_records(folder / task, {"train": members}, name=f"small_{task}", records_per_shard=40)
    return [str(folder / task) for task in sorted(records)]


def text_records(count: int) -> Iterator[Record]:
    """Dialogues and texts without pictures."""
    for number in range(count):
        if number % 3:
            turns = [
                {"role": "user", "parts": [{"text": f"What is {number} plus one?"}]},
                {"role": "assistant", "parts": [{"text": f"It is {number + 1}."}]},
            ]
            yield Record(f"{number}", "dialogue", "sums", "en", "MIT", (), {"turns": cast(Any, turns)})
        else:
            text = f"The number {number} is known to all. After it there is {number + 1}. Then nothing follows."
            yield Record(f"{number}", "text", "lore", "en", "CC0-1.0", (), {"text": text})


@dataclasses.dataclass
class Small:
    """The inputs of a small run and what was annotated."""

    folder: Path
    records: list[str]
    texts: str
    pictures: list[Truth]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("dialogues")
    pictures = truths(90)
    folders = write_folders(folder, pictures)
    write_records(folder / "texts", {"train": text_records(60)}, name="texts")
    return Small(folder, folders, str(folder / "texts"), pictures)


def job_of(small: Small, output: Path, **changes: Any) -> DialogueJob:
    """The job of a small run."""
    fields: dict[str, Any] = {
        "records": tuple(small.records),
        "texts": (small.texts,),
        "output": str(output),
        "count": 0,
        "seed": 3,
        "text_share": 0.25,
        "self_instruction": 0.0,
        "passes": 1,
        "weights": weights_of(""),
        "split": "train",
        "dialogues_per_shard": 16,
        "code": "code",
        "replies": f"{output}-replies",
    }
    return DialogueJob(**{**fields, **changes})


def one_by_one(steps: Sequence[beam.Step], options: Any) -> None:
    """Runs steps without Beam, which takes a second or two."""
    for step in steps:
        for element in step.plan():
            step.work(element)


def run_job(job: DialogueJob) -> dict[str, Any]:
    """Builds without Beam; the manifest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam, "run_steps", one_by_one)
        return build(job, beam.options([], 1))


@pytest.fixture(scope="session")
def run() -> Callable[[DialogueJob], dict[str, Any]]:
    return run_job


@pytest.fixture(scope="session")
def job() -> Callable[..., DialogueJob]:
    return job_of


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """The requests that the server has seen; its log is `requests.jsonl`."""

    def read() -> list[dict[str, Any]]:
        path = tmp_path / "requests.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read
