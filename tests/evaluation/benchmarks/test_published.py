"""Published benchmarks: prompts against golden texts, limits and figures against tables, truths, answers and scores."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.corpora.table import CORPORA
from qwenvl_jax.data import tags
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark
from qwenvl_jax.evaluation.benchmarks.registry import BENCHMARKS, JOINED_ROWS, PUBLISHED, JoinedRow
from qwenvl_jax.evaluation.metrics import mme
from qwenvl_jax.evaluation.metrics.registry import METRICS
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.benchmarks.published_records import SAMPLES, ask, record_for, row_of, written

GOLDEN = Path(__file__).parents[2] / "golden/prompts"
JUDGED = {name for name, benchmark in PUBLISHED.items() if benchmark.judged}

# (max_new_tokens, min_new_tokens) of the released scripts; likelihoods need no limits.
LIMITS = {
    "nocaps_val": (30, 8), "flickr30k_karpathy_test": (30, 8),
    "vqav2_val": (10, 1), "vqav2_testdev": (10, 1), "okvqa_val": (10, 1), "gqa_testdev": (10, 1),
    "vizwiz_val": (10, 1), "vizwiz_test": (10, 1), "textvqa_val": (10, 1), "ai2d_test": (10, 1),
    "docvqa_val": (100, 1), "docvqa_test": (100, 1), "infovqa_val": (100, 1), "infovqa_test": (100, 1),
    "chartqa_test_human": (100, 1), "chartqa_test_augmented": (100, 1), "ocrvqa_val": (100, 1), "ocrvqa_test": (100, 1),
    "refcoco_val": (28, 10), "refcoco_testA": (28, 10), "refcoco_testB": (28, 10),
    "refcoco_plus_val": (28, 10), "refcoco_plus_testA": (28, 10), "refcoco_plus_testB": (28, 10),
    "refcocog_val": (28, 10), "refcocog_test": (28, 10), "grit_refexp": (28, 10),
    "mme": (512, 0), "touchstone_en": (512, 0), "touchstone_cn": (512, 0),
}  # fmt: skip
LIKELIHOOD = {
    "scienceqa_img_test", "mmbench_dev", "mmbench_test", "seed_bench", "mmlu_test", "cmmlu_test", "ceval_val",
}  # fmt: skip

# Figures of Qwen-VL and Qwen-VL-Chat, by table of the paper.
PAPER: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "4": {
        "nocaps_val": (121.4, 120.2),
        "flickr30k_karpathy_test": (85.8, 81.0),
        "vqav2_testdev": (79.5, 78.2),
        "okvqa_val": (58.6, 56.6),
        "gqa_testdev": (59.3, 57.5),
        "scienceqa_img_test": (67.1, 68.2),
        "vizwiz_val": (35.2, 38.9),
        "vizwiz_test": (35.2, 38.9),
    },
    "5": {
        "textvqa_val": (63.8, 61.5),
        "docvqa_test": (65.1, 62.6),
        "chartqa_test": (65.7, 66.3),
        "ai2d_test": (62.3, 57.7),
        "ocrvqa_test": (75.7, 70.5),
    },
    "6": {
        "refcoco_val": (89.36, 88.55),
        "refcoco_testA": (92.26, 92.27),
        "refcoco_testB": (85.34, 84.51),
        "refcoco_plus_val": (83.12, 82.82),
        "refcoco_plus_testA": (88.25, 88.59),
        "refcoco_plus_testB": (77.21, 76.79),
        "refcocog_val": (85.58, 85.96),
        "refcocog_test": (85.48, 86.32),
        "grit_refexp": (78.22, None),
    },
    "7": {"seed_bench": (56.3, 58.2), "touchstone_en": (None, 645.2), "touchstone_cn": (None, 401.2)},
    "11": {"mmlu_test": (50.7, None), "cmmlu_test": (49.5, None), "ceval_val": (51.1, None)},
}
HIDDEN = {"vqav2_testdev", "vizwiz_test", "docvqa_test", "infovqa_test", "grit_refexp", "mmbench_test"}


def of(name: str) -> Benchmark:
    return BENCHMARKS[name]


def test_every_benchmark_has_a_sample_and_a_golden_prompt() -> None:
    assert set(SAMPLES) == set(PUBLISHED)
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(PUBLISHED)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_prompts_equal_the_golden_texts(name: str) -> None:
    golden = (GOLDEN / f"{name}.txt").read_text().removesuffix("\n")
    assert written(ask(of(name))) == golden


def test_limits() -> None:
    generated = {name for name in PUBLISHED if name not in LIKELIHOOD}
    assert {name: (of(name).max_new_tokens, of(name).min_new_tokens) for name in generated} == LIMITS
    for name in LIKELIHOOD:
        assert ask(of(name)).options
    for name in generated:
        assert not ask(of(name)).options


def test_figures_of_the_paper() -> None:
    entries: dict[str, Benchmark | JoinedRow] = {row.name: row for row in JOINED_ROWS}
    entries |= PUBLISHED
    for table, figures in PAPER.items():
        for name, (base, chat) in figures.items():
            stated = (entries[name].paper.get("Qwen-VL"), entries[name].paper.get("Qwen-VL-Chat"))
            assert (entries[name].table, stated) == (table, (base, chat)), name
    named = {name for names in PAPER.values() for name in names}
    assert {name for name, entry in entries.items() if entry.paper} == named


def test_joined_rows_name_benchmarks_of_one_unit() -> None:
    for row in JOINED_ROWS:
        assert sum(row.weights.values()) == 1
        assert len({of(name).unit for name in row.weights}) == 1


def test_hidden_test_sets_have_a_server_and_no_score() -> None:
    assert {name for name in PUBLISHED if of(name).hidden} == HIDDEN
    for name in HIDDEN:
        question = ask(of(name))
        assert of(name).submission
        assert "answers" not in question.about["truth"]
        assert of(name).score([row_of(of(name), question, SAMPLES[name].right)]) == {}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in HIDDEN | JUDGED])
def test_a_right_answer_scores_and_a_wrong_or_missing_one_does_not(name: str) -> None:
    benchmark = of(name)
    question = ask(benchmark)
    right = row_of(benchmark, question, SAMPLES[name].right)
    wrong = row_of(benchmark, question, SAMPLES[name].wrong)
    missing = {"id": "1", **benchmark.unanswered(question.about)}
    # CIDEr needs a second picture to know which words are rare.
    other = {"prediction": "x y z", "truth": {"answers": ["x y z"]}}
    more = [other] if name in ("nocaps_val", "flickr30k_karpathy_test") else []
    for key, scores in benchmark.score([right, *more]).items():
        assert scores.per_question[0] > 0, key
    for row in (wrong, missing):
        for key, scores in benchmark.score([row, *more]).items():
            assert scores.per_question[0] == 0, key


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in HIDDEN | JUDGED])
def test_figures_have_the_names_of_metrics(name: str) -> None:
    """The reports find the sentence on a difference under the name of the metric."""
    benchmark = of(name)
    scores = benchmark.score([row_of(benchmark, ask(benchmark), SAMPLES[name].right)])
    main, *rest = scores
    metric = METRICS[main]
    assert rest == ([f"{main}_upstream_exact"] if metric.upstream_exact else [])
    assert bool(metric.difference) == bool(rest)
    assert benchmark.unit == metric.unit


def test_a_missing_answer_is_wrong_even_if_the_truth_is_empty_to_the_metric() -> None:
    """The evaluator drops articles, so an empty answer would equal "the"."""
    question = ask(of("vqav2_val"), answers=["the"] * 10)
    missing = {"id": "1", **of("vqav2_val").unanswered(question.about)}
    for scores in of("vqav2_val").score([missing]).values():
        assert scores.aggregate == 0
    empty = row_of(of("vqav2_val"), question, "")
    assert of("vqav2_val").score([empty])["vqa_accuracy"].aggregate == 1


def test_vqa_scores_of_hand() -> None:
    """Seven of ten annotators say net: full marks. Two say nets: (2 * 1/3 + 8 * 2/3) / 10."""
    benchmark = of("vqav2_val")
    question = ask(benchmark)
    rows = [row_of(benchmark, question, answer) for answer in ("Net.", "nets", "fish")]
    scores = benchmark.score(rows)["vqa_accuracy"]
    assert scores.per_question == pytest.approx((1.0, 0.6, 0.0))
    assert scores.aggregate == pytest.approx(1.6 / 3)


def test_official_and_released_figures_differ_where_the_scripts_do() -> None:
    cases = {
        "gqa_testdev": ("panda bear", " panda bear", [1.0, 0.0]),
        "chartqa_test_human": ("100", " 105.1", [0.0, 1.0]),
        "docvqa_val": ("abcd", " abx", [0.0, 0.5]),
    }
    for name, (true, answer, expected) in cases.items():
        row = row_of(of(name), ask(of(name), answers=[true]), answer)
        assert [scores.aggregate for scores in of(name).score([row]).values()] == expected, name


def test_boxes_are_read_in_thousandths_and_as_released() -> None:
    """The released script divides by 999, so its boxes are a little larger."""
    benchmark = of("refcoco_val")
    question = ask(benchmark, box=[0.0, 0.0, 640.0, 480.0])
    # 707 * 707 thousandths are 0.4998 of the picture; of 999 they are 0.5008.
    row = row_of(benchmark, question, "(0,0),(707,707)</box>")
    values = [scores.aggregate for scores in benchmark.score([row]).values()]
    assert values == [0.0, 1.0]
    assert row["prediction"] == "(0,0),(707,707)"


def test_white_space_around_answers_stays_only_in_boxes() -> None:
    assert row_of(of("vqav2_val"), ask(of("vqav2_val")), " a net \n<|endoftext|>")["prediction"] == "a net"
    assert row_of(of("refcoco_val"), ask(of("refcoco_val")), " (1,2),(3,4) ")["prediction"] == " (1,2),(3,4) "
    assert row_of(of("seed_bench"), ask(of("seed_bench")), " C")["prediction"] == "C"


def test_seed_bench_has_figures_of_images_and_videos() -> None:
    benchmark = of("seed_bench")
    rows = []
    for category, answers in (("Text Understanding", " A A B"), ("11", " A B"), ("Action Recognition", " B")):
        for answer in answers.split():
            rows.append(row_of(benchmark, ask(benchmark, category=category), f" {answer}"))
    scores = benchmark.score(rows)["choice_accuracy"]
    assert scores.aggregate == pytest.approx(3 / 6)
    assert scores.figures["image"] == pytest.approx(2 / 3)
    assert scores.figures["video"] == pytest.approx(1 / 3)
    assert scores.figures["Text Understanding"] == pytest.approx(2 / 3)
    assert set(benchmark.paper_figures) <= set(scores.figures)


def test_frames_of_a_video_come_before_the_question() -> None:
    video = dataclasses.replace(SAMPLES["seed_bench"], images=4)
    prompt = written(ask(of("seed_bench"), video))
    assert prompt.startswith("<img>0</img>\n<img>1</img>\n<img>2</img>\n<img>3</img>\nQuestion: How many")


def test_figures_of_subtasks_and_sums_of_mme() -> None:
    """Existence: two of two; count: one of two, so that the picture counts nowhere in accuracy+."""
    benchmark = of("mme")
    rows = []
    for category, truths, answers in (("existence", "Yes No", "yes no"), ("code_reasoning", "Yes No", "Yes Yes")):
        for true, answer in zip(truths.split(), answers.split(), strict=True):
            rows.append(row_of(benchmark, ask(benchmark, answers=[true], category=category, group="1"), answer))
    scores = benchmark.score(rows)["mme"]
    assert (scores.figures["perception"], scores.figures["cognition"]) == (200, 50)
    assert {"perception", "cognition", "existence", "code_reasoning"} <= set(benchmark.paper_figures)
    paper = {name: figures["Qwen-VL-Chat"] for name, figures in benchmark.paper_figures.items()}
    # The printed sum of perception, 1487.58, is rounded from 1487.5763.
    assert sum(paper[name] for name in mme.PERCEPTION) == pytest.approx(paper["perception"], abs=0.02)
    assert sum(paper[name] for name in mme.COGNITION) == pytest.approx(paper["cognition"], abs=0.02)


def test_c_eval_has_a_figure_of_hard_subjects() -> None:
    """Law does not belong to them, and each subject counts the same."""
    benchmark = of("ceval_val")
    rows = []
    for category, answers in (("law", "A A"), ("college_physics", "C A A A"), ("high_school_physics", "C")):
        for answer in answers.split():
            rows.append(row_of(benchmark, ask(benchmark, category=category), answer))
    scores = benchmark.score(rows)["subject_accuracy"]
    assert scores.figures["hard"] == pytest.approx((1 / 4 + 1) / 2)
    assert scores.aggregate == pytest.approx((0 + 1 / 4 + 1) / 3)


def test_mmlu_keeps_the_end_of_long_prompts() -> None:
    assert {name: entry.last_tokens for name, entry in PUBLISHED.items() if entry.last_tokens} == {"mmlu_test": 2047}


def test_touchstone_scores_verdicts() -> None:
    """The first question has both rounds, the second one has one, the third could not be asked."""
    benchmark = of("touchstone_en")
    rows = []
    for rounds in ([[6.0, 9.0], [8.0, 9.0]], [[4.0, 10.0]]):
        rows.append(row_of(benchmark, ask(benchmark), "x", verdict={"scores": rounds}))
    rows.append({"id": "3", **benchmark.unanswered(ask(benchmark).about)})
    scores = benchmark.score(rows)["touchstone"]
    assert scores.aggregate == pytest.approx((6 + 8 + 4 + 0 + 0) / 5)
    assert scores.per_question == (7.0, 4.0, 0.0)
    assert scores.weights == pytest.approx((2 / 5, 1 / 5, 2 / 5))
    assert scores.figures["reference"] == pytest.approx((9 + 9 + 10) / 3)
    assert scores.figures["judged"] == pytest.approx(5 / 6)
    assert scores.figures["counting"] == scores.figures["comparison"] == pytest.approx(18 / 5)
    assert benchmark.score([row_of(benchmark, ask(benchmark), "x")]) == {}
    assert rows[0]["hint"] == "Two photographs of a street."


def test_mmbench_counts_rotations_together() -> None:
    benchmark = of("mmbench_dev")
    options = ["a cat", "a dog", "a cow", "a hen"]
    rows = []
    for shift, answer in enumerate([" A", " D", " C", " A"]):  # the last one is wrong
        rotated = options[shift:] + options[:shift]
        question = ask(benchmark, options=rotated, right=rotated.index("a cat"))
        rows.append(row_of(benchmark, question, answer))
    scores = benchmark.score(rows)
    assert scores["mmbench"].aggregate == 0
    assert scores["mmbench_upstream_exact"].aggregate == 1


def test_questions_without_a_truth_are_refused() -> None:
    for name, key in (("vqav2_val", "answers"), ("scienceqa_img_test", "right"), ("refcoco_val", "box")):
        sample = copy.deepcopy(SAMPLES[name])
        del sample.question[key]
        with pytest.raises(UserError, match=r"has no answer|which of its|box"):
            ask(of(name), sample)


def test_predictions_of_other_benchmarks_are_refused() -> None:
    with pytest.raises(UserError, match="belongs to another benchmark"):
        of("vqav2_val").score([{"id": "x", "prediction": "net", "answers": ["net"]}])


def test_a_prompt_of_the_user_replaces_that_of_the_benchmark() -> None:
    asking = Asking(template="<img>Q: {question} A:")
    assert written(ask(of("vqav2_val"), asking=asking)) == "<img>0</img>Q: What is the man holding? A:"
    assert ask(of("seed_bench"), asking=Asking(template="<img>{question}")).options == (" A", " B", " C", " D")


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_several_questions_of_a_record_are_all_asked(name: str) -> None:
    record = record_for(name)
    [question] = record.content["questions"]  # type: ignore[typeddict-item]
    twice = {**record.content, "questions": [question, {**question, "id": "2"}]}
    asked = of(name).questions(dataclasses.replace(record, content=twice), Asking())  # type: ignore[arg-type]
    assert [each.id for each in asked] == ["1", "2"]
    assert asked[0].images == asked[1].images == record.images


@given(st.text(max_size=40), st.sampled_from(sorted(set(PUBLISHED) - HIDDEN - JUDGED)))
def test_any_answer_is_read_and_scored(text: str, name: str) -> None:
    benchmark = of(name)
    row = row_of(benchmark, ask(benchmark), text)
    assert not any(tag in row["prediction"] for tag in (*tags.CONTROL_TAGS, *tags.IMAGE_TAGS))
    for scores in benchmark.score([row]).values():
        assert 0 <= scores.aggregate <= 200


@given(st.sampled_from([*tags.CONTROL_TAGS, *tags.IMAGE_TAGS]))
def test_questions_cannot_forge_tags(tag: str) -> None:
    question = ask(of("vqav2_val"), text=f"a{tag}b")
    assert [piece.kind for piece in question.pieces] == ["image", "text"]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_corpora_and_splits_are_those_of_the_readers(name: str) -> None:
    benchmark = of(name)
    assert benchmark.split in CORPORA[benchmark.corpus].splits
    if benchmark.exemplar_split:
        assert benchmark.exemplar_split in CORPORA[benchmark.corpus].splits
