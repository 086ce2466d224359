"""Small corpora of written pages, dialogues and plain text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.corpora.pictures import picture
from tests.support.corpora.tables import write_file, write_json, write_jsonl, write_parquet


def _write_synthdog(folder: Path, texts: tuple[str, ...]) -> None:
    for start, split in ((0, "train"), (10, "validation"), (20, "test")):
        rows = []
        for number, text in enumerate(texts, start=start):
            name = f"image_{number}.jpg"
            truth = json.dumps({"gt_parse": {"text_sequence": text}}, ensure_ascii=False)
            rows.append({"file_name": name, "ground_truth": truth})
            write_file(folder / split / name, picture(number))
        write_jsonl(folder / split / "metadata.jsonl", rows)


def write_synthdog_en(folder: Path) -> None:
    """Three splits of English pages."""
    _write_synthdog(folder, ("The history of the town", 'He said "no" \\ and left'))


def write_synthdog_zh(folder: Path) -> None:
    """Three splits of Chinese pages."""
    _write_synthdog(folder, ("小镇的历史", "春天 的 花"))


def llava_dialogue(image: str | None, *values: str) -> dict[str, Any]:
    """An entry of LLaVA with turns of a human and GPT."""
    turns = [{"from": ("human", "gpt")[k % 2], "value": value} for k, value in enumerate(values)]
    return {"id": "000000033471", **({} if image is None else {"image": image}), "conversations": turns}


def write_llava(folder: Path) -> None:
    """Dialogues about one picture, two of them with one id, and one without a picture."""
    name = "000000033471.jpg"
    rows = [
        llava_dialogue(name, "<image>\nWhat colour is the bus?", "White and red.", "Where is it?", "In a street."),
        llava_dialogue(f"coco/train2017/{name}", "Describe the picture.\n<image>", "A bus."),
        llava_dialogue(None, "What does <image> mean in HTML?", "Nothing: <img> shows a picture."),
        llava_dialogue(name, "<image>\nAnd <image>?", "There is one picture only."),
    ]
    write_json(folder / "llava_instruct_150k.json", rows)
    for path in (f"train2017/{name}", f"coco/train2017/{name}"):
        write_file(folder / path, picture(1))


def write_qwen_vl_dialogues(folder: Path) -> None:
    """Dialogues with two pictures, a region, and none; one has a tag without its partner."""
    one = "Picture 1: <img>a/1.jpg</img>\n"
    rows = [
        ("0", f"{one}What is it?", "A <ref>dog</ref><box>(10,20),(300,400)</box>."),
        ("1", f"{one}Picture 2: <img>2.png</img>\nCompare them.", "They differ."),
        ("2", "Hello", "Hi."),
        ("3", f"{one}Where?", "<box>(1,2),(3,4)"),
    ]
    write_json(
        folder / "dialogues.json",
        [
            {
                "id": name,
                "conversations": [{"from": "user", "value": asked}, {"from": "assistant", "value": answer}],
            }
            for name, asked, answer in rows
        ],
    )
    write_file(folder / "a" / "1.jpg", picture(1))
    write_file(folder / "2.png", picture(2, "PNG"))


def write_text(folder: Path) -> None:
    """A file of lines and a Parquet file."""
    rows = [
        {"text": "The first text.", "id": "a", "language": "en", "license": "CC-BY-SA-4.0"},
        {"text": "第二篇文章。", "language": "zh"},
        {"text": "A third text\nof two lines.", "url": "https://example.org", "id": 7},
        {"title": "no text"},
    ]
    write_jsonl(folder / "part-00000.jsonl", rows)
    table = [{"text": f"Text {n} of a table.", "id": n, "license": "CC0-1.0", "length": 10} for n in range(5)]
    write_parquet(folder / "part-00001.parquet", table)
