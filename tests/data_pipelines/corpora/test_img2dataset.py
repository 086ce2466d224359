"""The three formats of img2dataset, row by row, and what is wrong in them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines.corpora.table import CORPORA
from data_pipelines.pair import AbsentRow, FailedRow, Picture, RawPair, Row
from qwenvl_jax.runtime.errors import UserError
from tests.support.corpora import web
from tests.support.corpora.pictures import HEIGHT, WIDTH, picture
from tests.support.corpora.tables import write_parquet, write_tar

GOLDEN = Path(__file__).parents[2] / "golden" / "img2dataset"
LICENSE = CORPORA["laion_en"].license


def read(name: str, folder: Path) -> list[Row]:
    return list(CORPORA[name].read(folder))


def reasons(rows: list[Row]) -> list[str]:
    return [row.reason for row in rows if isinstance(row, FailedRow)]


def pairs(rows: list[Row]) -> list[RawPair]:
    return [row for row in rows if isinstance(row, RawPair)]


def laion_rows(picture_of: Any) -> dict[int, RawPair]:
    """The pairs of LAION's fixture by number, with pictures by `picture_of`."""
    texts = ("a red fox in the snow", "Blue mug &amp; saucer <b>SALE</b>", "", "An old oak tree")
    return {
        number: RawPair(
            id=f"{number // 4:05d}/{number // 4:05d}{number % 4:04d}",
            source="laion_en",
            license="cc-by-nc" if number == 3 else LICENSE,
            language="en",
            pictures=(picture_of(number),),
            texts=(texts[number % 4],),
            scores={
                "similarity": 0.25 + number / 100,
                "punsafe": 0.01 * number,
                "original_width": 10 * WIDTH,
                "original_height": 10 * HEIGHT,
                **({} if number == 1 else {"pwatermark": 0.1}),
            },
        )
        for number in (0, 1, 3, 4, 6)
    }


ABSENT = AbsentRow("HTTP error 404")


def inside(number: int) -> Picture:
    return Picture(picture(number), width=WIDTH, height=HEIGHT)


def test_tars_give_their_samples_then_the_failed_downloads_of_their_table(tmp_path: Path) -> None:
    web.write_laion_en(tmp_path)
    expected = laion_rows(inside)
    expected[6] = RawPair(**{**vars(expected[6]), "texts": ("Sunset over the bay 😀",)})
    assert read("laion_en", tmp_path) == [
        *(expected[0], expected[1], expected[3], ABSENT),
        *(expected[4], expected[6], ABSENT),
    ]


@pytest.mark.parametrize("write", [web.write_files, web.write_inside])
def test_the_other_formats_give_the_same_rows_in_the_order_of_the_table(write: Any, tmp_path: Path) -> None:
    rows = [web.facts(n, f"caption {n}", web.laion(n)) for n in range(4)]
    write(tmp_path / "other", rows)
    web.write_webdataset(tmp_path / "tars", rows)
    other = read("laion_en", tmp_path / "other")
    assert other[2] == ABSENT
    for one, two in zip(pairs(other), pairs(read("laion_en", tmp_path / "tars")), strict=True):
        [shown] = one.pictures
        assert shown.read() == two.pictures[0].encoded
        assert bool(shown.path) == (write == web.write_files)
        assert (shown.width, shown.height) == (WIDTH, HEIGHT)
        assert {**vars(one), "pictures": ()} == {**vars(two), "pictures": ()}


def test_the_generated_captions_of_laion_coco_come_best_first(tmp_path: Path) -> None:
    web.write_laion_coco(tmp_path)
    first = pairs(read("laion_coco", tmp_path))[0]
    assert first.texts == ("number 0 on a wall", "a photo of number 0")
    assert first.scores["top_similarity"] == 0.31
    assert first.scores["similarity"] == 0.25


def test_scores_that_only_the_table_has_are_joined_by_key(tmp_path: Path) -> None:
    web.write_datacomp(tmp_path)
    rows = pairs(read("datacomp", tmp_path))
    assert [row.id for row in rows] == [f"shards/small/00000/00000000{n}" for n in (0, 1, 3)]
    assert [row.scores["clip_l14_similarity_score"] for row in rows] == pytest.approx([0.1, 0.2, 0.4])
    assert [row.language for row in rows] == [""] * 3


def test_the_language_that_a_row_states_wins(tmp_path: Path) -> None:
    rows = [web.facts(n, "caption", {"LANGUAGE": language}) for n, language in enumerate(["zh", "de", "zh", None])]
    web.write_webdataset(tmp_path, rows)
    assert [row.language for row in pairs(read("laion_zh", tmp_path))] == ["zh", "de", "zh"]


def test_a_tar_without_a_table_is_read(tmp_path: Path) -> None:
    web.write_laion_en(tmp_path)
    whole = read("laion_en", tmp_path)
    for table in tmp_path.glob("*.parquet"):
        table.unlink()
    assert read("laion_en", tmp_path) == pairs(whole)


def test_two_joined_tars_are_read_and_a_key_counts_once(tmp_path: Path) -> None:
    rows = [web.facts(n, f"caption {n}", {}) for n in (0, 1)]
    first = write_tar(tmp_path / "a", web.tar_members(0, rows[0])).read_bytes()
    second = write_tar(tmp_path / "b", web.tar_members(1, rows[1])).read_bytes()
    (tmp_path / "c.tar").write_bytes(first + second + first)
    rows_read = read("laion_en", tmp_path)
    assert [row.texts for row in pairs(rows_read)] == [("caption 0",), ("caption 1",)]
    assert reasons(rows_read) == ["repeated key"]


def test_a_cut_tar_keeps_the_rows_before_and_names_the_rows_that_are_lost(tmp_path: Path) -> None:
    web.write_laion_en(tmp_path)
    whole = read("laion_en", tmp_path)
    path = tmp_path / "00000.tar"
    with tarfile.open(path) as archive:
        member = archive.getmember("000000001.json")
    path.write_bytes(path.read_bytes()[: member.offset + 10])
    rows = read("laion_en", tmp_path)
    assert rows[0] == whole[0]
    assert isinstance(rows[1], RawPair) and rows[1].texts == whole[1].texts  # type: ignore[union-attr]
    assert rows[2:5] == [
        FailedRow("file damaged", "00000.tar"),
        ABSENT,
        FailedRow("missing in the tar", "000000003"),
    ]
    assert rows[5:] == whole[4:]


def test_members_that_could_harm_are_refused(tmp_path: Path) -> None:
    good = web.tar_members(0, web.facts(0, "caption", {}))
    path = tmp_path / "00000.tar"
    write_tar(path, [("/etc/passwd.jpg", b"x"), ("../../up.jpg", b"x"), *good])
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            archive.addfile(member)
    rows = read("laion_en", tmp_path)
    assert len(pairs(rows)) == 1
    assert reasons(rows) == ["refused name"] * 5
    assert [row.detail for row in rows if isinstance(row, FailedRow)][:2] == ["/etc/passwd.jpg", "../../up.jpg"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("0.txt", b"no picture")], "no picture"),
        ([("0.jpg", b"x")], "no caption"),
        ([("0.jpg", b"x"), ("0.json", b'{"width": 5}')], "no caption"),
        ([("0.jpg", b"x"), ("0.json", b'{"caption": 5}')], "wrong type"),
        ([("0.jpg", b"x"), ("0.json", b'{"caption": "a"')], "not JSON"),
        ([("0.jpg", b"x"), ("0.json", b'["caption"]')], "wrong form"),
        ([("0.jpg", b"x"), ("0.json", b"[" * 100_000)], "not JSON"),
        ([("0.jpg", b"x"), ("0.txt", b"\xff\xfe")], "not UTF-8"),
        ([("0.jpg", b"x"), ("0.txt", b"a" * (1 << 20) + b"a")], "text too long"),
        ([("0.jpg", b"x"), ("0.jpg", b"y"), ("0.txt", b"a")], "repeated member"),
        ([("0.jpg", b"x"), ("0.txt", b"a"), ("0.b.jpg", b"y"), ("0.b.txt", b"b")], "unknown member"),
    ],
)
def test_a_bad_sample_costs_only_itself(members: list[tuple[str, bytes]], reason: str, tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar", [("00.jpg", b"x"), ("00.txt", b"first"), *members, ("1.jpg", b"x"), ("1.txt", b"last")]
    )
    rows = read("laion_en", tmp_path)
    assert reasons(rows) == [reason]
    kept = [pair.texts for pair in pairs(rows)]
    assert kept[0] == ("first",) and kept[-1] == ("last",)


def test_texts_are_as_the_corpus_has_them(tmp_path: Path) -> None:
    texts = ["  padded \n", "", "tab\there\u202e\x07", "\ufeffmark"]
    for number, text in enumerate(texts):
        write_tar(tmp_path / f"{number}.tar", [("0.jpg", b"x"), ("0.txt", text.encode())])
    write_tar(tmp_path / "9.tar", [("0.jpg", b"x"), ("0.json", b'{"caption": "half \\ud83d"}')])
    read_texts = [pair.texts[0] for pair in pairs(read("laion_en", tmp_path))]
    assert read_texts == [*texts[:3], "mark", "half \ud83d"]


@pytest.mark.parametrize("write", [web.write_webdataset, web.write_files, web.write_inside])
def test_a_caption_that_is_null_is_an_empty_text(write: Any, tmp_path: Path) -> None:
    write(tmp_path, [{**web.facts(n, "", {}), "caption": None if n else "caption"} for n in range(2)])
    assert [pair.texts for pair in pairs(read("laion_en", tmp_path))] == [("caption",), ("",)]


def test_a_table_of_links_alone_is_refused_with_its_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "part-00000.parquet", [{"URL": "https://a", "TEXT": "a", "similarity": 0.3}])
    with pytest.raises(UserError, match=r"no column jpg or .*URL \(string\), TEXT \(string\), similarity \(double\)"):
        read("laion_en", tmp_path)


def test_a_column_of_another_type_is_refused_in_one_sentence(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", [{"jpg": b"x", "txt": "a", "similarity": "high"}])
    with pytest.raises(UserError, match=r"'similarity' .* does not hold a number; its columns are jpg \(binary\)"):
        read("laion_en", tmp_path)


def test_pictures_of_the_datasets_library_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", [{"image": {"bytes": picture(1), "path": "a.jpg"}, "caption": "a"}] * 2)
    rows = pairs(read("laion_en", tmp_path))
    assert [row.pictures[0].encoded for row in rows] == [picture(1)] * 2
    assert [row.id for row in rows] == ["0/000000000", "0/000000001"]


def test_a_missing_picture_and_a_missing_key_fail_alone(tmp_path: Path) -> None:
    web.write_files(tmp_path, [web.facts(n, "caption", {}) for n in (0, 1, 3)])
    (tmp_path / "00000" / "000000000.jpg").unlink()
    assert reasons(read("laion_en", tmp_path)) == ["picture missing"]


def test_scores_that_are_not_finite_numbers_are_left_out(tmp_path: Path) -> None:
    notes = {
        "caption": "a",
        "similarity": float("inf"),
        "punsafe": None,
        "pwatermark": True,
        "width": -3,
        "height": 1.5,
    }
    write_tar(tmp_path / "0.tar", [("0.jpg", b"x"), ("0.json", json.dumps(notes).encode())])
    [row] = pairs(read("laion_en", tmp_path))
    assert row.scores == {}
    assert (row.pictures[0].width, row.pictures[0].height) == (0, 0)


def test_a_file_that_is_not_a_tar_is_one_failed_row(tmp_path: Path) -> None:
    web.write_laion_en(tmp_path)
    whole = read("laion_en", tmp_path)
    (tmp_path / "00001.tar").write_bytes(b"<html>404</html>" * 100)
    (tmp_path / "00001.parquet").write_bytes(b"PAR1 no")
    rows = read("laion_en", tmp_path)
    assert rows[:4] == whole[:4]
    assert reasons(rows[4:]) == ["file damaged", "file damaged"] and len(rows) == 6


def test_captions_of_your_own_need_no_table(tmp_path: Path) -> None:
    web.write_image_text(tmp_path)
    rows = pairs(read("image_text", tmp_path))
    assert [row.id for row in rows] == [f"pairs-000/{n:04d}" for n in range(3)]
    assert rows[1].texts == ("蓝色的杯子和碟子",)
    assert rows[1].pictures == (Picture(picture(1, "PNG")),)
    assert rows[1].language == "" and rows[1].scores == {}


@pytest.mark.parametrize("kind", ["webdataset", "files", "parquet"])
def test_shards_that_img2dataset_wrote(kind: str) -> None:
    """One shard with columns of LAION, by img2dataset 1.47.0: a null, a dead link, a score that is NaN."""
    rows = read("laion_en", GOLDEN / kind)
    assert not reasons(rows) and sum(isinstance(row, AbsentRow) for row in rows) == 1
    scores = {"similarity": 0.3, "pwatermark": 0.1, "punsafe": 0.01, "original_width": 40, "original_height": 30}
    kept = {pair.id: pair for pair in pairs(rows)}  # the downloader's threads decide on the order in a tar
    assert sorted(kept) == [f"00000/00000{n}" for n in (0, 1, 3)]
    first, second, last = (kept[key] for key in sorted(kept))
    assert (first.texts, second.texts, last.texts) == (("",), ("caption 1 é",), ("caption 3 é",))
    assert dict(first.scores) == scores
    assert "pwatermark" not in second.scores and last.scores["similarity"] == pytest.approx(0.33)
    for pair in kept.values():
        [shown] = pair.pictures
        assert Image.open(io.BytesIO(shown.read())).size == (shown.width, shown.height)


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        ("failed_to_download", "HTTP Error 410: Gone", "HTTP error 410"),
        ("failed_to_download", "<urlopen error _ssl.c:1112: The handshake operation timed out>", "timed out"),
        ("failed_to_download", "<urlopen error [Errno -2] Name or service not known>", "download failed"),
        ("failed_to_download", None, "download failed"),
        ("failed_to_resize", "Image decoding error", "not a picture that img2dataset can read"),
        ("HTTP Error 404", "x" * 5000, "download failed"),
    ],
)
def test_downloads_that_failed_have_few_reasons(status: str, message: str | None, reason: str, tmp_path: Path) -> None:
    rows = [{**web.facts(0, "caption", {}), "status": status, "error_message": message}, web.facts(1, "caption", {})]
    web.write_inside(tmp_path, rows)
    assert read("laion_en", tmp_path)[0] == AbsentRow(reason)
