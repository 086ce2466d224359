"""Small benchmarks in the formats of their publishers: every split of the table, with some bad rows."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.corpora.annotated import write_pictures
from tests.support.corpora.pictures import picture
from tests.support.corpora.tables import write_file, write_json

Json = dict[str, Any]


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], separator: str) -> bytes:
    """A table as pandas writes it: values are quoted if they must be."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    if columns:
        writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def in_base64(number: int) -> str:
    """A picture as TSV files have it."""
    return base64.b64encode(picture(number)).decode()


def write_mmbench(folder: Path) -> None:
    """Two questions; of the first two rotations, of which one has the picture by reference; a row without options."""
    columns = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category")
    kind = ("object_localization", "finegrained_perception")
    rows = [
        (241, 'Which "part" is\nleft?', "", "cat", "dog", "", "", "A", kind[0], in_base64(1), kind[1]),
        (253, "How many?", "Count\tthem.", "1", "2", "3", "4", "C", kind[0], in_base64(2), kind[1]),
        (300, "No options?", "", "1", "", "", "", "A", kind[0], in_base64(3), kind[1]),
        (1000241, 'Which "part" is\nleft?', "", "dog", "cat", "", "", "B", kind[0], "241", kind[1]),
        (2000241, 'Which "part" is\nleft?', "", "dog", "cat", "", "", "E", kind[0], in_base64(1), kind[1]),
    ]
    for name in ("mmbench_dev_20230712.tsv", "MMBench_DEV_CN.tsv"):
        write_file(folder / name, table(columns, rows, "\t"))
    hidden = [[*row[:7], *row[8:]] for row in rows[:2]]
    for name in ("mmbench_test_20230712.tsv", "MMBench_TEST_CN.tsv"):
        write_file(folder / name, table([name for name in columns if name != "answer"], hidden, "\t"))


def write_touchstone(folder: Path) -> None:
    """Three questions in each language, one without a reference answer."""
    columns = ("index", "image", "question", "human_annotation", "gpt4_ha_answer", "category", "task_name")
    rows = [
        (
            0,
            in_base64(1),
            "Describe it.",
            "Two colours.",
            "It has\ttwo colours.\nThey differ.",
            "desc,basic",
            "describe",
        ),
        (1, in_base64(1), "Write a poem.", "Two colours.", "Roses ..", "storytelling", "poem"),
        (2, in_base64(2), "Who?", "Nobody.", "", "recognition", "who"),
    ]
    for end in ("", "_cn"):
        write_file(folder / f"touchstone_20230831{end}.tsv", table(columns, rows, "\t"))


def write_mmlu(folder: Path) -> None:
    """Two subjects per split; options that pandas would take for missing ones, and a row with too few values."""
    rows = [
        ('What is "NA", in\nchemistry?', "None", "Sodium", "NA", "nan", "B"),
        ("2 + 2?", "3", "4", "5", "4.0", "B"),
        ("broken", "1", "2"),
        ("No answer?", "1", "2", "3", "4", "E"),
    ]
    for split in ("dev", "val", "test"):
        for subject in ("abstract_algebra", "high_school_us_history"):
            write_file(folder / "data" / split / f"{subject}_{split}.csv", table((), rows, ","))


def write_cmmlu(folder: Path) -> None:
    """Two subjects per split."""
    rows = [
        (0, "在农业生产中被当作极其重要的劳动对象发挥作用的是", "种子", "农药", "化肥", "土地", "D"),
        (1, "问？", *"1234", "A"),
    ]
    for split in ("dev", "test"):
        for subject in ("agronomy", "anatomy"):
            columns = ("", "Question", "A", "B", "C", "D", "Answer")
            write_file(folder / split / f"{subject}.csv", table(columns, rows, ","))


def write_ceval(folder: Path) -> None:
    """One subject; the examples have explanations, and the answers of the test set are hidden."""
    columns = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
    rows = [
        [str(number), f"下列第{number}项正确的是____。", "甲", "乙", "丙", "丁", "C", "1. 因为"] for number in range(3)
    ]
    for split, count in (("dev", 8), ("val", 7), ("test", 6)):
        name = folder / split / f"advanced_mathematics_{split}.csv"
        write_file(name, table(columns[:count], [row[:count] for row in rows], ","))


def write_mme(folder: Path) -> None:
    """A subtask of each form, and a picture of which one line is broken."""
    root = folder / "MME_Benchmark_release_version"
    lines = "Is there a {}? Please answer yes or no.\tYes\nIs there a hen? Please answer yes or no.\tNo\n"
    write_pictures(root / "existence", ["000000006040.jpg", "000000007795.jpg"])
    for name in ("000000006040", "000000007795"):
        write_file(root / "existence" / f"{name}.txt", lines.format("dog").encode())
    write_pictures(root / "code_reasoning" / "images", ["0020.png"])
    text = "Is it Python? Please answer yes or no.\tYes\nIs it C? Please answer yes or no.\n"
    write_file(root / "code_reasoning" / "questions_answers_YN" / "0020.txt", text.encode())
    write_file(root / "eval_tool" / "Your_Results" / "existence.txt", b"a.jpg\tIs it?\tYes\tYes\n")


def science_problem(split: str, image: str | None, **changes: object) -> Json:
    """A problem as ScienceQA writes it, with some of its other keys."""
    return {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona"],
        "answer": 0,
        "hint": "",
        "image": image,
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "split": split,
        **changes,
    }


def write_scienceqa(folder: Path) -> None:
    """A problem with a picture and one without in every split, and one of the test set without a right answer."""
    problems: Json = {}
    splits: dict[str, list[str]] = {}
    for number, split in enumerate(("train", "val", "test")):
        with_picture, without = str(10 * number + 1), str(10 * number + 2)
        problems[with_picture] = science_problem(split, "image.png", hint="The map shows states. ")
        problems[without] = science_problem(split, None)
        splits[split] = [with_picture, without]
        write_pictures(folder / "images" / split / with_picture, ["image.png"])
    problems["99"] = science_problem("test", "image.png", answer=3)
    splits["test"].append("99")
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", splits)


def seed_question(number: int, kind: int, data: str, **changes: object) -> Json:
    """A question as SEED-Bench writes it."""
    return {
        "answer": "B",
        "choice_a": "One",
        "choice_b": "Two",
        "choice_c": "Three",
        "choice_d": "Four",
        "data_id": data,
        "data_type": "image" if kind < 10 else "video",
        "question": "How many towels are in the image?",
        "question_id": str(number),
        "question_type_id": kind,
        **changes,
    }


def write_seed_bench(folder: Path) -> None:
    """Questions about two pictures and two videos; one video is there as frames and the other one is missing."""
    questions = [
        seed_question(101669, 5, "1454426_2591111986"),
        seed_question(101670, 1, "2_2"),
        seed_question(101671, 1, "1454426_2591111986"),
        seed_question(101672, 1, "2_2", answer="F"),
        seed_question(30055, 10, "/7.webm"),
        seed_question(30056, 11, "P04/P04_101.MP4", segment=[1.5, 3.0]),
    ]
    kinds = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10, "Action Prediction": 11}
    write_json(folder / "SEED-Bench.json", {"questions": questions, "question_type": kinds})
    for number, name in enumerate(("1454426_2591111986", "2_2")):
        write_file(folder / "SEED-Bench-image" / name, picture(number))
    for count in (4, 8):
        for question in (30055, 30056):
            for frame in range(count):
                write_file(folder / f"video_imgs_{count}" / f"{question}_{frame}.jpg", picture(frame))


def write_grit_refexp(folder: Path) -> None:
    """Phrases about two pictures, and a question of another task."""
    write_pictures(folder / "GRIT" / "images" / "coco", ["a.jpg", "b.jpg"])
    for split in ("ablation", "test"):
        rows = [
            {
                "example_id": f"refexp_{number}",
                "image_id": f"coco/{name}",
                "task_name": "refexp",
                "task_query": phrase,
                "task_bbox": None,
                "output_options": None,
            }
            for number, (name, phrase) in enumerate([("a.jpg", "the dog"), ("b.jpg", "left"), ("a.jpg", "a cat")])
        ]
        rows.append({**rows[0], "example_id": "vqa_1", "task_name": "vqa"})
        rows.append({**rows[0], "example_id": "refexp_9", "task_query": None})
        write_json(folder / "GRIT" / "samples" / split / "refexp.json", rows)


def jsonl(rows: Sequence[Json]) -> bytes:
    """Lines of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
