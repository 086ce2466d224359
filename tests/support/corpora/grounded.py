"""Small RefCOCO folders, with their pickles as Python 2 wrote them, and GRIT as img2dataset leaves it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from tests.support.corpora.annotated import COCO, write_pictures
from tests.support.corpora.pictures import HEIGHT, WIDTH, picture
from tests.support.corpora.tables import write_file, write_json, write_parquet, write_tar
from tests.support.corpora.web import facts

Json = dict[str, Any]
SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "refcoco": {"unc": ("train", "val", "testA", "testB"), "google": ("train", "val", "test")},
    "refcoco+": {"unc": ("train", "val", "testA", "testB")},
    "refcocog": {"umd": ("train", "val", "test"), "google": ("train", "val")},
}


def ref(number: int, split: str, annotation: int, *sentences: str) -> Json:
    """One object with its phrases, as the UNC and Google files have it."""
    image = 9 if annotation < 20 else 25
    return {
        "sent_ids": [10 * number + k for k in range(len(sentences))],
        "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
        "ann_id": annotation,
        "ref_id": number,
        "image_id": image,
        "split": split,
        "sentences": [
            {"tokens": text.split(), "raw": text.title(), "sent_id": 10 * number + k, "sent": text}
            for k, text in enumerate(sentences)
        ],
        "category_id": 18,
    }


def refs(splits: tuple[str, ...]) -> list[Json]:
    """Two pictures per split, a phrase without words, and an object without a box."""
    rows = []
    for number, split in enumerate(splits):
        rows.append(ref(10 * number, split, 21, "the left dog", "dog on left"))
        rows.append(ref(10 * number + 1, split, 11, "caf\u00e9 sign", " "))
        rows.append(ref(10 * number + 2, split, 22, "the right dog"))
        rows.append(ref(10 * number + 3, split, 77, "nothing"))
    return rows


def instances() -> Json:
    """The pictures and boxes, of which one is malformed."""
    return {
        "info": {"description": "a subset of MS COCO"},
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 1}
            for number, name in zip((9, 25), COCO, strict=True)
        ],
        "annotations": [
            {"id": 11, "bbox": [1, 2, 10, 8.5], "image_id": 9, "category_id": 18, "segmentation": [[1, 2, 3, 4]]},
            {"id": 21, "bbox": [0, 0, 12, 16], "image_id": 25, "category_id": 18},
            {"id": 22, "bbox": [12, 0, 12.4, 16], "image_id": 25, "category_id": 18},
            {"id": 23, "bbox": None, "image_id": 25, "category_id": 18},
        ],
    }


def write_refer(folder: Path, name: str) -> None:
    """One of the three data sets in the layout of the refer repository."""
    write_pictures(folder / "images" / "mscoco" / "images" / "train2014", COCO)
    write_json(folder / name / "instances.json", instances())
    for author, splits in SPLITS[name].items():
        write_file(folder / name / f"refs({author}).p", python2_pickle(refs(splits)))


def write_refcoco(folder: Path) -> None:
    write_refer(folder, "refcoco")


def write_refcoco_plus(folder: Path) -> None:
    write_refer(folder, "refcoco+")


def write_refcocog(folder: Path) -> None:
    write_refer(folder, "refcocog")


def python2_pickle(value: Any) -> bytes:
    """A pickle of protocol 0 whose texts are the byte strings of Python 2 (opcode S), as in the published files."""
    return _written(value).encode("latin-1") + b"."


def _written(value: Any) -> str:
    if isinstance(value, str):
        escaped = "".join(f"\\x{byte:02x}" if byte > 126 else chr(byte) for byte in value.encode())
        return f"S'{escaped}'\n"
    if isinstance(value, list):
        return "(l" + "".join(f"{_written(item)}a" for item in value)
    if isinstance(value, dict):
        return "(d" + "".join(f"{_written(key)}{_written(item)}s" for key, item in value.items())
    return pickle.dumps(value, 0)[:-1].decode("latin-1")


def write_mdetr(folder: Path) -> None:
    """The JSON edition of RefCOCO: one entry of `images` per phrase."""
    write_pictures(folder / "train2014", COCO)
    images = []
    annotations = []
    for number, (image, text) in enumerate(((0, "the left dog"), (1, "a sign"), (0, "dog on left"))):
        facts_ = {
            "file_name": COCO[image],
            "height": HEIGHT,
            "width": WIDTH,
            "original_id": 9,
            "dataset_name": "refcoco",
        }
        images.append({**facts_, "id": number, "caption": text})
        annotations.append({"area": 192.0, "bbox": [2 * number, 0, 12, 16], "image_id": number, "id": number})
    write_json(
        folder / "mdetr_annotations" / "finetune_refcoco_train.json", {"images": images, "annotations": annotations}
    )


# GRIT: the caption of the data set's card is about bees; this one has nested spans, equal boxes and two boxes.
GRIT_CAPTION = "A caf\u00e9 \U0001f600 with two dogs in front of a red house"


def chunk(phrase: str, x1: float, y1: float, x2: float, y2: float, score: float = 0.9) -> list[float]:
    """An entry of `noun_chunks` or `ref_exps` for a phrase of GRIT_CAPTION."""
    start = GRIT_CAPTION.index(phrase)
    return [float(start), float(start + len(phrase)), x1, y1, x2, y2, score]


def grit_row(number: int) -> Json:
    """The row of a table; every third download failed."""
    nouns = [
        chunk("two dogs", 0.0, 0.5, 0.25, 1.0, 0.8),
        chunk("two dogs", 0.5, 0.5, 0.75, 1.0, 0.7),
        chunk("a red house", 0.125, 0.0, 1.0, 0.75),
    ]
    expressions = [
        chunk(GRIT_CAPTION, 0.0, 0.0, 1.02, 1.0, 0.6),
        chunk("two dogs in front of a red house", 0.0, 0.5, 0.25, 1.0, 0.8),
        [40.0, 90.0, 0.1, 0.1, 0.2, 0.2, 0.5],
    ]
    extra = {"id": 1795296605919 + number, "clip_similarity_vitb32": 0.353, "clip_similarity_vitl14": 0.296}
    return facts(number, GRIT_CAPTION, {**extra, "noun_chunks": nouns, "ref_exps": expressions})


def write_grit(folder: Path) -> None:
    """A tar with two pictures, and a table with one inside."""
    rows = [grit_row(number) for number in range(3)]
    members = []
    for number, row in enumerate(rows[:2]):
        members += [(f"{row['key']}.jpg", picture(number)), (f"{row['key']}.json", json.dumps(row).encode())]
        members.append((f"{row['key']}.txt", row["caption"].encode()))
    write_tar(folder / "00000.tar", members)
    write_parquet(folder / "00000.parquet", rows)


def write_grit_table(folder: Path) -> None:
    """The format parquet of img2dataset, with a row without regions and one with a malformed box."""
    rows = [{**grit_row(number), "jpg": picture(number), "txt": GRIT_CAPTION} for number in (0, 1, 3)]
    rows[1] |= {"noun_chunks": [], "ref_exps": []}
    rows[2]["ref_exps"] = [[0.0, 5.5, 0.0, 0.0, 1.0, 1.0, 0.5]]
    write_parquet(folder / "00000.parquet", rows)
