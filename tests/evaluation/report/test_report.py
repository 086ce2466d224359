"""What a report shows: pixels as the model saw them, and any text as text."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenvl_jax.config import Config, to_dict
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking
from qwenvl_jax.evaluation.benchmarks.held_out.registry import HELD_OUT
from qwenvl_jax.evaluation.config import BenchmarkConfig, CheckpointConfig, EvalConfig, SpreadConfig
from qwenvl_jax.evaluation.report.page import write_report
from qwenvl_jax.evaluation.report.pictures import picture, true
from qwenvl_jax.html.figures import corners_of_box
from tests.evaluation.samples import record_of


def turned(width: int = 60, height: int = 20) -> bytes:
    """A JPEG, red on its left and blue on its right, that EXIF turns by a quarter."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def shown(figure: str) -> Image.Image:
    """The picture of a figure as a browser opens it, with what it says of its turning."""
    (address,) = re.findall(r'href="data:image/[a-z]+;base64,([^"]+)"', figure)
    return Image.open(io.BytesIO(base64.b64decode(address)))


def test_a_picture_with_exif_is_shown_as_the_model_saw_it() -> None:
    payload = turned()
    assert Image.open(io.BytesIO(payload)).getexif()[0x0112] == 6
    figure = picture(payload, [true(corners_of_box((0, 0, 30, 20)))])
    image = shown(figure)
    assert not image.getexif() and image.size == (60, 20)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(decode_image(payload))).max() < 30
    assert 'viewBox="0 0 60 20"' in figure and 'points="0,0 30,0 30,20 0,20"' in figure


def test_regions_in_thousandths_are_scaled_to_the_picture() -> None:
    figure = picture(turned(), [true(corners_of_box((500, 0, 1000, 500)))], size=(1000, 1000))
    assert 'points="30,0 60,0 60,10 30,10"' in figure


def odd_pictures() -> dict[str, bytes]:
    """Kinds of files that a browser would show in its own way."""

    def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 30, 4), np.uint8)
    colors = Image.fromarray(noise[..., :3])
    flipped = Image.fromarray(noise[::-1, :, :3])
    deep = Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16))
    return {
        "alpha": encoded(Image.fromarray(noise, "RGBA"), "PNG"),
        "16 bits": encoded(deep, "PNG"),
        "palette": encoded(colors.convert("P"), "GIF"),
        "two frames": encoded(colors, "GIF", save_all=True, append_images=[flipped]),
        "cmyk": encoded(Image.fromarray(noise, "CMYK"), "JPEG", quality=100),
    }


@pytest.mark.parametrize("name", list(odd_pictures()))
def test_every_kind_of_picture_is_shown_as_the_model_saw_it(name: str) -> None:
    """A browser would blend alpha, move frames and turn colours for print in its own way."""
    payload = odd_pictures()[name]
    image = shown(picture(payload))
    assert image.mode == "RGB"
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(decode_image(payload)))
    assert difference.mean() < (8 if name == "cmyk" else 1e-9)


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = st.text(st.sampled_from("<>&\"'/=` \nabscript!-[]{}\u2028\x85é"), min_size=1, max_size=12).map(
    lambda text: f"<script>{text}</script><img src=x onerror='{text}'>\"'&amp;"
)


@pytest.fixture(scope="module")
def runs(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    return config, tmp_path_factory.mktemp("hostile")


def report_of(runs: tuple[Config, Path], text: str) -> Page:
    """The report of an evaluation in which every text that comes from outside is `text`, a label too."""
    config, root = runs
    folder = root / "report"
    payload = turned()
    words = text.strip()
    contents: dict[str, Any] = {
        "ref_grounding": {"phrase": text, "box": [1, 1, 9, 9], "width": 60, "height": 20},
        "ocr": {"lines": [{"text": text, "quad": [[0, 0], [9, 0], [9, 9], [0, 9]]}], "width": 60, "height": 20},
        "vqa": {"question": text, "answer": words},
        "caption": {"caption": text},
        "dialogue": {
            "system": "",
            "turns": [
                {"role": "user", "parts": [{"image": 0}, {"text": text}]},
                {"role": "assistant", "parts": [{"text": text}]},
            ],
            "sizes": [[60, 20]],
        },
    }
    name = text.replace("/", "|")
    tasks = []
    scores: dict[str, Any] = {}
    for task, content in contents.items():
        record = dataclasses.replace(record_of(task, content, name=text, image=payload), source=text)
        write_records(folder / task, {"train": [record]}, name="hostile")
        tasks.append(BenchmarkConfig(task, str(folder / task), "train", 0, 4, 0))
        rows = [
            {"id": question.id, **HELD_OUT[task].read(f"<ref>{text}</ref>{text}", question.about)}
            for question in HELD_OUT[task].questions(record, Asking("training"))
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "predictions" / name).mkdir(parents=True, exist_ok=True)
        (folder / "predictions" / name / f"{task}.jsonl").write_text(lines)
        if task == "vqa":  # asked in a second way
            tasks.append(BenchmarkConfig(task, str(folder / task), "train", 0, 4, 0, label=f"{name}2"))
            (folder / "predictions" / name / f"{name}2.jsonl").write_text(lines)
            scores |= {f"{name}2.vqa_acc": 0.5}
        scores |= {key: each.aggregate for key, each in HELD_OUT[task].score(rows).items()}
    scores["unanswered"] = {text: {"questions": 1, "first": [{"id": text, "why": text}]}}
    checkpoint = CheckpointConfig(name, str(folder / "none"), 28)
    evaluation = EvalConfig((checkpoint,), config.tokenizer, tuple(tasks), 2, "training", str(folder))
    (folder / "evaluation.json").write_text(json.dumps(to_dict(evaluation)))
    (folder / "scores.json").write_text(json.dumps({name: scores}))
    return Page(write_report(folder).read_text())


@settings(max_examples=15, deadline=None)
@given(text=HOSTILE)
def test_no_text_from_outside_becomes_part_of_the_page(runs: tuple[Config, Path], text: str) -> None:
    """Texts, ids, names and reasons full of markup give the very elements of a page without any."""
    assert report_of(runs, text).elements == report_of(runs, "plain").elements


def test_a_benchmark_with_a_label_of_its_own_has_scores_and_a_section_of_its_own(runs: tuple[Config, Path]) -> None:
    page = report_of(runs, "plain")
    assert "Plain2" in page.text and "plain2: question answers" in page.text
    assert page.elements.count(("section", ("id",))) == 2 + len(HELD_OUT) + 1  # scores, unanswered, tasks, label


def test_scores_stand_beside_their_spread_over_earlier_runs(runs: tuple[Config, Path], tmp_path: Path) -> None:
    spread = (
        SpreadConfig("new", "vqa_acc", 0.71, 0.7849),
        SpreadConfig("absent", "vqa_acc", 0.1, 0.2),
        SpreadConfig("new", "none", 0, 1),
    )
    checkpoints = tuple(CheckpointConfig(name, str(tmp_path / name), 28) for name in ("old", "new"))
    evaluation = EvalConfig(checkpoints, runs[0].tokenizer, (), 2, "training", str(tmp_path), spread=spread)
    (tmp_path / "evaluation.json").write_text(json.dumps(to_dict(evaluation)))
    (tmp_path / "scores.json").write_text(json.dumps({"old": {"vqa_acc": 0.5}, "new": {"vqa_acc": 0.75}}))
    page = Page(write_report(tmp_path).read_text()).text
    assert "0.710 – 0.785" in page and "0.100" not in page and "range under a score is that of earlier runs" in page
    unknown = dataclasses.replace(evaluation, spread=spread[1:])
    (tmp_path / "evaluation.json").write_text(json.dumps(to_dict(unknown)))
    assert "range under" not in Page(write_report(tmp_path).read_text()).text


def test_a_stage_of_several_tasks_has_a_curve_for_each(runs: tuple[Config, Path], tmp_path: Path) -> None:
    """A task without supervised tokens in a window has a gap there; rows of earlier versions have no losses by task."""
    by_task = [{"vqa": 2.0, "ocr": None}, {"vqa": 1.5, "ocr": 3.0}, {"vqa": 1.0, "ocr": 2.5}]
    rows: list[dict[str, Any]] = [{"step": 0, "loss": 4.0, "learning_rate": 0.1}]
    rows += [{"step": 5 + k, "loss": 2.0, "learning_rate": 0.1, "loss_by_task": row} for k, row in enumerate(by_task)]
    checkpoints = []
    for name, count in (("old", 1), ("new", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count] * 2))
        checkpoints.append(CheckpointConfig(name, str(tmp_path / name), 28))
    evaluation = EvalConfig(tuple(checkpoints), runs[0].tokenizer, (), 2, "training", str(tmp_path))
    (tmp_path / "evaluation.json").write_text(json.dumps(to_dict(evaluation)))
    (tmp_path / "scores.json").write_text(json.dumps({"old": {}, "new": {}}))
    page = write_report(tmp_path).read_text()
    assert page.count("loss by task, running mean") == 1
    (chart,) = re.findall(r'aria-label="new: loss by task".*?</svg>.*?</p>', page, re.DOTALL)
    assert [len(points.split()) for points in re.findall(r'points="([^"]*)"', chart)] == [3, 2]
    assert "vqa" in chart and "ocr" in chart
