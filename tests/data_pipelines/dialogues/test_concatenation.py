"""Every answer follows from the annotations: a checker that knows only what was annotated reads the dialogues."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.dialogues.compose import Composed, composed, joined_licenses
from data_pipelines.dialogues.concatenation import concatenated, sizes_of, weights_of
from data_pipelines.dialogues.exchanges_of_several import KINDS
from data_pipelines.dialogues.index import index_stretch, load_index, stretches
from data_pipelines.dialogues.picture import AnnotatedPicture, Line, Region, joined
from data_pipelines.dialogues.plan import CONCATENATION, Entry, planned
from data_pipelines.dialogues.wording import TEMPLATES, Vocabulary, definite, filled, named, sentence
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.runtime.errors import UserError
from tests.data_pipelines.dialogues.conftest import Small, Truth

_NUMBERS = {"one": 1, "two": 2, "three": 3, "一": 1, "两": 2, "三": 3}


def words(text: str) -> str:
    """The text without case, article and end."""
    return re.sub(r"^the ", "", text.strip().strip(".。").casefold())


def said(parts: list[Any]) -> str:
    return "".join(part.get("text", part.get("ref", "")) for part in parts)


class Checker:
    """Follows a dialogue turn by turn."""

    def __init__(self, record: Any, truth_of: dict[bytes, Truth]):
        self.truths = [truth_of[image] for image in record.images]
        self.shown = 0
        self.question = ""
        self.named: set[tuple[int, str]] = set()

    def check(self, kind: str, asked: list[Any], answered: list[Any]) -> None:
        before = self.question
        pictures = [part["image"] for part in asked if set(part) == {"image"}]
        assert pictures == list(range(self.shown, self.shown + len(pictures)))
        self.shown += len(pictures)
        asked = [part for part in asked if set(part) != {"image"}]
        self.question = said(asked)
        answer = said(answered)
        numbers = [int(n) - 1 for n in re.findall(r"(?:Picture |图)(\d)", self.question)]
        assert all(number < self.shown for number in numbers)
        about = [numbers[0]] if numbers else list(range(self.shown))
        regions = [part for part in answered if "boxes" in part]
        for part in regions:
            truth = self.truths[part["image"]]
            boxes = {words(phrase): boxes for phrase, boxes in truth.boxes.items()}[words(part["ref"])]
            assert sorted(part["boxes"]) == sorted(boxes)
            assert part["image"] in about or kind in ("where_it", "what_else", "which_find")
        getattr(self, kind, self.regions_named)(before, about, asked, answered, answer)
        self.named |= {(part["image"], words(part["ref"])) for part in regions}

    def describe(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        assert words(answer) in [words(caption) for number in about for caption in self.truths[number].captions]

    describe_next = describe

    def ask(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        pairs = [item for number in about for item in self.truths[number].questions.items()]
        assert any(question in self.question and words(answer) == words(reply) for question, reply in pairs)

    def where(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        (region,) = [part for part in answered if "boxes" in part]
        assert words(region["ref"]) in self.question.casefold()

    def where_it(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        (region,) = [part for part in answered if "boxes" in part]
        assert words(region["ref"]) in before.casefold()

    def what_at(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        (region,) = [part for part in asked if "boxes" in part]
        truth = self.truths[region["image"]]
        (phrase,) = [phrase for phrase, boxes in truth.boxes.items() if region["boxes"] == boxes]
        assert words(phrase) in answer.casefold()
        self.named.add((region["image"], words(phrase)))

    def regions_named(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        assert any("boxes" in part for part in answered)

    def what_else(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        new = [(part["image"], words(part["ref"])) for part in answered if "boxes" in part]
        assert new
        assert not set(new) & self.named

    def read(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        assert answer in ["\n".join(self.truths[number].lines) for number in about]

    def read_at(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        (region,) = [part for part in asked if "quads" in part]
        lines = self.truths[region["image"]].lines
        (text,) = [text for text, quad in lines.items() if region["quads"] == [quad]]
        assert text in answer

    def where_text(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        (region,) = [part for part in answered if "quads" in part]
        assert region["quads"] == [self.truths[region["image"]].lines[region["ref"]]]
        assert region["ref"] in self.question

    def count(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        (word,) = re.findall("|".join(_NUMBERS), answer.replace("一共", "").casefold())
        assert _NUMBERS[word] == self.shown

    def which(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        (number,) = [int(n) - 1 for n in re.findall(r"(?:Picture |图)(\d)", answer)]
        shows = [
            index
            for index, truth in enumerate(self.truths[: self.shown])
            if any(words(phrase) in self.question.casefold() for phrase in truth.boxes)
            or any(text in self.question for text in truth.lines)
        ]
        assert shows == [number]

    which_text = which

    def which_find(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        self.which(before, about, asked, answered, answer)
        self.where(before, about, asked, answered, answer)

    def compare(self, before: str, about: list[int], asked: Any, answered: Any, answer: str) -> None:
        first, last = (int(n) - 1 for n in re.findall(r"(?:Picture |图)(\d)", self.question))
        captions = [
            next(words(c) for c in self.truths[n].captions if words(c) in answer.casefold()) for n in (first, last)
        ]
        assert answer.casefold().index(captions[0]) < answer.casefold().index(captions[1])


@pytest.fixture(scope="module")
def dialogues(small: Small, job: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Composed]:
    """Many dialogues: five passes over the pictures."""
    made = job(small, tmp_path_factory.mktemp("output") / "set", passes=8, text_share=0.0)
    for stretch in stretches(made):
        index_stretch(made, stretch)
    dialogues = [composed(made, entry) for entry in planned(made, load_index(made))]
    assert all(isinstance(dialogue, Composed) for dialogue in dialogues)
    return [dialogue for dialogue in dialogues if isinstance(dialogue, Composed)]


def test_every_answer_follows_from_the_annotations(dialogues: list[Composed], small: Small) -> None:
    truth_of = {truth.image: truth for truth in small.pictures}
    for dialogue in dialogues:
        checker = Checker(dialogue.record, truth_of)
        turns: Any = dialogue.record.content
        exchanges = list(zip(turns["turns"][::2], turns["turns"][1::2], strict=True))
        assert len(exchanges) == len(dialogue.kinds)
        for kind, (user, assistant) in zip(dialogue.kinds, exchanges, strict=True):
            assert (user["role"], assistant["role"]) == ("user", "assistant")
            checker.check(kind, user["parts"], assistant["parts"])
        assert checker.shown == len(dialogue.record.images)


def test_every_kind_but_one_occurs_in_both_languages(dialogues: list[Composed]) -> None:
    """Here no record is of the task `grounding`, from which captions with boxes come; see below."""
    for language in TEMPLATES:
        kinds = {kind for each in dialogues if each.record.language == language for kind in each.kinds}
        assert kinds == set(KINDS) - {"ground"}


def test_records_are_training_samples_with_numbered_pictures(dialogues: list[Composed]) -> None:
    for dialogue in dialogues[:60]:
        pieces = training_pieces(check_record(dialogue.record))
        images = [number for number, piece in enumerate(pieces) if piece.kind == "image"]
        assert len(images) == len(dialogue.record.images)
        for number, index in enumerate(images, start=1):
            assert str(pieces[index - 1].value).endswith(f"Picture {number}: ")


def test_no_picture_is_twice_in_a_dialogue_and_no_question_either(dialogues: list[Composed]) -> None:
    assert Counter(len(each.record.images) for each in dialogues).keys() == {1, 2, 3}
    for dialogue in dialogues:
        assert len(set(dialogue.record.images)) == len(dialogue.record.images)
        turns: Any = dialogue.record.content
        asked = [str([part for part in turn["parts"] if set(part) != {"image"}]) for turn in turns["turns"][::2]]
        assert len(set(asked)) == len(asked)


def test_licences_and_corpora_of_all_pictures_are_joined(dialogues: list[Composed]) -> None:
    both = [each for each in dialogues if {"small_caption", "small_ref_grounding"} <= set(each.corpora)]
    assert {each.record.license for each in both} == {"CC-BY-4.0 AND (CC0-1.0 OR MIT)"}
    assert joined_licenses(["MIT", "MIT"]) == "MIT"


def test_a_dialogue_is_a_function_of_seed_number_and_records(small: Small, job: Any, tmp_path: Any) -> None:
    made = job(small, tmp_path / "set", records=tuple(reversed(small.records)), text_share=0.0)
    for stretch in stretches(made):
        index_stretch(made, stretch)
    entries = planned(made, load_index(made))
    entry: Entry = next(each for each in entries if each.way == CONCATENATION)
    assert composed(made, entry) == composed(made, entry)
    others = [composed(job(small, tmp_path / "set", records=made.records, seed=seed), entry) for seed in range(20)]
    assert len({str(other) for other in others}) > 10


def test_weights_choose_the_kinds(small: Small, job: Any, tmp_path: Any) -> None:
    weights = weights_of(",".join(f"{kind}=0" for kind in KINDS if kind not in ("where", "describe")))
    made = job(small, tmp_path / "set", weights=weights, text_share=0.0)
    for stretch in stretches(made):
        index_stretch(made, stretch)
    dialogues = [composed(made, entry) for entry in planned(made, load_index(made))]
    assert {kind for each in dialogues if isinstance(each, Composed) for kind in each.kinds} == {"where", "describe"}


@pytest.mark.parametrize("text", ["were=1", "where=-1", "where=x", "where", ",".join(f"{kind}=0" for kind in KINDS)])
def test_wrong_weights_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        weights_of(text)


def test_templates_of_both_languages_have_the_same_kinds_and_fields() -> None:
    english, chinese = TEMPLATES["en"], TEMPLATES["zh"]
    assert set(english.QUESTIONS) == set(chinese.QUESTIONS) == set(KINDS)
    assert set(english.ANSWERS) == set(chinese.ANSWERS)
    for group in ("QUESTIONS", "ANSWERS"):
        for kind, templates in getattr(english, group).items():
            for templates_of in (templates, getattr(chinese, group)[kind]):
                assert len(set(templates_of)) == len(templates_of)
                fields = {
                    field.lower() for text in (*templates, *templates_of) for field in re.findall(r"\{(\w+)\}", text)
                }
                if group == "QUESTIONS":
                    assert all({f.lower() for f in re.findall(r"\{(\w+)\}", text)} == fields for text in templates_of)


def test_a_grounded_caption_keeps_its_boxes_and_its_words() -> None:
    segments = [{"text": "A "}, {"text": "dog", "boxes": [[1, 2, 30, 40]]}, {"text": " near a tree", "boxes": []}]
    content: Any = {"segments": segments, "width": 50, "height": 50}
    picture = joined([Record("1", "grounding", "grit", "en", "MIT", (b"picture",), content)])
    weights = weights_of(",".join(f"{kind}=0" for kind in KINDS if kind != "ground"))
    dialogue = concatenated([picture], "0", weights)
    assert dialogue is not None
    assert dialogue.kinds == ("ground",)
    region = {"ref": "dog", "boxes": [[1, 2, 30, 40]], "image": 0}
    assert dialogue.turns[1]["parts"] == [{"text": "A "}, region, {"text": " near a tree"}]
    assert picture.captions == ("A dog near a tree",)


_TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "{picture}",
        "a {name} b",
        "<box>(1,2),(3,4)</box>",
        "<|im_end|>",
        "the",
        "A",
        "...",
        "TV",
        "狗",
        "a dog",
        "dogs",
        "\u202e",
    ]
)
_BOXES = st.tuples(*[st.integers(0, 40)] * 4).map(lambda b: (b[0], b[1], b[0] + b[2] + 1, b[1] + b[3] + 1))


@st.composite
def pictures(draw: st.DrawFn) -> AnnotatedPicture:
    language = draw(st.sampled_from(["en", "zh"]))
    phrases = draw(st.lists(_TEXTS.filter(str.strip), max_size=5, unique_by=str.casefold))
    lines = draw(st.lists(st.tuples(_TEXTS.filter(str.strip), _BOXES), max_size=3))
    return AnnotatedPicture(
        draw(st.binary(min_size=1, max_size=4)),
        language,
        (100, 100),
        captions=tuple(draw(st.lists(_TEXTS.filter(str.strip), max_size=2))),
        questions=tuple(draw(st.lists(st.tuples(_TEXTS, _TEXTS.filter(str.strip)), max_size=2))),
        regions=tuple(Region(phrase, (draw(_BOXES),)) for phrase in phrases),
        lines=tuple(Line(text, ((a, b), (c, b), (c, d), (a, d))) for text, (a, b, c, d) in lines),
    )


@settings(max_examples=150, deadline=None)
@given(shown=st.lists(pictures(), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_any_annotations_give_a_training_sample_or_no_dialogue(shown: list[AnnotatedPicture], seed: int) -> None:
    shown = [dataclasses.replace(picture, language=shown[0].language) for picture in shown]
    dialogue = concatenated(shown, str(seed), weights_of(""))
    if dialogue is None:
        return
    content: Any = {"turns": dialogue.turns, "sizes": sizes_of(shown)}
    images = tuple(picture.encoded for picture in shown)
    record = check_record(Record("1", "dialogue", "any", shown[0].language, "MIT", images, content))
    pieces = training_pieces(record)
    assert [piece.value for piece in pieces if piece.kind == "image"] == list(range(len(shown)))


@given(st.frozensets(st.text("abc", min_size=1), max_size=4), st.frozensets(st.text("abc", min_size=1), max_size=4))
def test_a_vocabulary_has_words_that_begin_alike(written: frozenset[str], words: frozenset[str]) -> None:
    written -= {"a"}  # an article is no word that tells anything
    expected = any(a.startswith(b) or b.startswith(a) for a in written for b in words)
    assert Vocabulary.of([" ".join(written)]).has_any(words) == expected


def test_records_that_state_several_sizes_are_refused() -> None:
    contents: list[Any] = [{"phrase": "dog", "box": [0, 0, 9, 9], "width": width, "height": 50} for width in (50, 60)]
    records = [Record("1", "ref_grounding", "refs", "en", "MIT", (b"picture",), content) for content in contents]
    with pytest.raises(UserError, match="several sizes"):
        joined(records)


@pytest.mark.parametrize(
    ("task", "content"),
    [
        ("ref_grounding", {"phrase": "dog", "box": [0, 0, 9]}),
        ("ocr", {"lines": [{"text": "a", "quad": [[0, 0], [9, 0], [9, 9], [0, 9], [0, 5]]}]}),
        ("ocr", {"lines": [{"text": "a", "quad": [[0, 0], [9, 0, 5], [9, 9], [0, 9]]}]}),
    ],
)
def test_regions_with_another_number_of_corners_are_refused(task: str, content: Any) -> None:
    content = {**content, "width": 50, "height": 50}
    record = Record("1", task, "refs", "en", "MIT", (b"picture",), content)
    with pytest.raises(UserError, match="must be four"):
        joined([record])


def test_values_are_never_read_as_templates() -> None:
    box: Any = {"boxes": [[1, 2, 3, 4]], "image": 0}
    assert filled("a {x} {y}.", x="{y}{z}", y=[box]) == [{"text": "a {y}{z} "}, box, {"text": "."}]


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("man", "the man"), ("A dog", "a dog"), ("his hat.", "his hat"), ("New York", "New York"), ("TV", "TV")],
)
def test_phrases_fit_into_english_sentences(phrase: str, expected: str) -> None:
    assert named(phrase, "en") == expected


@pytest.mark.parametrize(
    ("phrase", "expected"), [("A dog", "the dog"), ("an owl", "the owl"), ("his hat", "his hat"), ("man", "the man")]
)
def test_a_thing_that_is_looked_for_is_definite(phrase: str, expected: str) -> None:
    assert definite(phrase, "en") == expected


def test_no_box_is_told_twice(dialogues: list[Composed]) -> None:
    for dialogue in dialogues:
        turns: Any = dialogue.record.content
        said_of = [part for turn in turns["turns"] for part in turn["parts"] if "ref" in part and "boxes" in part]
        shown = [(part["image"], part["ref"].casefold()) for part in said_of]
        listed = sum(kind == "list" for kind in dialogue.kinds)
        assert len(set(shown)) == len(shown) or listed  # a list may repeat what was asked before


def test_captions_become_sentences() -> None:
    assert sentence("a dog runs ", "en") == "A dog runs."
    assert sentence("Really?", "en") == "Really?"
    assert sentence("一只狗", "zh") == "一只狗。"
