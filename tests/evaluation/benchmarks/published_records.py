"""One evaluation record per published benchmark, with a truth, an answer that is right and one that is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.evaluation.benchmarks.benchmark import Asking, Benchmark, Question
from tests.evaluation.samples import noise, record_of


@dataclasses.dataclass(frozen=True)
class Sample:
    """A question of a benchmark, how many pictures it has, and two answers as a model writes them."""

    question: dict[str, Any]
    right: str
    wrong: str
    images: int = 1
    size: tuple[float, float] | None = None
    language: str = "en"


_CAPTIONS = ["A man rides a horse on the beach.", "A person on a brown horse near the sea."]
_TENFOLD = ["net"] * 7 + ["nets"] * 2 + ["racket"]
_VQA = Sample({"text": "What is the man holding?", "answers": _TENFOLD}, " net", " a ball")
_HIDDEN_VQA = Sample({"text": "What is the man holding?"}, " net", " a ball")
_DOCUMENT = Sample({"text": "What is the date of the letter?", "answers": ["May 4, 1998"]}, " may 4, 1998", " Monday")
_HIDDEN_DOCUMENT = Sample({"text": "What is the date of the letter?"}, " may 4, 1998", " Monday")
_BOOK = Sample({"text": "Who wrote this book?", "answers": ["Ann Lee"]}, " ann lee", " Ann")
_BOX = Sample(
    {"text": "the left zebra", "box": [64.0, 48.0, 320.0, 240.0]},
    "(100,100),(500,500)</box><|endoftext|>",
    "(500,500),(900,900)</box><|endoftext|>",
    size=(640, 480),
)
_HIDDEN_BOX = dataclasses.replace(_BOX, question={"text": "the left zebra"})
_SCIENCE = Sample(
    {
        "text": "Which of these is a mammal?",
        "hint": "Mammals have fur.",
        "options": ["a frog", "a fox", "a trout"],
        "right": 1,
        "answers": ["a fox"],
        "category": "natural science",
    },
    " B",
    " A",
)
_MMBENCH = Sample(
    {"text": "What is in the picture?", "options": ["a cat", "a dog", "a cow", "a hen"], "right": 0, "group": "17"},
    " A",
    " D",
)
_HIDDEN_MMBENCH = dataclasses.replace(
    _MMBENCH, question={key: value for key, value in _MMBENCH.question.items() if key != "right"}
)
_SEED = Sample(
    {
        "text": "How many towels are in the picture?",
        "options": ["One", "Two", "Three", "Four"],
        "right": 0,
        "category": "Instances Counting",
    },
    " A",
    " C",
)
_EXAM = Sample(
    {
        "text": "Which gas do plants take in?",
        "options": ["oxygen", "carbon dioxide", "helium", "neon"],
        "right": 1,
        "category": "high_school_biology",
    },
    " B",
    " A",
    images=0,
)
_CHINESE_EXAM = Sample(
    {
        "text": "水的化学式是____。",
        "options": ["CO2", "O2", "H2O", "N2"],
        "right": 2,
        "category": "high_school_chemistry",
    },
    "C",
    "A",
    images=0,
    language="zh",
)
_OPEN = Sample(
    {
        "text": "What differs between the pictures?",
        "hint": "Two photographs of a street.",
        "answers": ["The second one has a bus."],
        "category": "comparison,counting",
    },
    "A bus is in the second picture.",
    "Nothing.",
    images=2,
)

SAMPLES = {
    "nocaps_val": Sample({"answers": _CAPTIONS}, " A man rides a horse on the beach.", " nothing"),
    "flickr30k_karpathy_test": Sample({"answers": _CAPTIONS}, " A man rides a horse on the beach.", " nothing"),
    "vqav2_val": _VQA,
    "vqav2_testdev": _HIDDEN_VQA,
    "okvqa_val": _VQA,
    "gqa_testdev": Sample({"text": "Is the sky blue?", "answers": ["yes"]}, " yes", " no"),
    "vizwiz_val": Sample({"text": "What is this?", "answers": ["unanswerable"] * 6 + ["can"] * 4}, " can", " cup"),
    "vizwiz_test": Sample({"text": "What is this?"}, " can", " cup"),
    "textvqa_val": Sample({"text": "what is the brand?", "answers": ["nokia"] * 10}, " Nokia", " LG"),
    "docvqa_val": _DOCUMENT,
    "docvqa_test": _HIDDEN_DOCUMENT,
    "infovqa_val": Sample({"text": "How many people use it?", "answers": ["32%"]}, " 32%", " many"),
    "infovqa_test": Sample({"text": "How many people use it?"}, " 32%", " many"),
    "chartqa_test_human": Sample({"text": "What is the highest bar?", "answers": ["62"]}, " 63.5", " 80"),
    "chartqa_test_augmented": Sample({"text": "Which year has the lowest bar?", "answers": ["2019"]}, " 2019", " 17"),
    "ocrvqa_val": _BOOK,
    "ocrvqa_test": _BOOK,
    "ai2d_test": Sample(
        {"text": "What eats grass?", "options": ["fox", "hare"], "right": 1, "answers": ["hare"]}, " Hare", " fox"
    ),
    "refcoco_val": _BOX,
    "refcoco_testA": _BOX,
    "refcoco_testB": _BOX,
    "refcoco_plus_val": _BOX,
    "refcoco_plus_testA": _BOX,
    "refcoco_plus_testB": _BOX,
    "refcocog_val": _BOX,
    "refcocog_test": _BOX,
    "grit_refexp": _HIDDEN_BOX,
    "scienceqa_img_test": _SCIENCE,
    "mmbench_dev": _MMBENCH,
    "mmbench_test": _HIDDEN_MMBENCH,
    "seed_bench": _SEED,
    "mme": Sample(
        {
            "text": "Is there a dog? Please answer yes or no.",
            "answers": ["Yes"],
            "category": "existence",
            "group": "1.jpg",
        },
        "Yes, there is.<|im_end|>",
        "No.<|im_end|>",
    ),
    "touchstone_en": _OPEN,
    "touchstone_cn": dataclasses.replace(_OPEN, language="zh"),
    "mmlu_test": _EXAM,
    "cmmlu_test": _CHINESE_EXAM,
    "ceval_val": _CHINESE_EXAM,
}


def record_for(name: str, sample: Sample | None = None, **changes: Any) -> Record:
    """A checked record with the question of a sample, by default that of the benchmark; changes are to its keys."""
    sample = sample or SAMPLES[name]
    content: dict[str, Any] = {"questions": [{"id": "1", **sample.question, **changes}]}
    if sample.size:
        content |= {"width": sample.size[0], "height": sample.size[1]}
    images = tuple(noise(number) for number in range(sample.images))
    record = record_of("evaluation", content, name=f"{name}-0")
    return check_record(dataclasses.replace(record, images=images, language=sample.language))


def ask(benchmark: Benchmark, sample: Sample | None = None, asking: Asking | None = None, **changes: Any) -> Question:
    """The one question of a record of the benchmark."""
    record = record_for(benchmark.name, sample, **changes)
    [question] = benchmark.questions(record, asking or Asking())
    return question


def written(question: Question) -> str:
    """A prompt as text with its tags; `<img>n</img>` stands for the image n of the question."""
    parts = []
    for piece in question.pieces:
        parts.append(f"<img>{piece.value}</img>" if piece.kind == "image" else str(piece.value))
    return "".join(parts)


def row_of(benchmark: Benchmark, question: Question, answer: str, **more: Any) -> dict[str, Any]:
    """A row of predictions as a sweep writes it."""
    return {"id": question.id, "cluster": question.id, **benchmark.read(answer, question.about), **more}
