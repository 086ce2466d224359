"""Memory and time of reading annotation files of full size, against `json.load` (or `pickle.load`) and a dict of lists.

    python benchmarks/annotation_readers.py [NAME ...]

The files have the size and form of the published ones and random contents; they are written to a temporary folder (1 GB
each at most). Every figure is of a process of its own; memory is the peak above that of the imports.
"""

from __future__ import annotations

import json
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data_pipelines.corpora.table import CORPORA


def write_list(path: Path, opening: str, entries: Iterable[str], closing: str) -> None:
    """A JSON file whose entries are not held in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write(opening)
        for number, entry in enumerate(entries):
            file.write(f",{entry}" if number else entry)
        file.write(closing)


def write_gqa(folder: Path, rng: random.Random) -> None:
    """943,000 questions about 72,140 pictures."""
    step = {"operation": "select", "dependencies": [], "argument": "fence (123)"}
    rest = {
        "semantic": [step] * 3,
        "entailed": ["1", "2"],
        "groups": {"global": None, "local": "10q-wall"},
        "semanticStr": "select: fence (123)->" * 3,
        "annotations": {"answer": {"0": "1"}, "question": {"4": "2"}, "fullAnswer": {}},
        "types": {"detailed": "categoryRel", "semantic": "rel", "structural": "query"},
        "fullAnswer": "The pipe is on the wall.",
    }

    def entry(number: int) -> str:
        question = {"imageId": str(rng.randrange(72_140)), "question": f"What is on wall {number}?", "answer": "pipe"}
        return f'"{number:08d}": {json.dumps({**question, **rest})}'

    write_list(folder / "train_balanced_questions.json", "{", map(entry, range(943_000)), "}")


def write_vqav2(folder: Path, rng: random.Random) -> None:
    """444,000 questions about 82,783 pictures, and ten answers to each."""
    images = [rng.randrange(82_783) for _ in range(444_000)]
    answers = [{"answer": "net", "answer_confidence": "maybe", "answer_id": k} for k in range(1, 11)]

    def question(number: int) -> str:
        return json.dumps({"image_id": images[number], "question": f"What is thing {number}?", "question_id": number})

    def annotation(number: int) -> str:
        facts = {"question_type": "what is", "multiple_choice_answer": "net", "answer_type": "other"}
        return json.dumps({**facts, "answers": answers, "image_id": images[number], "question_id": number})

    name = folder / "v2_OpenEnded_mscoco_train2014_questions.json"
    write_list(name, '{"questions": [', map(question, range(444_000)), "]}")
    name = folder / "v2_mscoco_train2014_annotations.json"
    write_list(name, '{"annotations": [', map(annotation, range(444_000)), "]}")


def write_dvqa(folder: Path, rng: random.Random) -> None:
    """2,325,316 questions about 193,777 charts."""

    def entry(number: int) -> str:
        facts = {"question_id": number, "template_id": "reasoning", "answer": "yes", "answer_bbox": []}
        image = f"bar_train_{number // 12 + 1:08d}.png"
        return json.dumps({"question": f"Is bar {number} larger than 3?", "image": image, **facts})

    write_list(folder / "qa" / "train_qa.json", "[", map(entry, range(2_325_316)), "]")


def write_visual_genome(folder: Path, rng: random.Random) -> None:
    """108,077 pictures with 50 regions each."""

    def picture(number: int) -> str:
        url = f"https://cs.stanford.edu/people/rak248/VG_100K_2/{number}.jpg"
        return json.dumps({"width": 800, "url": url, "height": 600, "image_id": number, "coco_id": None})

    def entry(number: int) -> str:
        box = {"width": 82, "height": 139, "image_id": number, "y": 57, "x": 421}
        regions = [{**box, "region_id": 50 * number + k, "phrase": "the clock is green in colour"} for k in range(50)]
        return json.dumps({"regions": regions, "id": number})

    write_list(folder / "region_descriptions.json", "[", map(entry, range(1, 108_078)), "]")
    write_list(folder / "image_data.json", "[", map(picture, range(1, 108_078)), "]")


def write_refcoco(folder: Path, rng: random.Random) -> None:
    """50,000 objects with three phrases each, among 200,000 boxes."""
    refs = []
    for number in range(50_000):
        sentences = [
            {
                "tokens": ["the", "left", "dog"],
                "raw": f"The left dog {number}",
                "sent_id": 3 * number + k,
                "sent": "dog",
            }
            for k in range(3)
        ]
        facts = {"ann_id": number, "ref_id": number, "image_id": number // 3, "split": "train", "category_id": 18}
        refs.append({**facts, "sent_ids": [3 * number + k for k in range(3)], "sentences": sentences})
    images = [
        {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "width": 640, "height": 480} for n in range(20_000)
    ]
    box = {"bbox": [1.5, 2.5, 100.25, 200.75], "segmentation": [[1.25] * 60]}
    target = folder / "refcoco"
    target.mkdir(parents=True)
    (target / "refs(unc).p").write_bytes(pickle.dumps(refs, 0))
    with (target / "instances.json").open("w") as file:
        json.dump({"images": images, "annotations": [{**box, "id": n} for n in range(200_000)]}, file)


WRITERS: dict[str, Callable[[Path, random.Random], None]] = {
    "dvqa": write_dvqa,
    "gqa": write_gqa,
    "refcoco": write_refcoco,
    "visual_genome": write_visual_genome,
    "vqav2": write_vqav2,
}


def read_whole(folder: Path) -> list[Any]:
    """All files of a folder, loaded at once, which is the least that a reader without an index does."""
    loaded = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            loaded.append(json.loads(path.read_bytes()))
        elif path.is_file():
            loaded.append(pickle.loads(path.read_bytes()))
    return loaded


def measure(name: str, way: str, folder: Path) -> None:
    """Prints seconds and MB of one way of reading."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if way == "reader":
        for _ in CORPORA[name].read(folder):
            pass
    else:
        read_whole(folder)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))


def main(names: list[str]) -> None:
    if len(names) == 3 and names[1] in ("reader", "whole"):
        measure(names[0], names[1], Path(names[2]))
        return
    print("| corpus | file MB | reader MB | reader / whole file: memory | time |")
    print("|---|---|---|---|---|")
    for name in names or sorted(WRITERS):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            WRITERS[name](folder, random.Random(0))
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            figures = {}
            for way in ("reader", "whole"):
                command = [sys.executable, __file__, name, way, temporary]
                process = subprocess.run(command, capture_output=True, text=True, check=True)
                figures[way] = json.loads(process.stdout.splitlines()[-1])
        (seconds, memory), (whole_seconds, whole_memory) = figures["reader"], figures["whole"]
        ratios = f"{memory / whole_memory:.3f} | {seconds / whole_seconds:.1f}"
        print(f"| {name} | {size >> 20} | {memory:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
