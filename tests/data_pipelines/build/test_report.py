"""The page of an output: its numbers are the manifest's, it needs no other file, and hostile texts stay texts."""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from etils import epath
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from data_pipelines.clean.rule import Dropped, Verdict, rule
from data_pipelines.compose.composers import COMPOSERS
from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import RawPair
from data_pipelines.recipes.table import RECIPES
from data_pipelines.report import examples, histograms
from data_pipelines.report.__main__ import main
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.tokenizer import QwenTokenizer, packaged_qwen_vocabulary, parse_ranks
from qwenvl_jax.runtime import storage
from tests.support import small_corpus
from tests.support.corpora.table import FIXTURES

HOSTILE = (
    "<script>alert(1)</script>",
    "</p></article></main></style><img src=https://evil.example/x.png onerror=alert(1)>",
    "<iframe src='//evil.example'></iframe><link rel=stylesheet href=https://evil.example/a.css>",
    "\u202eright to left\u2066 isolated \u200b\u00ad\ufeff",
    "\x00\x08\x1b[31m control \x85\u2028\u2029",
    "é" + "\u0301" * 300,
    "x" * 100_000,
    '" onmouseover="alert(1)" x="',
)
HALF = "half a pair \ud83d"


def parsed(path: Path) -> LexborHTMLParser:
    return LexborHTMLParser(path.read_bytes().decode("utf-8"))  # a strict decoder


def text_of(document: LexborHTMLParser, selector: str) -> str:
    """The text of the first node."""
    return document.css(selector)[0].text()


def rows_of(document: LexborHTMLParser, section: str, number: int = 0) -> list[list[str]]:
    """The cells of a table of a section."""
    table = document.css(f"section#{section} table")[number]
    return [[cell.text() for cell in row.css("td")] for row in table.css("tbody tr")]


def addresses(document: LexborHTMLParser) -> Iterator[str]:
    """Every address from which a page could load something, or to which it leads."""
    for node in document.css("*"):
        for name, value in node.attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster", "background", "xlink:href", "formaction"):
                yield value or ""


def assert_needs_no_other_file(path: Path, *allowed: str) -> None:
    document = parsed(path)
    assert not document.css("script, link, iframe, img, object, embed, base, form, video, audio, meta[http-equiv]")
    for node in document.css("*"):
        assert not any(name.startswith("on") for name in node.attributes), node.html
    outside = {each for each in addresses(document) if not each.startswith(("#", "data:image/", "./"))}
    assert outside <= set(allowed)
    styles = "".join(node.text() for node in document.css("style"))
    assert not re.search(r"url\(|@import", styles)


def test_the_command_writes_the_same_page_as_the_build(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    (copy / "report.html").unlink()
    main([str(copy)])
    assert (copy / "report.html").read_bytes() == (built / "report.html").read_bytes()


def test_the_command_reads_and_writes_object_stores(built: Path, gcs: str) -> None:
    for name in storage.files_below(built):
        storage.write_bytes(f"{gcs}/data/small/{name}", (built / name).read_bytes() if name != "report.html" else b"")
    main([f"{gcs}/data/small"])
    assert storage.read_bytes(f"{gcs}/data/small/report.html") == (built / "report.html").read_bytes()
    main([f"{gcs}/data"])
    assert b'<a href="./small/report.html">' in storage.read_bytes(f"{gcs}/data/report.html")


def test_the_numbers_are_those_of_the_manifest(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    document = parsed(built / "report.html")
    share = f"{100 * manifest['kept'] / 1000:.1f}"
    assert rows_of(document, "table-2") == [["English", "small", "1,000", f"{manifest['kept']:,}", share]]
    for row, each in zip(rows_of(document, "rules"), manifest["rules"], strict=True):
        dropped = sum(each["dropped"].values())
        assert [row[0], *row[2:5]] == [each["rule"], *map(str, (each["seen"], each["rewritten"], dropped))]
    by_reason = {(row[0], row[1]): int(row[2]) for row in rows_of(document, "rules", 1)}
    assert by_reason == {(each["rule"], name): n for each in manifest["rules"] for name, n in each["dropped"].items()}
    failed = {row[0]: int(row[1]) for row in rows_of(document, "failed")}
    assert failed == manifest["failed"]["reasons"]
    shown = collections.Counter(row[0] for row in rows_of(document, "failed", 1))
    assert shown == dict.fromkeys(failed, 5)
    assert len(document.css("section#kept article")) == 36
    lines = (built / "examples" / "dropped.jsonl").read_text().splitlines()
    assert len(document.css("section#dropped article")) == len(lines)
    better = sum("evidence" in line and bool(json.loads(line)["evidence"]) for line in lines)
    assert document.html is not None and document.html.count("<b>kept instead:</b>") == better > 0
    files = [row[0] for row in rows_of(document, "shards", 1)]
    assert all((built / file).exists() for file in files) and len(files) > 2


def test_a_page_needs_no_other_file(built: Path) -> None:
    assert_needs_no_other_file(built / "report.html", small_corpus.CORPUS.home_page)


def drop_some(pair: RawPair) -> Verdict:
    reason = pair.texts[0][:12].replace("\ud83d", "?")
    return Dropped(f"<i>{reason}</i>") if pair.id.startswith("drop") else pair


def test_hostile_texts_stay_texts(run_small: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"id": f"{kind}{text}"[:90], "text": text} for text in (*HOSTILE, HALF) for kind in ("drop", "keep")]
    missing = [{"id": text[:90], "text": "words", "picture": f"pictures/{text[:60]}.png"} for text in HOSTILE]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, *missing)))
    manifest = run_small(folder, tmp_path / "output", recipe=(rule(drop_some), rule(small_corpus.opened)), across=())
    assert manifest["kept"] >= len(HOSTILE)
    path = tmp_path / "output" / "report.html"
    assert_needs_no_other_file(path, small_corpus.CORPUS.home_page)
    text = path.read_text()
    unseen = {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert unseen <= {"\n"}
    for number in ("202E", "2066", "200B", "0000", "001B", "D83D"):
        assert f"⟨U+{number}⟩" in text
    words = text_of(parsed(path), "main")
    assert "<script>alert(1)</script>" in words and 'onmouseover="alert(1)"' in words
    assert max(map(len, re.findall(r"x+", words))) <= 500
    main([str(tmp_path / "output")])
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["grit", "qwen_vl_dialogues", "visual_genome", "vqav2"])
def test_regions_are_drawn_within_their_pictures(name: str, run_small: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    FIXTURES[name](folder)
    corpus = CORPORA[name]
    composers = {task: COMPOSERS[task] for task in corpus.tasks}
    split = next(iter(corpus.splits))
    output = tmp_path / "output"
    run_small(folder, output, corpus=corpus, split=split, recipe=RECIPES[name], composers=composers, across=())
    assert_needs_no_other_file(output / "report.html", corpus.home_page)
    document = parsed(output / "report.html")
    drawn = 0
    for picture in document.css("section#kept svg"):
        _, _, width, height = map(float, (picture.attributes["viewBox"] or "").split())
        for polygon in picture.css("polygon.region"):
            corners = [tuple(map(float, pair.split(","))) for pair in (polygon.attributes["points"] or "").split()]
            assert len(corners) == 4
            assert all(0 <= x <= width and 0 <= y <= height for x, y in corners)
            drawn += 1
    chips = [chip.text() for chip in document.css("section#kept .chip")]
    assert drawn == len(chips) and bool(drawn) == (name != "vqav2")
    words = text_of(document, "section#kept")
    for line in (output / "examples" / "kept.jsonl").read_text().splitlines():
        assert json.loads(line)["id"][:60] in words


def jpeg(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_evidence_shows_both_pictures_and_the_distance() -> None:
    near = {"pair": "p", "evaluation": "flickr:7", "distance": 9, "picture": jpeg("red"), "evaluation_picture": "?"}
    head = {"rule": "not_in_evaluation", "reason": "near", "file": "f", "row": 3, "id": "p", "size": [40, 30]}
    example = {**head, "texts": ["words"], "thumbnail": jpeg("red"), "evidence": [near]}
    manifest = {"rules": [{"rule": "not_in_evaluation", "dropped": {"near": 70}}]}
    broken = LexborHTMLParser(examples.decontaminated([example], manifest))
    assert len(broken.css("image")) == 1  # a picture that cannot be decoded is left out
    near["evaluation_picture"] = jpeg("blue")
    document = LexborHTMLParser(examples.decontaminated([example], manifest))
    assert [node.text() for node in document.css("figcaption")] == ["evaluation picture", "picture"]
    words = text_of(document, "article")
    assert "distance: 9" in words and "evaluation: flickr:7" in words
    assert "1 of 70 pairs" in text_of(document, "section > p")
    colors = []
    for node in document.css("image"):
        encoded = (node.attributes["href"] or "").partition("base64,")[2]
        assert encoded not in (near["picture"], near["evaluation_picture"])  # encoded anew
        colors.append(Image.open(io.BytesIO(base64.b64decode(encoded))).getpixel((5, 5)))
    assert colors[0][2] > 200 > colors[1][2]  # type: ignore[index]


def test_a_vocabulary_counts_tokens(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    vocabulary = packaged_qwen_vocabulary()
    tokenizer = QwenTokenizer(parse_ranks(vocabulary.read_bytes(), vocabulary))
    manifest = json.loads((copy / "manifest.json").read_text())
    counted = histograms.count_tokens(epath.Path(copy), manifest, tokenizer)["text"]
    texts = [record.content["text"] for record in RecordReader(copy / "text")]  # type: ignore[typeddict-item]
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert counted.counts == np.histogram(lengths, [*counted.edges, 1 << 40])[0].tolist()
    assert counted.records == counted.of == 450
    assert "tokens per sample" not in (copy / "report.html").read_text()
    monkeypatch.setattr(histograms, "RECORDS_TOKENISED", 100)
    main([str(copy), f"--vocabulary={vocabulary}"])
    titles = [title.text() for title in parsed(copy / "report.html").css(".chart h3")]
    assert "tokens per sample, of 100 of 450 records, evenly spread" in titles and "tokens per sample" in titles


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()  # of builds before
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_folders_of_others_are_refused(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("empty", "nowhere", "file"):
        assert "is not an output" in refusal(capsys, str(tmp_path / name))
    shutil.copytree(built / "text", tmp_path / "records")
    assert "is not an output" in refusal(capsys, str(tmp_path / "records"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "records"]
    assert "FOLDER" in refusal(capsys)
    assert "--colour" in refusal(capsys, str(built), "--colour=red")


def test_files_that_were_changed_are_refused(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    assert "nowhere.model" in refusal(capsys, str(copy), "--vocabulary=nowhere.model")
    kept = copy / "examples" / "kept.jsonl"
    for damage in ("{}", "[1]", "{"):
        kept.write_text(f"{damage}\n")
        assert "line 1 of" in refusal(capsys, str(copy))
    kept.unlink()
    assert "kept.jsonl is not there" in refusal(capsys, str(copy))
    (copy / "manifest.json").write_text("{")
    assert "is not valid JSON" in refusal(capsys, str(copy))


def test_a_folder_of_outputs_gets_both_tables(
    built: Path, run_small: Callable[..., Any], small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(built, root / "first <b>")
    corpus = dataclasses.replace(small_corpus.CORPUS, name="cc12m", language="zh")
    run_small(small_folder, root / "cc12m", corpus=corpus, across=())
    (root / "other").mkdir()
    (root / "cc12m" / "report.html").unlink()
    main([str(root)])
    page = root / "report.html"
    assert_needs_no_other_file(page)
    document = parsed(page)
    manifests = [json.loads((root / name / "manifest.json").read_text()) for name in ("first <b>", "cc12m")]
    kept = [manifest["kept"] for manifest in manifests]
    rows = rows_of(document, "table-2")
    assert [row[:4] for row in rows] == [
        ["English", "small (first <b>)", "1,000", str(kept[0])],
        ["Chinese", "cc12m", "1,000", str(kept[1])],
        ["total", "", "2,000", f"{sum(kept):,}"],
    ]
    assert [row[5:] for row in rows] == [["", "", ""], ["12M", "8M", "66%"], ["5B", "1.4B", "28%"]]
    assert [row[4] for row in rows] == [f"{100 * each / 1000:.1f}" for each in (*kept, sum(kept) / 2)]
    samples = [sum(each["tasks"][task]["samples"] for each in manifests) for task in ("caption", "text")]
    by_task = rows_of(document, "table-3")
    assert [row[:3] for row in by_task[:2]] == [
        ["Captioning", "cc12m, small", str(samples[0])],
        ["Pure-text Autoregression", "cc12m, small", f"{samples[1]:,}"],
    ]
    assert by_task[-1][2] == f"{sum(samples):,}"
    (link,) = document.css("table a")  # the other output has no page
    assert (root / unquote(link.attributes["href"] or "")).exists()
    assert "needs one output" in refusal(capsys, str(root), "--vocabulary=x")
