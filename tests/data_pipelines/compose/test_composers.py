"""Records from pairs: what is written for each, exactly as in Box B.1 of the paper, and the choice of an answer."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.clean.grounding import boxes_in_picture, flat_spans, spans_in_text
from data_pipelines.clean.rule import judge, rule
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.compose.vqa import most_confident, question_with_choices
from data_pipelines.pair import Answer, Line, Picture, Question, RawPair, Region
from qwenvl_jax.data.dialogues import Turn
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.schema import TASKS, Record, check_record, samples_of
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora.pictures import picture

SHOT = Picture(picture(1), "", 1000, 1000)  # so that a pixel is a thousandth
EMPTY = RawPair("7", "tests", "CC0-1.0", "en", (SHOT,))
BEES = "Beautiful shot of bees gathering nectars from an apricot flower"


def pair(**changes: Any) -> RawPair:
    return dataclasses.replace(EMPTY, **changes)


def composed(task: str, raw: RawPair) -> Record:
    record = COMPOSERS[task](raw)
    assert record is not None
    assert record.task == task
    return check_record(record)


def written(record: Record) -> list[str]:
    """The samples of a record as text; | is where the loss begins."""
    samples = []
    for sample in samples_of(record):
        text = ""
        supervised = False
        for piece in training_pieces(sample):
            if piece.supervised and not supervised:
                text += "|"
                supervised = True
            text += "<img/>" if piece.kind == "image" else str(piece.value)
        samples.append(text)
    return samples


def spanned(phrase: str, *boxes: tuple[float, float, float, float]) -> Region:
    start = BEES.index(phrase)
    return Region(phrase, boxes, start, start + len(phrase))


def test_every_task_has_a_composer_and_an_empty_pair_is_no_record() -> None:
    assert set(COMPOSERS) == set(TASKS)
    for compose in COMPOSERS.values():
        assert compose(EMPTY) is None


def test_caption() -> None:
    raw = pair(texts=("the beautiful flowers for design.", "a shorter one"))
    assert written(composed("caption", raw)) == [
        "<img/>Generate the caption in English:| the beautiful flowers for design.<|endoftext|>"
    ]


def test_text_has_no_picture() -> None:
    raw = pair(texts=("Only words.",), pictures=())
    assert written(composed("text", raw)) == ["|Only words.<|endoftext|>"]
    assert COMPOSERS["text"](pair(texts=("Only words.",))) is None


def test_questions_about_one_picture_share_a_record() -> None:
    title = "Asi Se Dice!, Volume 2: Workbook And Audio Activities (Glencoe Spanish) (Spanish Edition)"
    first = Question("What is the title of this book?", (Answer(title),))
    second = Question("Is it day?", (Answer("yes", 1.0), Answer("no", 0.5), Answer("no", 0.5), Answer("no", 0.5)))
    record = composed("vqa", pair(questions=(first, second, first)))
    assert record.images == (SHOT.encoded,)
    assert written(record) == [
        f"<img/>What is the title of this book? Answer:| {title}<|endoftext|>",
        "<img/>Is it day? Answer:| no<|endoftext|>",
    ]
    contents = cast(dict[str, Any], record.content)["annotations"]
    assert "answers" not in contents[0]
    assert contents[1]["answers"] == ["yes", "no", "no", "no"]


def test_multiple_choice() -> None:
    raw = pair(questions=(Question("What eats the fox?", (Answer("owl"),), ("fox", "owl", "hen")),))
    assert written(composed("vqa", raw)) == [
        "<img/>What eats the fox?\nOptions: A. fox\nB. owl\nC. hen Answer:| owl<|endoftext|>"
    ]
    assert question_with_choices("?", [str(n) for n in range(28)]).endswith("Z. 25\nAA. 26\nAB. 27")


def test_grounding_is_box_b1() -> None:
    bees = spanned("bees", (661, 612, 833, 812), (120, 555, 265, 770))
    flower = spanned("an apricot flower", (224, 13, 399, 313))
    record = composed("grounding", pair(texts=(BEES,), regions=(flower, bees, Region("bees", ((1, 2, 3, 4),)))))
    assert written(record) == [
        "<img/>Generate the caption in English with grounding:| Beautiful shot of<ref> bees</ref>"
        "<box>(661,612),(833,812)</box><box>(120,555),(265,770)</box> gathering nectars from"
        "<ref> an apricot flower</ref><box>(224,13),(399,313)</box><|endoftext|>"
    ]
    segments = cast(dict[str, Any], record.content)["segments"]
    assert "".join(segment["text"] for segment in segments) == BEES


def test_a_caption_that_begins_and_ends_with_words_without_a_box() -> None:
    raw = pair(texts=("猫和狗。",), language="zh", regions=(Region("狗", ((0, 0, 1000, 1000),), 2, 3),))
    assert written(composed("grounding", raw)) == [
        "<img/>Generate the caption in Chinese with grounding:| 猫和<ref>狗</ref>"
        "<box>(0,0),(999,999)</box>。<|endoftext|>"
    ]


def test_regions_are_taught_in_both_directions() -> None:
    regions = (
        Region("the ear on a giraffe", ((176, 106, 232, 160),)),
        Region("Yellow cross country ski racing gloves", ((360, 542, 476, 705),)),
        Region("the ear on a giraffe", ((176, 106, 232, 160),)),
        Region("two birds", ((0, 0, 10, 10), (20, 0, 30, 10))),
    )
    assert written(composed("ref_grounding", pair(regions=regions))) == [
        "<img/><ref>the ear on a giraffe</ref>|<box>(176,106),(232,160)</box><|endoftext|>",
        "<img/><ref>Yellow cross country ski racing gloves</ref>|<box>(360,542),(476,705)</box><|endoftext|>",
    ]
    assert written(composed("grounded_caption", pair(regions=regions))) == [
        "<img/><ref>This</ref><box>(176,106),(232,160)</box>| is the ear on a giraffe<|endoftext|>",
        "<img/><ref>This</ref><box>(360,542),(476,705)</box>| is Yellow cross country ski racing gloves<|endoftext|>",
    ]


def test_a_phrase_with_several_boxes_names_no_single_one() -> None:
    raw = pair(regions=(Region("two birds", ((0, 0, 10, 10), (20, 0, 30, 10))),))
    assert COMPOSERS["ref_grounding"](raw) is None
    assert COMPOSERS["grounded_caption"](raw) is None


def test_ocr_is_box_b1() -> None:
    line = Line("It is managed", ((568, 121), (625, 131), (624, 182), (567, 172)))
    assert written(composed("ocr", pair(lines=(line,)))) == [
        "<img/>OCR with grounding: |<ref>It is managed</ref>"
        "<quad>(568,121),(625,131),(624,182),(567,172)</quad><|endoftext|>"
    ]


def test_dialogue_shows_its_pictures() -> None:
    turns = (
        Turn(role="user", parts=[{"image": 0}, {"text": "What is the sign in the picture?"}]),
        Turn(role="assistant", parts=[{"ref": "A sign", "boxes": [[1, 2, 30, 40]], "image": 1}]),
    )
    record = composed("dialogue", pair(turns=turns, pictures=(SHOT, SHOT)))
    assert cast(dict[str, Any], record.content)["sizes"] == [[1000, 1000], [1000, 1000]]
    (sample,) = written(record)
    assert "Picture 1: <img/>\nWhat is the sign in the picture?" in sample
    assert "<ref>A sign</ref><box>(1,2),(30,40)</box>" in sample
    short = (turns[0], Turn(role="assistant", parts=[{"text": "A sign."}]))
    unknown = composed("dialogue", pair(turns=short, pictures=(Picture(b"x"),)))
    assert "sizes" not in unknown.content


def test_dialogue_keeps_its_system_and_regions_in_thousandths() -> None:
    turns = (
        Turn(role="user", parts=[{"image": 0}, {"text": "Where is the sign?"}]),
        Turn(role="assistant", parts=[{"ref": "A sign", "boxes": [[1, 2, 30, 40]]}]),
    )
    raw = pair(turns=turns, pictures=(Picture(picture(1), "", 24, 16),), system="Be brief.", in_thousandths=True)
    record = composed("dialogue", raw)
    assert cast(dict[str, Any], record.content)["sizes"] == [[1000, 1000]]
    (sample,) = written(record)
    assert "Be brief." in sample
    assert "<ref>A sign</ref><box>(1,2),(30,40)</box>" in sample


def test_the_language_is_guessed_if_the_corpus_has_none() -> None:
    assert composed("caption", pair(texts=("一只猫。",), language="")).language == "zh"
    assert composed("caption", pair(texts=("a cat",), language="")).language == "en"


def test_a_picture_in_a_file_is_read(tmp_path: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(2))
    raw = pair(texts=("a",), pictures=(Picture(path=str(tmp_path / "a.jpg")),))
    assert composed("caption", raw).images == (picture(2),)


MISTAKES = [
    ("grounding", pair(texts=(BEES,), regions=(spanned("shot of bees", (0, 0, 9, 9)), spanned("bees", (0, 0, 9, 9))))),
    ("grounding", pair(texts=("other words",), regions=(spanned("bees", (0, 0, 9, 9)),))),
    ("grounding", pair(regions=(spanned("bees", (0, 0, 9, 9)),))),
    ("grounding", pair(texts=(BEES,), regions=(spanned("bees", (0, 0, 1001, 9)),))),
    ("ref_grounding", pair(regions=(Region("bees", ((0, -2, 9, 9),)),))),
    ("ref_grounding", pair(regions=(Region(" ", ((0, 0, 9, 9),)),))),
    ("ref_grounding", pair(regions=(Region("bees", ((0, 0, 9, 9),)),), pictures=(Picture(b"x"),))),
    ("ocr", pair(lines=(Line("a", ((0, 0), (1001, 0), (9, 9), (0, 9))),))),
    ("caption", pair(texts=(" ",))),
    ("caption", pair(texts=("a",), pictures=())),
    ("vqa", pair(questions=(Question("", (Answer("a"),)),))),
]


@pytest.mark.parametrize(("task", "raw"), MISTAKES)
def test_a_pair_that_makes_no_record_is_refused_in_one_sentence(task: str, raw: RawPair) -> None:
    with pytest.raises(UserError) as error:
        COMPOSERS[task](raw)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([("net", 0.5), ("a net", 1.0), ("net", 0.5)], "net"),  # equal sums: more annotators
        ([("net", 0.5), ("a net", 1.0)], "a net"),
        ([("no", 0.0), ("no", 0.0), ("yes", 0.0)], "no"),
        ([("b", 1.0), ("a", 1.0)], "b"),  # equal in all: the first
        ([("b", 1.0), ("a", 1.0), ("a", 1.0)], "a"),
        ([("0.28", 1.0), ("0,28", 1.0)], "0.28"),
    ],
)
def test_the_answer_of_maximum_confidence(answers: list[tuple[str, float]], expected: str) -> None:
    assert most_confident([Answer(*answer) for answer in answers]) == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.builds(Answer, st.sampled_from("abcd"), st.sampled_from((0.0, 0.5, 1.0))), min_size=1, max_size=10))
def test_no_other_answer_is_surer(answers: list[Answer]) -> None:
    chosen = most_confident(answers)

    def rank(text: str) -> tuple[float, int, int]:
        mine = [answer.confidence for answer in answers if answer.text == text]
        return sum(mine), len(mine), -[answer.text for answer in answers].index(text)

    for other in {answer.text for answer in answers} - {chosen}:
        assert rank(chosen) > rank(other)
    for order in itertools.islice(itertools.permutations(answers), 24):  # only a full tie depends on the order
        again = most_confident(order)
        assert rank(again)[:2] == rank(chosen)[:2]


coordinates = st.floats(-60, 1100, allow_nan=False)
drawn_regions = st.lists(
    st.builds(
        lambda start, length, boxes, spanned_: Region(
            BEES[start : start + length].strip() or "bees",
            tuple(boxes),
            *((start, start + length) if spanned_ else (-1, -1)),
        ),
        st.integers(0, len(BEES)),
        st.integers(0, 20),
        st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), min_size=1, max_size=3),
        st.booleans(),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(drawn_regions)
def test_every_pair_that_the_rules_leave_can_be_taught(regions: list[Region]) -> None:
    recipe = (rule(spans_in_text), rule(boxes_in_picture, overhang=0.05), rule(flat_spans))
    judged = judge(recipe, pair(texts=(BEES,), regions=tuple(regions)))
    if judged.dropped is not None:
        return
    for task in ("grounding", "ref_grounding", "grounded_caption"):
        record = COMPOSERS[task](judged.pair)
        if record is not None:
            assert all(sample.endswith("<|endoftext|>") for sample in written(check_record(record)))
