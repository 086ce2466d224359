"""What an audit shows of pictures, hostile texts and samples that teach nothing."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenvl_jax.audit import show
from qwenvl_jax.auditing.page import page
from qwenvl_jax.auditing.samples import audit
from qwenvl_jax.auditing.spans import Span, regions_of
from qwenvl_jax.config import Config, SourceConfig
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from tests.data.record_samples import with_data


def one_source(config: Config, task: str, path: Path | str, name: str = "only", **changes: Any) -> Config:
    return with_data(config, mixture=(SourceConfig(name, task, str(path), 1.0),), **changes)


def test_a_picture_with_exif_is_shown_as_the_model_sees_it(run_config: Config, tmp_path: Path) -> None:
    """Red on its left, whatever the camera's position says."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :30, 0] = pixels[:, 30:, 2] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif, quality=95)
    content: Any = {"phrase": "the red half", "box": [0, 0, 30, 20], "width": 60, "height": 20}
    record = Record("r", "ref_grounding", "tests", "en", "CC0-1.0", (buffer.getvalue(),), content)
    write_records(tmp_path / "r", {"train": [record]}, name="r")
    config = one_source(run_config, "ref_grounding", tmp_path / "r")
    shown = page(audit(config, 2, 1), config)
    (address,) = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', shown)
    image = Image.open(io.BytesIO(base64.b64decode(address)))
    assert not image.getexif()
    left, right = np.asarray(image)[14, [3, -4]].astype(int)
    assert left[0] > 200 > 60 > left[2] and right[2] > 200 > 60 > right[0]
    assert '"0,0 500,0 500,999 0,999"' in shown


def test_the_far_edge_is_part_of_a_region() -> None:
    spans = [Span("image", "image 1", 4, False, 0), Span("special", "<box>", 1, True)]
    spans += [Span("text", "(12,5),(1000,990)", 9, True), Span("special", "</box>", 1, True)]
    (region,) = regions_of(spans)
    assert region.corners == ((12, 5), (1000, 990)) and not region.empty


def test_a_conversation_without_an_answer_is_shown(
    run_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would teach turn marks alone: counted as corrupt and named, on the page and in the terminal."""
    said = [{"from": "user", "value": "Hello?"}]
    lines = [{"id": "silent", "conversations": said}]
    lines += [{"id": f"{k}", "conversations": [*said, {"from": "assistant", "value": "Yes."}]} for k in range(9)]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = one_source(run_config, "dialogue", tmp_path / "talks.jsonl", max_corrupt_share=0.5)
    found = audit(config, 40, 1)
    (own,) = found.numbers["sources"]
    assert own["corrupt"] == 4 and own["used"] == 36  # every tenth
    assert [(entry["state"], entry["record"]) for entry in own["left_out"]] == [("corrupt", 0)]
    assert "no turn is the assistant's" in own["left_out"][0]["message"]
    assert "no turn is the assistant&#x27;s" in page(found, config)
    show(found.numbers)
    assert "no turn is the assistant's" in capsys.readouterr().out


def test_nothing_that_a_terminal_obeys_is_printed(
    run_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "PNG")
    made = [
        Record(f"\x1b[2J{k}", "caption", "tests", "en", "CC0-1.0", (b"none",), {"caption": "a dog"}) for k in range(2)
    ]
    made += [dataclasses.replace(made[0], id=f"{k}", images=(picture.getvalue(),)) for k in range(8)]
    write_records(tmp_path / "r", {"train": made}, name="r")
    config = one_source(run_config, "caption", tmp_path / "r", max_corrupt_share=1.0)
    show(audit(config, 20, 0).numbers)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


class Page(html.parser.HTMLParser):
    """The kinds of elements of a page, with the names of their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: set[tuple[str, tuple[str, ...]]] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add((tag, tuple(name for name, _ in attrs)))


HOSTILE = st.text(st.sampled_from("<>&\"'/=` \nabscript!-[]{}\u2028\x85é"), min_size=1, max_size=12).map(
    lambda text: f"<script>{text}</script><img src=x onerror='{text}'>\"'&amp;"
)


@pytest.fixture
def elements(run_config: Config, tmp_path: Path) -> Callable[[str], set[tuple[str, tuple[str, ...]]]]:
    """The kinds of elements on a page in which every text that comes from outside is the one given."""
    picture = io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "PNG")

    def made(text: str) -> set[tuple[str, tuple[str, ...]]]:
        good = Record(text, "caption", text, "en", "CC0-1.0", (picture.getvalue(),), {"caption": text})
        bad = dataclasses.replace(good, id=f"{text}2", images=(text.encode(),))
        folder = tmp_path / text.replace("/", "|").replace("\n", "|")
        write_records(folder, {"train": [good, bad]}, name="r")
        config = one_source(run_config, "caption", folder, name=text, max_corrupt_share=1.0)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, name=text))
        return Page(page(audit(config, 2, 1), config)).elements

    return made


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=HOSTILE)
def test_no_text_from_outside_becomes_part_of_the_page(elements: Any, text: str) -> None:
    """Texts, ids, names, folders and reasons full of markup add no element and no attribute."""
    plain = elements("plain words\nthat are about as long")
    assert len(plain) > 20
    assert elements(text) <= plain
