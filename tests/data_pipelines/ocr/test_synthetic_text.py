"""Passages of a corpus: any position of any file, and only what a font can draw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.ocr.fonts import Font
from data_pipelines.ocr.synthetic_text import PASSAGE, TextFile, Texts, drawable, take_row
from qwenvl_jax.runtime.errors import UserError

PILLOW = Font("Pillow default", "")


def test_a_file_of_lines_is_drawn_from_everywhere(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {number} {'x ' * 300}"}) for number in range(2000)]
    lines[7:7] = ["not JSON", '{"no": "text"}', '{"text": 4}', "[" * 100_000]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = TextFile(tmp_path / "a.jsonl")
    starts = {source.passage(np.random.default_rng(seed)).split()[1] for seed in range(300)}
    assert len(starts) > 200
    assert source.passage(np.random.default_rng(5)) == source.passage(np.random.default_rng(5))


def test_plain_text_and_broken_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("一二三".encode() * 90_000 + b"\xff\xfe" + "四五六".encode() * 90_000)
    passage = TextFile(tmp_path / "a.txt").passage(np.random.default_rng(0))
    assert len(passage) == PASSAGE and set(passage) <= set("一二三四五六 ")


def test_texts_that_are_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"caption": "x"}\n')
    with pytest.raises(UserError, match="is empty"):
        TextFile(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="has no text"):
        TextFile(tmp_path / "other.jsonl").passage(np.random.default_rng(0))
    with pytest.raises(UserError, match="at least one text"):
        Texts([" "])


def test_words_that_a_font_cannot_draw_are_left_out() -> None:
    assert drawable("a caf\u00e9 in  Rome\n\u202eevil \u05d0\u05d1", PILLOW, "en") == "a in Rome"
    assert drawable("a老b 虎", PILLOW, "zh") == "ab"


@given(st.text(alphabet="ab 老虎。", max_size=60), st.floats(0, 20))
def test_rows_put_together_are_the_text(text: str, width: float) -> None:
    lengths = np.arange(len(text) + 1.0)
    position = 0
    rows = []
    while position < len(text):
        row, after = take_row(text, position, width, lengths)
        assert after > position and len(row) <= width and row == row.strip()
        skipped = text[position:after].strip()
        assert row in ("", skipped)
        if not row and skipped:
            assert len(skipped) > width and skipped.count(" ") == 0
        rows.append(skipped)
        position = after
    assert "".join(rows).replace(" ", "") == text.replace(" ", "")
