"""Small annotated corpora in the formats of their publishers: every split of the table, with some bad rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.corpora.pictures import HEIGHT, WIDTH, picture
from tests.support.corpora.tables import write_file, write_json

COCO = ("COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg")
Json = dict[str, Any]


def write_pictures(folder: Path, names: Sequence[str]) -> None:
    """One picture per name, in the format of its suffix."""
    for number, name in enumerate(names):
        write_file(folder / name, picture(number, {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG"}[name.split(".")[-1]]))


# Visual Genome and GQA


def _visual_genome_pictures(folder: Path) -> None:
    rows = []
    for number, part in ((1, "VG_100K_2"), (2, "VG_100K"), (3, "VG_100K")):
        url = f"https://cs.stanford.edu/people/rak248/{part}/{number}.jpg"
        facts = {"coco_id": None, "flickr_id": None, "image_id": number}
        rows.append({"width": WIDTH, "url": url, "height": HEIGHT, **facts})
        write_pictures(folder, [f"{part}/{number}.jpg"])
    write_json(folder / "image_data.json", rows)


def region(number: int, phrase: object, x: object = 2, y: object = 3, width: float = 10, height: float = 8) -> Json:
    """A region as Visual Genome writes it."""
    return {
        "region_id": number,
        "width": width,
        "height": height,
        "image_id": 1,
        "phrase": phrase,
        "y": y,
        "x": x,
    }


def write_visual_genome(folder: Path) -> None:
    """Three pictures with regions, one of them with a region without a phrase, and regions of an unknown picture."""
    _visual_genome_pictures(folder)
    rows = [
        {"regions": [region(1382, "the clock is green"), region(1383, "shade from tree ", 0, 0, 26, 16)], "id": 1},
        {"regions": [region(1390, " "), region(1391, "a wall", y="3"), region(1392, "a door")], "id": 2},
        {"regions": [region(1400, "a dog")], "id": 99},
        {"regions": [], "id": 3},
    ]
    write_json(folder / "region_descriptions.json", rows)


def write_vgqa(folder: Path) -> None:
    """Two pictures with questions, one of them with a question without an answer."""
    _visual_genome_pictures(folder)
    answered = {"a_objects": [], "image_id": 1, "q_objects": []}
    rows = [
        {"id": 1, "qas": [{**answered, "question": "What color is the clock?", "qa_id": 986768, "answer": "Green."}]},
        {
            "id": 2,
            "qas": [
                {**answered, "question": "Where is the door?", "qa_id": 986769, "answer": ""},
                {**answered, "question": "How many doors?", "qa_id": 986770, "answer": "Two."},
            ],
        },
    ]
    write_json(folder / "question_answers.json", rows)


def gqa(image: str, question: str, answer: str) -> Json:
    """A question as GQA writes it, with some of its other keys."""
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "fence (4)"}],
        "entailed": [],
        "question": question,
        "imageId": image,
        "isBalanced": True,
        "types": {"detailed": "existAttr", "semantic": "attr", "structural": "verify"},
        "answer": answer,
        "fullAnswer": f"It is {answer}.",
    }


def write_gqa(folder: Path) -> None:
    """Questions that are not in the order of their pictures; `train_all` in two files."""
    write_pictures(folder / "images", ["2354786.jpg", "n161313.jpg"])
    questions = {
        "02930152": gqa("2354786", "Is the sky dark?", "yes"),
        "07333408": gqa("n161313", "What is on the white wall?", "pipe"),
        "07333405": gqa("2354786", "Is that pipe red?", "no"),
        "07333406": {"question": "Which picture?", "answer": "none"},
    }
    for split in ("train", "val", "testdev"):
        write_json(folder / f"{split}_balanced_questions.json", questions)
    for number in range(2):
        write_json(folder / "train_all_questions" / f"train_all_questions_{number}.json", questions)


# Questions in JSON


def annotators(*answers: tuple[str, str]) -> list[Json]:
    """Answers with their confidences, as VQAv2 writes them."""
    return [
        {"answer": text, "answer_confidence": confidence, "answer_id": number}
        for number, (text, confidence) in enumerate(answers, start=1)
    ]


def _two_files(folder: Path, prefix: str) -> None:
    for split, first in (("train2014", 9), ("val2014", 42)):
        names = [f"{split}/COCO_{split}_{number:012d}.jpg" for number in (first, first + 1)]
        write_pictures(folder, names)
        questions = [
            {"image_id": first, "question": "What is this?", "question_id": 10 * first},
            {"image_id": first + 1, "question": "Is it day?", "question_id": 10 * first + 10},
            {"image_id": first, "question": "What color is it?", "question_id": 10 * first + 1},
            {"image_id": first, "question": "Who took it?", "question_id": 10 * first + 2},
        ]
        answers = {
            10 * first + 10: annotators(("yes", "yes"), ("yes", "maybe"), ("no", "yes")),
            10 * first: annotators(("net", "maybe"), ("a net", "yes"), ("net", "maybe"), ("", "yes")),
            10 * first + 1: annotators(("white", "yes")),
        }
        facts = {"info": {"year": 2017, "version": "2.0"}, "license": {"name": "CC BY 4.0"}, "data_subtype": split}
        write_json(folder / f"{prefix}OpenEnded_mscoco_{split}_questions.json", {**facts, "questions": questions})
        annotations = [
            {
                "question_type": "what",
                "multiple_choice_answer": stated[0]["answer"],
                "answers": stated,
                "image_id": number // 10,
                "answer_type": "other",
                "question_id": number,
            }
            for number, stated in answers.items()
        ]
        write_json(folder / f"{prefix}mscoco_{split}_annotations.json", {**facts, "annotations": annotations})


def write_vqav2(folder: Path) -> None:
    """Two pictures per split; one question has no answers. Answers of the test sets are hidden."""
    _two_files(folder, "v2_")
    write_pictures(folder / "test2015", [f"COCO_test2015_{number:012d}.jpg" for number in (1, 16)])
    questions = [
        {"image_id": image, "question": "Who?", "question_id": 10 * image + n} for n in (1, 0) for image in (16, 1)
    ]
    for split, members in (("test2015", questions), ("test-dev2015", questions[:1])):
        write_json(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", {"questions": members})


def write_okvqa(folder: Path) -> None:
    """As VQAv2."""
    _two_files(folder, "")


def write_vizwiz(folder: Path) -> None:
    """Two pictures per split; one is not named. The training set is as the archive has it."""
    for split in ("train", "val"):
        names = [f"VizWiz_{split}_{number:08d}.jpg" for number in range(2)]
        write_pictures(folder / split, names)
        answers = annotators(("unanswerable", "yes"), ("soap", "maybe"), ("unanswerable", "no"), ("soap", "yes"))
        rows = [
            {"image": name, "question": "What is this?", "answers": answers, "answer_type": "other", "answerable": 1}
            for name in names
        ]
        annotations = folder / "Annotations" if split == "train" else folder
        write_json(annotations / f"{split}.json", [*rows, {**rows[0], "image": None}])
    write_pictures(folder / "test", ["VizWiz_test_00000000.jpg"])
    write_json(folder / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What is this?"}])


def write_textvqa(folder: Path) -> None:
    """Two questions about one picture and one about another; the pictures of both splits are in one folder."""
    write_pictures(folder / "train_images", ["0054c91397f2fe05.jpg", "ba3c0e0f5b0b0a2b.jpg"])
    for split in ("train", "val"):
        rows = []
        for number, image in enumerate(("0054c91397f2fe05", "ba3c0e0f5b0b0a2b", "0054c91397f2fe05")):
            row = {"question": f"what is line {number}?", "image_id": image, "image_width": WIDTH}
            rows.append({**row, "answers": ["nokia", "nokia lumia", "", "nokia"], "question_id": number})
        table = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": rows}
        write_json(folder / f"TextVQA_0.5.1_{split}.json", table)
    write_pictures(folder / "test_images", ["f5e6a7b8c9d0e1f2.jpg"])
    hidden = {"question": "what is it?", "image_id": "f5e6a7b8c9d0e1f2", "question_id": 39602}
    write_json(folder / "TextVQA_0.5.1_test.json", {"dataset_type": "test", "data": [hidden]})


def write_st_vqa(folder: Path) -> None:
    """Pictures of two of its parts; one path leads out of the folder."""
    names = ["coco-text/COCO_train2014_000000000009.jpg", "IIIT_5K/img_1.jpg"]
    write_pictures(folder, names)
    rows = [
        {"file_path": name, "question": "What is written?", "answers": ["STOP", "STOP sign"], "set_name": "train"}
        for name in (*names, "../../etc/passwd.jpg")
    ]
    write_json(folder / "train_task_3.json", {"task_name": "st-vqa", "data": rows})


def write_ocr_vqa(folder: Path) -> None:
    """One cover per split, and one with more questions than answers."""
    covers = {}
    for split, (number, suffix) in enumerate((("0451450655", "jpg"), ("1419723", "jpg"), ("B000", "png")), start=1):
        write_pictures(folder / "images", [f"{number}.{suffix}"])
        covers[number] = {
            "imageURL": f"http://ecx.images-amazon.com/images/I/61.{suffix}",
            "questions": ["Who is the author of this book?", "What is the title of this book?"],
            "answers": ["Sandra Boynton", "Mom's Family Wall Calendar"],
            "title": "Mom's Family Wall Calendar",
            "authorName": "Sandra Boynton",
            "genre": "Calendars",
            "split": split,
        }
    covers["broken"] = {**covers["0451450655"], "answers": ["one"]}
    write_json(folder / "dataset.json", covers)


# Documents, charts, diagrams


def write_docvqa(folder: Path) -> None:
    """The training set in the older archive, the validation set in that of today."""
    names = ["documents/xnbl0037_1.png", "documents/txpp0227_10.png"]
    rows = [
        {
            "questionId": 337 + number,
            "question": f"What is number {number}?",
            "image": name,
            "docId": 279,
            "answers": ["0.28", "0,28"],
            "data_split": "train",
            "question_types": ["table/list", "form"],
        }
        for number, name in enumerate((*names, names[0]))
    ]
    rows.append({"questionId": 400, "question": "No answers?", "image": names[0]})
    table = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "train", "data": rows}
    write_pictures(folder / "train", names)
    write_json(folder / "train" / "train_v1.0.json", table)
    write_pictures(folder / "spdocvqa_images", [name.split("/")[1] for name in names])
    write_json(folder / "spdocvqa_qas" / "val_v1.0_withQT.json", table)
    row = {"questionId": 57344, "question": "Who signed?", "image": names[0], "question_types": None}
    write_json(folder / "spdocvqa_qas" / "test_v1.0.json", {**table, "data": [row]})


def write_infovqa(folder: Path) -> None:
    """One infographic."""
    write_pictures(folder / "infographicsvqa_images", ["20471.jpeg"])
    row = {
        "questionId": 65718,
        "question": "Which social platform has heavy female audience?",
        "image_local_name": "20471.jpeg",
        "ocr_output_file": "20471.json",
        "answers": ["pinterest"],
    }
    table = {"dataset_name": "infographicVQA", "dataset_version": "1.0", "data": [row]}
    write_json(folder / "infographicsvqa_qas" / "infographicsVQA_train_v1.0.json", table)
    write_json(folder / "infographicsvqa_qas" / "infographicsVQA_val_v1.0_withQT.json", table)
    del row["answers"]
    write_json(folder / "infographicsvqa_qas" / "infographicsVQA_test_v1.0.json", {**table, "data": [row]})


def write_chartqa(folder: Path) -> None:
    """A chart with human questions, one with generated ones, and one with both."""
    for split in ("train", "val", "test"):
        write_pictures(folder / split / "png", ["two_col_40.png", "41810321001157.png", "multi_col_1.png"])
        human = [
            {"imgname": "41810321001157.png", "query": "How many bars?", "label": "3"},
            {"imgname": "multi_col_1.png", "query": "What is the sum?", "label": 57.5},
        ]
        generated = [
            {"imgname": "two_col_40.png", "query": "What was the share in 2019?", "label": "12.5%"},
            {"imgname": "multi_col_1.png", "query": "Which year?", "label": "2014"},
            {"imgname": "multi_col_1.png", "query": "Which?", "label": None},
        ]
        write_json(folder / split / f"{split}_human.json", human)
        write_json(folder / split / f"{split}_augmented.json", generated)


def write_dvqa(folder: Path) -> None:
    """Two bar charts."""
    write_pictures(folder / "images", ["bar_train_00000001.png", "bar_train_00000002.png"])
    rows = []
    for number, image in enumerate((1, 2, 1)):
        row = {"question": f"Is bar {number} the largest?", "question_id": number, "template_id": "reason"}
        rows.append({**row, "answer": "yes", "image": f"bar_train_{image:08d}.png", "answer_bbox": []})
    for split in ("train", "val_easy", "val_hard"):
        write_json(folder / "qa" / f"{split}_qa.json", rows)


def write_ai2d(folder: Path) -> None:
    """Two diagrams, one of the test set; one asks about letters, one names no right answer."""
    write_pictures(folder / "images", ["0.png", "100.png"])
    choices = ["ears", "nose", "mouth", "face"]
    for name in ("0.png", "100.png"):
        questions = {
            "What eats the fox?": {"abcLabel": False, "answerTexts": choices, "correctAnswer": 3, "questionId": "0-0"},
            "What is A?": {"abcLabel": True, "answerTexts": choices, "correctAnswer": 1, "questionId": "0-1"},
            "Which is it?": {"abcLabel": False, "answerTexts": choices, "correctAnswer": 4, "questionId": "0-2"},
        }
        write_json(folder / "questions" / f"{name}.json", {"imageName": name, "questions": questions})
    write_file(folder / "ai2d_test_ids.csv", b"100\n2\n")
