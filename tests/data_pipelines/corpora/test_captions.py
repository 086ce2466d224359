"""CC3M, CC12M, SBU, COCO, Flickr30K, nocaps and TextCaps: their rows, and what is wrong in them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import AbsentRow, FailedRow, Picture, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora import captions, web
from tests.support.corpora.captions import SENTENCES, link
from tests.support.corpora.pictures import HEIGHT, WIDTH, picture
from tests.support.corpora.tables import write_file, write_json


def pair(name: str, id_: str, path: Path, texts: tuple[str, ...], sized: bool = False, license_: str = "") -> RawPair:
    corpus = CORPORA[name]
    shown = Picture(path=str(path), width=WIDTH if sized else 0, height=HEIGHT if sized else 0)
    return RawPair(id_, name, license_ or corpus.license, corpus.language, (shown,), texts)


def read(name: str, folder: Path, split: str = "train") -> list[Row]:
    return list(CORPORA[name].read(folder, split))


def reasons(rows: list[Row]) -> list[str]:
    return [row.reason for row in rows if isinstance(row, FailedRow)]


def checksum(number: int) -> str:
    return str(zlib.crc32(link(number).encode()))


def test_cc3m(tmp_path: Path) -> None:
    captions.write_cc3m(tmp_path)
    assert read("cc3m", tmp_path) == [
        *(pair("cc3m", f"training/{n}", tmp_path / "training" / checksum(n), (SENTENCES[n],)) for n in range(4)),
        FailedRow("wrong form", "line 5 has 1 columns instead of 2"),
    ]
    assert read("cc3m", tmp_path, "val") == [
        pair("cc3m", f"validation/{n - 4}", tmp_path / "validation" / checksum(n), (SENTENCES[n % 5],)) for n in (4, 5)
    ]


def test_cc12m_keeps_its_tags_for_the_rules(tmp_path: Path) -> None:
    captions.write_cc12m(tmp_path)
    rows = read("cc12m", tmp_path)
    texts = ("<PERSON> waves at the crowd", "view of the old town", 'a "quoted" caption')
    expected = [pair("cc12m", str(n), tmp_path / "images" / checksum(n), (text,)) for n, text in enumerate(texts)]
    assert rows == expected
    table = tmp_path / "cc12m.tsv"
    table.write_text("url\tcaption\n" + table.read_text())  # the header that img2dataset wants
    assert [row.texts for row in read("cc12m", tmp_path) if isinstance(row, RawPair)] == [row.texts for row in expected]


def test_sbu_in_both_forms(tmp_path: Path) -> None:
    captions.write_sbu(tmp_path)
    expected = [pair("sbu", str(n), tmp_path / "dataset" / f"{n}_b0f291.jpg", (SENTENCES[n],)) for n in range(3)]
    assert read("sbu", tmp_path) == expected
    (tmp_path / "sbu-captions-all.json").unlink()
    links = tmp_path / "dataset" / "SBU_captioned_photo_dataset_urls.txt"
    texts = tmp_path / "dataset" / "SBU_captioned_photo_dataset_captions.txt"
    links.write_text("".join(f"{link(n)}\n" for n in range(3)))
    texts.write_text("".join(f"{SENTENCES[n]}\n" for n in range(3)))
    assert read("sbu", tmp_path) == expected
    texts.write_text(f"{SENTENCES[0]}\n\n{SENTENCES[2]}\none more\n")  # a blank caption moves no other
    rows = read("sbu", tmp_path)
    assert [row.texts[0] for row in rows if isinstance(row, RawPair)] == [SENTENCES[0], "", SENTENCES[2]]
    assert reasons(rows) == ["wrong form"]


@pytest.mark.parametrize("name", ["cc3m", "cc12m", "sbu"])
def test_downloads_of_img2dataset_are_read_instead(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "training" if name == "cc3m" else tmp_path
    write_file(tmp_path / "cc12m.tsv", b"a table without pictures")
    web.write_webdataset(folder, [web.facts(n, f"caption {n}", {}) for n in range(4)])
    rows = read(name, tmp_path)
    assert [row.texts for row in rows if isinstance(row, RawPair)] == [("caption 0",), ("caption 1",), ("caption 3",)]
    assert not reasons(rows) and AbsentRow("HTTP error 404") in rows
    corpus = CORPORA[name]
    [file] = corpus.layout.files(storage.path(tmp_path), next(iter(corpus.splits.values())))
    assert corpus.layout.cut and not corpus.layout.may_cut(file)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"http://a/\xff\tcaption\n", "not UTF-8"),
        (b"http://a\ta\tb\n", "wrong form"),
        (b"x" * (17 << 20) + b"\n", "line too long"),
    ],
)
def test_a_bad_line_costs_only_itself(line: bytes, reason: str, tmp_path: Path) -> None:
    captions.write_cc12m(tmp_path)
    whole = read("cc12m", tmp_path)
    table = tmp_path / "cc12m.tsv"
    first, rest = table.read_bytes().split(b"\n", 1)
    table.write_bytes(first + b"\n" + line + rest)
    rows = read("cc12m", tmp_path)
    assert rows[0] == whole[0] and reasons(rows) == [reason]
    assert [row.texts for row in rows[2:] if isinstance(row, RawPair)] == [row.texts for row in whole[1:]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "bad", ["http://a/..", "http://a/", "http://a/a\\b", "http://a/x\x00y", "http://a/" + "x" * 2000]
)
def test_a_link_whose_name_leads_elsewhere_is_refused(bad: str, tmp_path: Path) -> None:
    captions.write_sbu(tmp_path)
    write_json(tmp_path / "sbu-captions-all.json", {"image_urls": [bad, link(0)], "captions": ["a", "b"]})
    rows = read("sbu", tmp_path)
    assert reasons(rows) == ["refused name"] and len(rows) == 2


LICENSED = "CC-BY-4.0 (captions); picture: Attribution License"


def test_coco_brings_the_captions_of_a_picture_together(tmp_path: Path) -> None:
    captions.write_coco_captions(tmp_path)
    folder = tmp_path / "train2017"
    assert read("coco_captions", tmp_path) == [
        pair(
            "coco_captions",
            f"train2017/{number}",
            folder / f"{number:012d}.jpg",
            (SENTENCES[number % 5], SENTENCES[(number + 1) % 5]),
            sized=True,
            license_=LICENSED,
        )
        for number in (9, 25)
    ] + [FailedRow("no caption", "30")]
    [first, _] = read("coco_captions", tmp_path, "val2014")
    assert isinstance(first, RawPair)
    assert first.pictures[0].path == str(tmp_path / "val2014" / "COCO_val2014_000000000139.jpg")
    assert first.pictures[0].read() == picture(139)


def change(table: Any, bad: str) -> None:
    """Breaks one entry of an object in COCO's form."""
    if bad == "image":
        table["images"].insert(0, ["no object"])
    elif bad == "name":
        table["images"][0]["file_name"] = "../../etc/passwd"
    elif bad == "no id":
        del table["images"][0]["id"]
    elif bad == "twice":
        table["images"].insert(1, table["images"][0])
    elif bad == "caption":
        table["annotations"][0]["caption"] = {"text": "nested"}
    elif bad == "orphan":
        table["annotations"].append({"image_id": 777, "caption": "of nothing"})
    elif bad == "licences":
        table["licenses"] = "none"


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("image", ["wrong form", "no caption"]),
        ("name", ["refused name", "no caption"]),
        ("no id", ["missing value", "no caption", "caption of no picture"]),
        ("twice", ["repeated picture", "no caption"]),
        ("caption", ["no caption", "wrong type"]),
        ("orphan", ["no caption", "caption of no picture"]),
        ("licences", ["no caption"]),
    ],
)
def test_a_bad_entry_of_coco_costs_only_itself(bad: str, expected: list[str], tmp_path: Path) -> None:
    captions.write_coco_captions(tmp_path)
    path = tmp_path / "annotations" / "captions_train2017.json"
    table = json.loads(path.read_text())
    change(table, bad)
    path.write_text(json.dumps(table))
    rows = read("coco_captions", tmp_path)
    assert reasons(rows) == expected
    assert "train2017/25" in [row.id for row in rows if isinstance(row, RawPair)]


def test_another_file_of_coco_is_one_sentence_with_its_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations" / "captions_train2017.json", {"images": [], "questions": []})
    with pytest.raises(UserError, match="no list 'annotations'; it has 'images', 'questions'"):
        read("coco_captions", tmp_path)
    with pytest.raises(UserError, match=r"captions_val2017\.json does not exist"):
        read("coco_captions", tmp_path, "val")


def test_nocaps(tmp_path: Path) -> None:
    captions.write_nocaps(tmp_path)
    rows = read("nocaps", tmp_path, "val")
    texts = [(SENTENCES[n], SENTENCES[n + 1]) for n in range(2)]
    assert rows == [
        *(
            pair("nocaps", f"val/{n}", tmp_path / "images" / f"{n:016x}.jpg", text, sized=True)
            for n, text in enumerate(texts)
        ),
        FailedRow("no caption", "2"),
    ]


def test_flickr30k_in_both_forms(tmp_path: Path) -> None:
    captions.write_flickr30k(tmp_path)
    expected = []
    for n in range(4):
        path = tmp_path / "flickr30k-images" / f"{1000092795 + n}.jpg"
        expected.append(pair("flickr30k", path.name, path, (SENTENCES[n], SENTENCES[n + 1])))
    assert read("flickr30k", tmp_path) == expected[:2]
    assert read("flickr30k", tmp_path, "val") == expected[2:3]
    assert read("flickr30k", tmp_path, "test") == expected[3:]
    assert read("flickr30k", tmp_path, "all") == expected
    (tmp_path / "dataset_flickr30k.json").unlink()
    assert read("flickr30k", tmp_path, "all") == expected
    with pytest.raises(UserError, match=r"dataset_flickr30k\.json does not exist"):
        read("flickr30k", tmp_path, "test")


def test_bad_lines_of_flickr30k_cost_only_themselves(tmp_path: Path) -> None:
    captions.write_flickr30k(tmp_path)
    expected = read("flickr30k", tmp_path, "all")
    (tmp_path / "dataset_flickr30k.json").unlink()
    token = tmp_path / "results_20130124.token"
    token.write_bytes(b"no tab\n\xff#0\ta\n" + token.read_bytes() + b"1000092795.jpg#9\tonce more\n../a.jpg#0\tup\n")
    rows = read("flickr30k", tmp_path, "all")
    assert rows[2:6] == expected
    assert reasons(rows) == ["wrong form", "not UTF-8", "repeated picture", "refused name"]


def test_textcaps_brings_the_captions_of_a_picture_together(tmp_path: Path) -> None:
    captions.write_textcaps(tmp_path)
    assert read("textcaps", tmp_path) == [
        pair(
            "textcaps",
            f"train/{n:016x}",
            tmp_path / "train_images" / f"{n:016x}.jpg",
            (f"Caption 0 reads the sign of {n}", f"Caption 1 reads the sign of {n}"),
            sized=True,
        )
        for n in (1, 2)
    ]
    path = tmp_path / "TextCaps_0.1_val.json"
    table = json.loads(path.read_text())
    table["data"] += [{"image_id": "x"}, {"image_id": "../y", "caption_str": "up"}, None]
    path.write_text(json.dumps(table))
    assert reasons(read("textcaps", tmp_path, "val")) == ["refused name", "missing value", "wrong form"]
