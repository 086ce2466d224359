"""Small corpora of captions with the pictures in files: CC3M, CC12M, SBU, COCO, Flickr30K, nocaps, TextCaps."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.corpora.pictures import HEIGHT, WIDTH, picture
from tests.support.corpora.tables import write_file, write_json

SENTENCES = ("A man rides a horse.", "A person on a horse.", "Two dogs play in a park", "A plate of food .", "a cat")


def link(number: int) -> str:
    return f"http://static.example.com/12/{number}_b0f291.jpg"


def write_linked_pictures(folder: Path, numbers: Sequence[int]) -> None:
    """Pictures that are named after the CRC-32 of their links."""
    for number in numbers:
        write_file(folder / str(zlib.crc32(link(number).encode())), picture(number))


def write_cc3m(folder: Path) -> None:
    """The tables of both splits; the last row of training has no link."""
    for split, table, numbers in (
        ("training", "Train_GCC-training.tsv", range(4)),
        ("validation", "Validation_GCC-1.1.0-Validation.tsv", range(4, 6)),
    ):
        rows = [f"{SENTENCES[number % 5]}\t{link(number)}\n" for number in numbers]
        rows += ["a caption without a link\n"] if split == "training" else []
        write_file(folder / table, "".join(rows).encode())
        write_linked_pictures(folder / split, list(numbers))


def write_cc12m(folder: Path) -> None:
    """The table of links and captions, in which names are replaced."""
    captions = ("<PERSON> waves at the crowd", "view of the old town", 'a "quoted" caption')
    rows = [f"{link(number)}\t{caption}\n" for number, caption in enumerate(captions)]
    write_file(folder / "cc12m.tsv", "".join(rows).encode())
    write_linked_pictures(folder / "images", range(3))


def write_sbu(folder: Path) -> None:
    """The JSON of all captions."""
    table = {"image_urls": [link(n) for n in range(3)], "captions": list(SENTENCES[:3]), "user_ids": ["a", "b", "a"]}
    write_json(folder / "sbu-captions-all.json", table)
    for number in range(3):
        write_file(folder / "dataset" / link(number).rpartition("/")[2], picture(number))


def coco_table(numbers: Sequence[int], name: str = "{:012d}.jpg") -> dict[str, Any]:
    """An object in COCO's form; the captions of the pictures are mixed, and the last picture has none."""
    annotations = [
        {"image_id": number, "id": 10 * number + turn, "caption": SENTENCES[(number + turn) % 5]}
        for turn in range(2)
        for number in numbers[:-1]
    ]
    images = [
        {"license": 4, "file_name": name.format(n), "height": HEIGHT, "width": WIDTH, "id": n, "coco_url": link(n)}
        for n in numbers
    ]
    licenses = [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}]
    return {"info": {"year": 2017}, "images": images, "licenses": licenses, "annotations": annotations}


def write_coco_captions(folder: Path) -> None:
    """The splits of 2017 and of 2014, whose pictures have longer names."""
    for year, name in (("2017", "{:012d}.jpg"), ("2014", "COCO_{split}_{{:012d}}.jpg")):
        for split, numbers in ((f"train{year}", (9, 25, 30)), (f"val{year}", (139, 285))):
            names = name.format(split=split) if year == "2014" else name
            write_json(folder / "annotations" / f"captions_{split}.json", coco_table(numbers, names))
            for number in numbers:
                write_file(folder / split / names.format(number), picture(number))


def write_nocaps(folder: Path) -> None:
    """The validation split, whose file states no licences."""
    table = coco_table((0, 1, 2), "{:016x}.jpg")
    for image in table["images"]:
        image |= {"open_images_id": image["file_name"][:16], "domain": "near-domain"}
        write_file(folder / "images" / image["file_name"], picture(image["id"]))
    write_json(folder / "nocaps_val_4500_captions.json", {**table, "licenses": []})


def write_flickr30k(folder: Path) -> None:
    """The splits of Karpathy, and the file of captions as published."""
    images = []
    lines = []
    for number, split in enumerate(("train", "train", "val", "test")):
        name = f"{1000092795 + number}.jpg"
        texts = [SENTENCES[number], SENTENCES[number + 1]]
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": 2 * number + turn}
            for turn, text in enumerate(texts)
        ]
        images.append({"sentids": [], "imgid": number, "sentences": sentences, "split": split, "filename": name})
        lines += [f"{name}#{turn}\t{text}\n" for turn, text in enumerate(texts)]
        write_file(folder / "flickr30k-images" / name, picture(number))
    write_json(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    write_file(folder / "results_20130124.token", "".join(lines).encode())


def write_coco_karpathy(folder: Path) -> None:
    """A picture per split of Karpathy, all of them in the folders of 2014."""
    images = []
    for number, split in enumerate(("train", "restval", "val", "test")):
        part = "train2014" if split == "train" else "val2014"
        name = f"COCO_{part}_{number:012d}.jpg"
        sentences = [{"tokens": [], "raw": SENTENCES[number], "imgid": number, "sentid": number}]
        facts = {"filepath": part, "sentids": [number], "filename": name, "imgid": number, "split": split}
        images.append({**facts, "sentences": sentences, "cocoid": 391895 + number})
        write_file(folder / part / name, picture(number))
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


def write_textcaps(folder: Path) -> None:
    """Both splits; the captions of the pictures are mixed."""
    for split, numbers in (("train", (1, 2)), ("val", (3,))):
        data = []
        for turn in range(2):
            for number in numbers:
                name = f"{number:016x}"
                caption = f"Caption {turn} reads the sign of {number}"
                facts = {"image_id": name, "image_path": f"train/{name}.jpg", "set_name": split, "caption_str": caption}
                data.append({**facts, "image_width": WIDTH, "image_height": HEIGHT, "caption_id": 10 * number + turn})
                write_file(folder / "train_images" / f"{name}.jpg", picture(number))
        write_json(folder / f"TextCaps_0.1_{split}.json", {"dataset_type": split, "data": data})
