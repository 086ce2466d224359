"""Records of the task "evaluation": which contents are refused, and that nothing is trained on them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax import config as schema
from qwenvl_jax.data.evaluation_content import single_contents
from qwenvl_jax.data.formats import prompt_pieces, training_pieces
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.record_format import decode_record, encode_record
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import TASKS, TRAINING_TASKS, Record, check_record, samples_of, stated_sizes
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import encoded_image, make_record

SIZE = {"width": 28, "height": 28}
BOX = [1, 2, 20, 28]


def record(questions: Any, images: int = 1, **content: Any) -> Record:
    content = {"questions": questions, **content}
    pictures = tuple(encoded_image(number) for number in range(images))
    return Record("r", "evaluation", "vqav2", "en", "CC0-1.0", pictures, content)  # type: ignore[arg-type]


def asked(**question: Any) -> list[dict[str, Any]]:
    return [{"id": "7", "text": "Who?", **question}]


@pytest.mark.parametrize("images", [0, 1, 2, 8])
def test_a_record_has_any_number_of_pictures(images: int) -> None:
    whole = record(asked(answers=["a dog", ""], options=["a dog", ""], right=1), images)
    assert check_record(whole) is whole
    assert stated_sizes(whole) == [None] * images
    assert samples_of(whole) == (whole,)
    assert decode_record(encode_record(whole)) == whole


def test_a_caption_needs_neither_text_nor_answers() -> None:
    check_record(record([{"id": "12"}]))


def test_the_size_of_the_picture_is_stated_with_a_box() -> None:
    assert stated_sizes(check_record(record(asked(box=BOX), **SIZE))) == [(28, 28)]


WRONG: list[tuple[Any, str]] = [
    ([], "'questions' is empty; leave the record out or fill it"),
    ("Who?", "'questions' must be a list, not a text"),
    (["Who?"], "'questions' must list objects, not a text"),
    ([{"text": "Who?"}], "'id' must be a text, not nothing"),
    ([{"id": 7, "text": "Who?"}], "'id' must be a text, not a number"),
    ([{"id": " "}], "'id' is empty"),
    (asked() * 2, "two questions have the id '7'; give each an id of its own"),
    (asked(text=None), "question '7': 'text' must be a text, not nothing"),
    (asked(answers=[]), "question '7': 'answers' is empty; leave the key out if there are no answers"),
    (asked(answers="dog"), "'answers' must be a list, not a text"),
    (asked(answers=[1]), "'answers' must list texts, not a number"),
    (asked(options=["a", "b"], right=2), "'right' must be the index of one of its 2 options, the first being 0, not 2"),
    (asked(options=["a", "b"], right=-1), "not -1"),
    (asked(options=["a", "b"], right=True), "not True"),
    (asked(right=0), "index of one of its 0 options"),
    (asked(hint=1), "'hint' must be a text"),
    (asked(box=[1, 2, 3]), "must be four numbers"),
    (asked(box=[1, 2, 29, 4]), "lies outside its image of 28 x 28 pixels"),
    (asked(box=[5, 2, 5, 4]), "is inverted or empty"),
    (asked(box=[1, 2, float("nan"), 4]), "must be made of finite numbers"),
]


@pytest.mark.parametrize(("questions", "reason"), WRONG)
def test_a_malformed_question_is_refused_in_one_sentence(questions: Any, reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        check_record(record(questions, **SIZE))
    assert "record 'r' of 'vqav2', task 'evaluation'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_box_needs_the_size_of_one_picture() -> None:
    with pytest.raises(UserError, match="it has a box, but the record does not state 'width' and 'height'"):
        check_record(record(asked(box=BOX)))
    with pytest.raises(UserError, match="it states only one of 'width' and 'height'"):
        check_record(record(asked(), width=28))
    for images in (0, 2):
        with pytest.raises(UserError, match=f"has {images} images instead of one"):
            check_record(record(asked(box=BOX), images, **SIZE))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "text", "box"]), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(["id", "text", "answers", "options", "right", "hint", "box", "category", "group"])


@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=9), max_size=3) | VALUES, VALUES, VALUES)
def test_any_content_is_accepted_or_refused_in_one_sentence(questions: Any, width: Any, height: Any) -> None:
    whole = record(questions, width=width, height=height)
    try:
        check_record(whole)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len({question["id"] for question in questions}) == len(questions)


def test_a_content_per_question_or_sample() -> None:
    content: Any = make_record("evaluation", 1).content
    singles = single_contents("evaluation", content)
    assert [single["questions"] for single in singles] == [[question] for question in content["questions"]]
    assert all({**single, "questions": content["questions"]} == content for single in singles)
    several = {"annotations": [{"caption": "a"}, {"caption": "b"}]}
    assert single_contents("caption", several) == several["annotations"]


def test_training_on_a_benchmark_is_refused(run_config: schema.Config, tmp_path: Path) -> None:
    assert set(TASKS) - set(TRAINING_TASKS) == {"evaluation"}
    write_records(tmp_path / "vqav2_val", {"val": [make_record("evaluation", 1)]}, name="vqav2")
    assert RecordReader(tmp_path / "vqav2_val", "val").tasks == ("evaluation",)
    source = schema.SourceConfig("vqav2", "evaluation", str(tmp_path / "vqav2_val"), 1.0)
    mixture = dataclasses.replace(run_config, data=dataclasses.replace(run_config.data, mixture=(source,)))
    with pytest.raises(UserError, match="source 'vqav2' is a benchmark, on which no model may be trained; remove it"):
        schema.validate(mixture)


def test_a_question_of_a_benchmark_is_no_sample() -> None:
    with pytest.raises(UserError, match=r"record 'evaluation1' .* questions of a benchmark, on which no model may be"):
        training_pieces(make_record("evaluation", 1))
    with pytest.raises(UserError, match="the task 'evaluation' has no prompt"):
        prompt_pieces(make_record("evaluation", 1))
