"""Samples that are longer than a row."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_jax.config import Config
from qwenvl_jax.data.cutting import fit
from qwenvl_jax.data.examples import DrawnRecord, make_example
from qwenvl_jax.data.loader import make_loader
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tokenizer import Tokenizer
from tests.data.batches import QUERIES
from tests.data.record_samples import content, make_record, mixture_of, with_content, with_data


def fitted(record: Record, config: Config, tokenizer: Tokenizer, length: int, mode: str = "cut") -> DrawnRecord:
    data = with_data(config, sequence_length=length, long_samples=mode).data
    return fit(DrawnRecord(0, 0), record, tokenizer, QUERIES, data)


@given(st.integers(1, 200), st.integers(2, 40))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_continues_and_every_token_is_a_target_once(
    run_config: Config, tokenizer: Tokenizer, words: int, length: int
) -> None:
    record = with_content(make_record("text", 0), {"text": "dog cat " * words})
    whole = make_example(record, 0, tokenizer, QUERIES).tokens
    drawn = fitted(record, run_config, tokenizer, length)
    parts = [example.tokens for example in drawn.examples]
    assert all(2 <= len(part.tokens_L) <= length for part in parts)
    targets = np.concatenate([part.tokens_L[1:] for part in parts])
    np.testing.assert_array_equal(targets, whole.tokens_L[1:])
    assert all(part.is_target_L.all() for part in parts)
    assert drawn.cut == (len(parts) > 1) and not drawn.dropped
    assert [example.begins for example in drawn.examples] == [True] + [False] * (len(parts) - 1)


def test_a_page_ends_at_a_line(run_config: Config, tokenizer: Tokenizer) -> None:
    """With as many lines as fit, and no end of text, because the page goes on."""
    line = {"text": "dog cat", "quad": [[1, 1], [9, 1], [9, 5], [1, 5]]}
    page = with_content(make_record("ocr", 0), {"lines": [line] * 30, "width": 28, "height": 28})
    whole = make_example(page, 0, tokenizer, QUERIES).tokens
    for length in (120, 121, 160, 200):
        drawn = fitted(page, run_config, tokenizer, length)
        [example] = drawn.examples
        kept = len(example.tokens.tokens_L)
        np.testing.assert_array_equal(example.tokens.tokens_L, whole.tokens_L[:kept])
        np.testing.assert_array_equal(example.tokens.is_target_L, whole.is_target_L[:kept])
        assert example.tokens.tokens_L[-1] == tokenizer.special_by_name["</quad>"]
        lines = int((example.tokens.tokens_L == tokenizer.special_by_name["</quad>"]).sum())
        shorter = with_content(page, {**content(page), "lines": [line] * (lines + 1)})
        assert len(make_example(shorter, 0, tokenizer, QUERIES).tokens.tokens_L) - 1 > length
        assert (drawn.cut, drawn.dropped) == (1, ())


def test_a_dialogue_ends_after_an_answer(run_config: Config, tokenizer: Tokenizer) -> None:
    turns = [
        {"role": role, "parts": [{"text": f"{role} says {number}"}]}
        for number in range(12)
        for role in ("user", "assistant")
    ]
    long = with_content(make_record("dialogue", 0), {"turns": turns}, images=())
    for count in range(1, 12):
        short = with_content(long, {"turns": turns[: 2 * count]})
        expected = make_example(short, 0, tokenizer, QUERIES).tokens
        for more in (0, 1):
            drawn = fitted(long, run_config, tokenizer, len(expected.tokens_L) + more)
            np.testing.assert_array_equal(drawn.examples[0].tokens.tokens_L, expected.tokens_L)
            np.testing.assert_array_equal(drawn.examples[0].tokens.is_target_L, expected.is_target_L)
            assert drawn.cut == 1


def test_a_dialogue_with_too_many_images_ends_before_them(run_config: Config, tokenizer: Tokenizer) -> None:
    record = make_record("dialogue", 1)
    config = with_data(run_config, images_per_row=0.25, image_groups=4)
    assert config.data.group_images == 1
    [example] = fitted(record, config, tokenizer, 500).examples
    assert len(example.images) == 1
    first = with_content(record, {**content(record), "turns": content(record)["turns"][:2]})
    expected = make_example(first, 0, tokenizer, QUERIES).tokens.tokens_L
    np.testing.assert_array_equal(example.tokens.tokens_L, expected)


@pytest.mark.parametrize("task", ["caption", "vqa", "ref_grounding", "dialogue", "ocr", "text"])
def test_everything_can_be_dropped(run_config: Config, tokenizer: Tokenizer, task: str) -> None:
    record = make_record(task, 3)
    drawn = fitted(record, run_config, tokenizer, 7, mode="drop")
    assert (drawn.examples, drawn.cut, len(drawn.dropped)) == ((), 0, 1)
    assert f"record '{task}3': it has" in drawn.message and "a row 7" in drawn.message


@pytest.mark.parametrize("task", ["caption", "vqa", "ref_grounding", "dialogue", "ocr"])
def test_samples_that_cannot_be_cut_are_dropped(run_config: Config, tokenizer: Tokenizer, task: str) -> None:
    drawn = fitted(make_record(task, 3), run_config, tokenizer, 8)
    assert (drawn.examples, drawn.cut, len(drawn.dropped)) == ((), 0, 1)


def test_one_long_annotation_of_several_is_dropped_alone(run_config: Config, tokenizer: Tokenizer) -> None:
    questions = [{"question": "Why? " * times, "answer": "no"} for times in (1, 90, 1)]
    record = with_content(make_record("vqa", 0), {"annotations": questions})
    drawn = fitted(record, run_config, tokenizer, 60)
    assert [example.record_id for example in drawn.examples] == ["vqa0[0]", "vqa0[2]"]
    assert [example.record_id for example in drawn.dropped] == ["vqa0[1]"]
    assert not drawn.unreadable


def test_texts_of_all_lengths_are_taught_and_counted_by_the_loader(
    run_config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """All tokens of an epoch, whatever the lengths; samples are counted, not their parts."""
    records = [
        dataclasses.replace(make_record("text", 0), id=f"text{k}", content={"text": f"dog {k} " * (1 + 10 * (k % 9))})
        for k in range(45)
    ]
    write_records(tmp_path / "texts", {"train": records}, name="texts")
    config = mixture_of(run_config, {"texts": tmp_path / "texts"}, "text")
    expected = sum(len(make_example(record, 0, tokenizer, QUERIES).tokens.tokens_L) - 1 for record in records)
    with make_loader(config, tokenizer) as loader:
        targets = 0
        while loader.counters()["epochs"]["texts"] < 20:
            targets += int(next(loader).loss_mask.sum())
        counters = loader.counters()
    epochs = counters["seen"]["texts"] / 45
    assert targets == counters["targets"]
    assert targets / expected == pytest.approx(epochs, rel=0.05)
    long = sum(len(make_example(record, 0, tokenizer, QUERIES).tokens.tokens_L) > 160 for record in records)
    assert counters["cut"]["texts"] == pytest.approx(long * counters["epochs"]["texts"], abs=long)
    assert counters["dropped"]["texts"] == 0
