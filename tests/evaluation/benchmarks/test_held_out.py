"""Tasks: prompts, reading of answers and figures, on records whose truth is known."""

from __future__ import annotations

import copy
import itertools
import unicodedata
from collections.abc import Iterable
from typing import Any, Literal

import pytest

from qwenvl_jax.config import from_config_dict
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.schema import Record
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark
from qwenvl_jax.evaluation.benchmarks.held_out.registry import HELD_OUT
from qwenvl_jax.evaluation.config import BenchmarkConfig, EvalConfig, validate
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.samples import grey, record_of

# The name of the first figure of each task.
MAIN_FIGURES = {
    "ref_grounding": "referring_acc",
    "ocr": "ocr_char_acc",
    "vqa": "vqa_acc",
    "caption": "caption_cider_ptb",
    "dialogue": "dialogue_acc",
}
QUAD = [[0, 0], [50, 0], [50, 10], [0, 10]]
CONTENTS: dict[str, dict[str, Any]] = {
    "caption": {"caption": "a red car"},
    "vqa": {"question": "Which colour?", "answer": "red"},
    "ref_grounding": {"phrase": "the car", "box": [10, 10, 60, 40], "width": 100, "height": 50},
    "ocr": {"lines": [{"text": "ab", "quad": QUAD}, {"text": "cd", "quad": QUAD}], "width": 100, "height": 50},
    "dialogue": {
        "system": "",
        "turns": [
            {"role": "user", "parts": [{"image": 0}, {"text": "What is it?"}]},
            {"role": "assistant", "parts": [{"text": "A car."}]},
            {"role": "user", "parts": [{"text": "Where?"}]},
            {"role": "assistant", "parts": [{"ref": "The car", "boxes": [[10, 10, 60, 40]], "image": 0}]},
        ],
        "sizes": [[100, 50]],
    },
}


def record(task: str, **changes: Any) -> Record:
    """The record of a task whose truth is in CONTENTS, with changes to its content."""
    return record_of(task, copy.deepcopy(CONTENTS[task]) | changes, image=grey(100, 50))


def figures(benchmark: Benchmark, rows: list[dict[str, Any]]) -> dict[str, float]:
    return {key: scores.aggregate for key, scores in benchmark.score(rows).items()}


def written(pieces: Iterable[Piece]) -> str:
    return "".join(f"<{p.value}>" if p.kind == "image" else str(p.value) for p in pieces)


@pytest.mark.parametrize("name", list(HELD_OUT))
def test_the_true_answer_scores_best_and_another_worse(name: str) -> None:
    """What training would have the model write after the prompt is read as right."""
    task, sample = HELD_OUT[name], record(name)
    whole = written(training_pieces(sample))
    right, wrong = [], []
    for question in task.questions(sample, Asking("training")):
        prompt = written(question.pieces)
        assert whole.startswith(prompt)
        answer = whole[len(prompt) :]
        for stop in task.stops:
            answer = answer.split(stop)[0]
        right.append({"id": question.id, **task.read(answer, question.about)})
        wrong.append({"id": question.id, **task.read("(1,1),(3,3)</box> nothing", question.about)})
    # CIDEr needs more than one image to know what is rare.
    if name == "caption":
        right.append({"prediction": "x y z", "references": ["x y z"]})
        wrong.append({"prediction": "x y z", "references": ["x y z"]})
    key = MAIN_FIGURES[name]
    best, worse = task.score(right)[key].aggregate, task.score(wrong)[key].aggregate
    # Three words have no four-grams, so a perfect caption of three reaches three quarters of ten.
    assert best == pytest.approx(7.5 if name == "caption" else 1.0)
    assert worse < best
    assert next(iter(task.score(right))) == key


def test_released_prompts() -> None:
    def prompt(name: str) -> str:
        return written(HELD_OUT[name].questions(record(name), Asking("released"))[0].pieces)

    assert prompt("caption") == "<0>Describe the image in English:"
    assert prompt("vqa") == "<0>Which colour? Answer:"
    assert prompt("ref_grounding") == "<0><ref>the car</ref><box>"


def test_dialogue_asks_every_turn_with_the_true_ones_before_it() -> None:
    first, second = HELD_OUT["dialogue"].questions(record("dialogue"), Asking("released"))
    assert first.about["truth"] == "A car."
    assert written(first.pieces).endswith("What is it?<|im_end|>\n<|im_start|>assistant\n")
    assert second.about["truth"] == "<ref>The car</ref><box>(100,200),(600,800)</box>"
    assert "A car.<|im_end|>" in written(second.pieces)


def test_dialogue_boxes_are_compared_by_overlap() -> None:
    read, about = HELD_OUT["dialogue"].read, {"truth": "<ref>it</ref><box>(0,0),(500,500)</box>"}
    assert read("<ref>that</ref><box>(0,0),(500,450)</box>", about)["right"] == 1
    assert read("<ref>it</ref><box>(600,600),(900,900)</box>", about)["right"] == 0
    thin = {"truth": "<box>(999,10),(999,20)</box>"}
    assert [read(f"<box>({x},10),({x},20)</box>", thin)["right"] for x in (999, 1000, 998)] == [1, 1, 0]
    edge = {"truth": "<box>(12,5),(999,990)</box>"}
    assert read("<box>(12,5),(1000,990)</box>", edge)["right"] == 1
    assert read("it is there", about)["right"] == 0


@pytest.mark.parametrize(
    "text,lines",
    [
        ("<ref>ab</ref><quad>(0,0),(1,1),(2,2),(3,3)</quad><ref>cd</ref>", ["ab", "cd"]),
        ("<ref>ab</ref><quad>(0,0),(1", ["ab"]),
        ("<ref>ab", ["ab"]),
        ("ab cd", ["ab cd"]),
        ("<ref>ab<ref>cd</ref>", ["ab", "cd"]),  # the second tag ends the first line and begins its own
    ],
)
def test_ocr_lines_are_read_from_whole_and_broken_answers(text: str, lines: list[str]) -> None:
    about = {"lines": ["ab", "cd"], "width": 100, "height": 50}
    assert HELD_OUT["ocr"].read(text, about)["prediction"] == lines


def test_several_annotators_give_the_vqa_score_too() -> None:
    task = HELD_OUT["vqa"]
    sample = record("vqa", answers=["red"] * 9 + ["dark red"])
    (question,) = task.questions(sample, Asking("released"))
    assert figures(task, [task.read("red", question.about)]) == {"vqa_acc": 1.0, "vqa_score": 1.0}


def eval_values(**changes: Any) -> dict[str, Any]:
    task: dict[str, Any] = dict(name="vqa", records="r", split="test", limit=0, max_new_tokens=4, min_new_tokens=1)
    values: dict[str, Any] = dict(
        checkpoints=(dict(name="a", workdir="w", image_size=28),),
        tokenizer=dict(kind="qwen", path=""),
        benchmarks=(task,),
        batch_size=2,
        prompt_style="training",
        output="out",
    )
    if "task" in changes:
        values["benchmarks"] = (task | changes.pop("task"),)
    return values | changes


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"task": {"name": "vqaa"}}, "did you mean 'vqa'"),
        ({"task": {"max_new_tokens": -1}}, "max_new_tokens"),
        ({"task": {"min_new_tokens": 9}}, "min_new_tokens"),
        ({"checkpoints": ()}, "checkpoints is empty"),
        ({"checkpoints": (dict(name="a", workdir="w", image_size=28),) * 2}, "share a name"),
        ({"batch_size": 0}, "batch_size"),
        ({"prompt_style": "other"}, "prompt_style"),
        ({"task": {"tokenisation": "ptb"}}, "only captions"),
        ({"task": {"name": "caption", "tokenisation": "pbt"}}, "not one of ptb, simple"),
        ({"checkpoints": (dict(name="a", workdir="w", image_size=28, step=-2),)}, "step -2"),
        *(
            ({"checkpoints": (dict(name=name, workdir="w", image_size=28),)}, "becomes one of a file")
            for name in ("a/b", ".a", "", "a" * 201, "中" * 67, "a\nb", "a\0b", "a\ud800", "a\u2028b")
        ),
        ({"task": {"max_new": 4}}, "has max_new_tokens twice, also by its former name 'max_new'"),
        ({"bach_size": 1}, "did you mean 'batch_size'"),
    ],
)
def test_config_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    validate(from_config_dict(EvalConfig, eval_values()))
    with pytest.raises(UserError, match=message):
        validate(from_config_dict(EvalConfig, eval_values(**changes)))


def test_a_config_of_an_earlier_version_has_the_same_limits() -> None:
    values = eval_values()
    (task,) = values["benchmarks"]
    former = {"max_new": task.pop("max_new_tokens"), "min_new": task.pop("min_new_tokens")}
    config = validate(from_config_dict(EvalConfig, values | {"benchmarks": (task | former,)}))
    assert config.benchmarks[0].token_limits == (4, 1)


def test_the_label_of_a_benchmark_is_its_name_if_none_is_given() -> None:
    assert [BenchmarkConfig("vqa", "r", label=label).label for label in ("", "mine")] == ["vqa", "mine"]


@pytest.mark.parametrize(
    "answers,expected",
    [
        ([{"answer": "net", "answer_id": k} for k in range(10)], ["net"] * 10),  # as VQAv2 writes
        ([2, 2], ["2", "2"]),
        ("net", ["net"]),
        ({"answer": "net"}, ["net"]),
        (7, ["7"]),
        ([], ["red"]),
        (None, ["red"]),
        (["cafe\u0301", "net"], ["caf\u00e9", "net"]),
    ],
)
def test_answers_are_read_in_the_forms_that_data_sets_write(answers: Any, expected: Any) -> None:
    sample = record("vqa", answers=answers)
    (question,) = HELD_OUT["vqa"].questions(sample, Asking("released"))
    assert question.about["answers"] == expected
    assert HELD_OUT["vqa"].read("n", question.about)["exact"] == 0.0  # letters of an answer are none


def test_captions_are_read_in_the_forms_that_data_sets_write() -> None:
    for captions in ("a red car", ["a red car"], [{"caption": "a red car", "image_id": 3}]):
        (question,) = HELD_OUT["caption"].questions(record("caption", captions=captions), Asking("released"))
        assert question.about["references"] == ["a red car"]


# The same word, with an accent as its own character and as part of its letter.
APART = "cafe\u0301"
JOINED = "caf\u00e9"


@pytest.mark.parametrize("said", [APART, JOINED])
def test_an_accent_may_be_written_in_two_ways(said: str) -> None:
    """Truth and answer are compared in one normal form."""

    def row(task: str, text: str, /, **changes: Any) -> dict[str, Any]:
        question = HELD_OUT[task].questions(record(task, **changes), Asking("released"))[0]
        return HELD_OUT[task].read(text, question.about)

    assert row("vqa", said, answer=APART)["exact"] == 1.0
    assert row("ocr", f"<ref>{said}</ref>", lines=[{"text": APART, "quad": QUAD}])["edits"] == 0
    turns = copy.deepcopy(CONTENTS["dialogue"]["turns"])
    turns[1]["parts"] = [{"text": APART}]
    assert row("dialogue", said, turns=turns)["right"] == 1.0
    captioned = row("caption", f"a red {said} here", caption=f"a red {APART} here")
    assert captioned["prediction"] == captioned["references"][0]


# Letters of which NFD makes several characters, as a model or the records of a corpus may write them.
WORDS = {"red": "c\u00e9dille", "car": "\ud55c\uad6d", "ab": "\u30ac\u30e9\u30b9", "Where": "Vi\u1ec7t"}


FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


def in_form(form: Literal["NFC", "NFD"], value: Any) -> Any:
    """The texts of a content or an answer with WORDS, in a normal form."""
    if isinstance(value, str):
        for plain, accented in WORDS.items():
            value = value.replace(plain, accented)
        return unicodedata.normalize(form, value)
    if isinstance(value, dict):
        return {key: in_form(form, entry) for key, entry in value.items()}
    return [in_form(form, entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("caption", ["a red car", "a car"]),
        ("vqa", ["red", "car"]),
        ("ref_grounding", ["(100,200),(600,800)</box>", "red (1,1),(3,3)</box>"]),
        ("ocr", ["<ref>ab</ref><ref>cd</ref>", "<ref>ab</ref>", "ab"]),
        ("dialogue", ["A car.", "<ref>The car</ref><box>(100,200),(600,800)</box>"]),
    ],
)
def test_rows_and_scores_do_not_depend_on_the_form_of_truth_and_answer(name: str, answers: list[str]) -> None:
    """Whichever of the two is composed; the answers are right ones and others."""
    task = HELD_OUT[name]
    more = {"answers": ["red", "red", "car"]} if name == "vqa" else {}
    outcomes = []
    for truth_form, answer_form in itertools.product(FORMS, repeat=2):
        sample = record_of(name, in_form(truth_form, CONTENTS[name] | more), image=grey(100, 50))
        rows = []
        for question in task.questions(sample, Asking("training")):
            rows += [task.read(in_form(answer_form, answer), question.about) for answer in answers]
        if name == "caption":  # CIDEr needs more than one image to know what is rare
            rows.append({"prediction": "x y z", "references": ["x y z"]})
        outcomes.append((rows, figures(task, rows)))
    assert outcomes[1:] == outcomes[:1] * 3
    assert any(not unicodedata.is_normalized("NFD", str(row)) for row in outcomes[0][0])
    assert outcomes[0][1][MAIN_FIGURES[name]] > 0


def test_the_vqa_score_stays_when_one_question_has_one_annotator() -> None:
    """It counts all questions; the classic evaluator compares with the other annotators, and there is none."""
    task = HELD_OUT["vqa"]
    rows = [
        task.read("red", {"question": "?", "answers": ["red"] * 10}),
        task.read("red", {"question": "?", "answers": ["red"]}),
    ]
    assert figures(task, rows) == {"vqa_acc": 1.0, "vqa_score": 0.5}
    assert figures(task, rows[1:]) == {"vqa_acc": 1.0}


def test_a_dialogue_without_a_turn_to_ask_is_refused() -> None:
    sample = record("dialogue", turns=CONTENTS["dialogue"]["turns"][:1])
    with pytest.raises(UserError, match="nothing to ask"):
        HELD_OUT["dialogue"].questions(sample, Asking("released"))


def test_the_far_edge_of_a_dialogues_box_is_1000() -> None:
    read, about = HELD_OUT["dialogue"].read, {"truth": "<box>(12,5),(999,990)</box>"}
    assert read("<box>(12,5),(1000,990)</box>", about)["right"] == 1
