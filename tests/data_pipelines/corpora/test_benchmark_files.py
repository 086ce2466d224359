"""The rows of benchmarks that are only asked: multiple choices, yes or no, examinations, hidden boxes, videos."""

from __future__ import annotations

import csv
import io
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.corpora.delimited import table_rows
from data_pipelines.corpora.rows import BadRow
from data_pipelines.corpora.table import CORPORA
from data_pipelines.corpora.video_frames import frame_indices, read_frames
from data_pipelines.pair import Answer, FailedRow, Picture, Question, RawPair, Row
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.support.corpora import benchmarks
from tests.support.corpora.pictures import picture
from tests.support.corpora.table import FIXTURES
from tests.support.corpora.tables import write_file, write_json


def read(name: str, split: str, folder: Path) -> tuple[list[RawPair], list[str]]:
    """The pairs of a split, and the reasons of its failed rows."""
    if not any(folder.iterdir()):
        FIXTURES[name](folder)
    rows: list[Row] = list(CORPORA[name].read(folder, split))
    pairs = [row for row in rows if isinstance(row, RawPair)]
    return pairs, [row.reason for row in rows if isinstance(row, FailedRow)]


def facts(question: Question) -> tuple[str, str, int, str, str]:
    return question.id, question.group, question.right, question.hint, question.category


def test_mmbench_brings_rotations_together(tmp_path: Path) -> None:
    pairs, failures = read("mmbench", "dev", tmp_path)
    assert failures == ["missing value", "question without an answer"]
    assert [pair.id for pair in pairs] == ["241", "253"]
    first, second = (pair.questions for pair in pairs)
    assert [facts(question) for question in first] == [
        ("241", "241", 0, "", "object_localization"),
        ("1000241", "241", 1, "", "object_localization"),
    ]
    assert first[0].text == 'Which "part" is\nleft?' and first[0].choices == ("cat", "dog")
    assert first[1].choices == ("dog", "cat") and first[1].answers == (Answer("cat"),)
    assert facts(second[0]) == ("253", "253", 2, "Count\tthem.", "object_localization")
    assert [pair.pictures[0].encoded for pair in pairs] == [picture(1), picture(2)]
    assert read("mmbench", "dev_cn", tmp_path)[0][0].language == "zh"
    hidden, _ = read("mmbench", "test", tmp_path)
    assert [(question.right, question.answers) for pair in hidden for question in pair.questions] == [(-1, ())] * 2


def test_mmbench_takes_a_picture_from_the_row_that_has_it(tmp_path: Path) -> None:
    columns = ("index", "question", "A", "B", "answer", "image")
    rows = [(7, "Q?", "a", "b", "A", "x"), (8, "R?", "a", "b", "B", "7"), (7, "S?", "a", "b", "B", "!")]
    rows[0] = (*rows[0][:5], benchmarks.in_base64(4))
    write_file(tmp_path / "mmbench_dev_20230712.tsv", benchmarks.table(columns, rows, "\t"))
    pairs, _ = read("mmbench", "dev", tmp_path)
    assert [pair.pictures[0].encoded for pair in pairs] == [picture(4)] * 2


def test_touchstone(tmp_path: Path) -> None:
    pairs, failures = read("touchstone", "en", tmp_path)
    assert failures == ["missing value"]
    assert [pair.language for pair in pairs] == ["en", "en"]
    (question,) = pairs[0].questions
    assert facts(question) == ("0", "", -1, "Two colours.", "desc,basic")
    assert (question.text, question.answers) == ("Describe it.", (Answer("It has\ttwo colours.\nThey differ."),))
    assert pairs[0].pictures == (Picture(picture(1)),)
    assert read("touchstone", "zh", tmp_path)[0][0].language == "zh"


def test_mmlu_keeps_texts_that_pandas_takes_for_missing(tmp_path: Path) -> None:
    pairs, failures = read("mmlu", "test", tmp_path)
    assert failures == ["wrong form", "question without an answer"] * 2
    assert [pair.id for pair in pairs[:3]] == ["abstract_algebra/0", "abstract_algebra/1", "high_school_us_history/0"]
    (question,) = pairs[0].questions
    assert question.text == 'What is "NA", in\nchemistry?'
    assert question.choices == ("None", "Sodium", "NA", "nan")
    assert (question.right, question.category, pairs[0].pictures) == (1, "abstract_algebra", ())
    assert pairs[1].questions[0].choices[3] == "4.0"


def test_cmmlu_and_ceval(tmp_path: Path) -> None:
    (tmp_path / "cmmlu").mkdir()
    (tmp_path / "ceval").mkdir()
    pairs, failures = read("cmmlu", "test", tmp_path / "cmmlu")
    assert failures == [] and [pair.id for pair in pairs] == ["agronomy/0", "agronomy/1", "anatomy/0", "anatomy/1"]
    assert pairs[0].questions[0].answers == (Answer("土地"),) and pairs[0].language == "zh"
    for split, right in (("dev", 2), ("val", 2), ("test", -1)):
        pairs, failures = read("ceval", split, tmp_path / "ceval")
        assert failures == [] and len(pairs) == 3
        assert {pair.questions[0].right for pair in pairs} == {right}
        assert {pair.questions[0].category for pair in pairs} == {"advanced_mathematics"}


def test_mme_in_both_forms(tmp_path: Path) -> None:
    pairs, failures = read("mme", "test", tmp_path)
    assert failures == ["wrong form"]
    names = ["existence/000000006040.jpg", "existence/000000007795.jpg", "code_reasoning/0020.png"]
    assert [pair.id for pair in pairs] == names
    yes, no = pairs[0].questions
    assert facts(yes) == (f"{names[0]}#0", names[0], -1, "", "existence")
    assert (yes.text, yes.answers) == ("Is there a dog? Please answer yes or no.", (Answer("Yes"),))
    assert (no.id, no.group, no.answers) == (f"{names[0]}#1", names[0], (Answer("No"),))
    assert Path(pairs[2].pictures[0].path).parts[-3:] == ("code_reasoning", "images", "0020.png")


def test_scienceqa_with_and_without_pictures(tmp_path: Path) -> None:
    pairs, failures = read("scienceqa", "test", tmp_path)
    assert failures == ["question without an answer"]
    (pair,) = pairs
    assert (pair.id, pair.pictures) == ("21", (Picture(path=f"{tmp_path}/images/test/21/image.png"),))
    (question,) = pair.questions
    assert facts(question) == ("21", "", 0, "The map shows states.", "social science")
    assert question.answers == (Answer("West Virginia"),)
    (text,), _ = read("scienceqa", "test_text", tmp_path)
    assert (text.id, text.pictures) == ("22", ())


def test_scienceqa_in_the_lines_of_qwen_vl(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "scienceqa"
    folder.mkdir(parents=True)
    row = {"question": "Q?", "choices": ["a", "b"], "answer": 1, "hint": ""}
    rows = [{**row, "image": "data/scienceqa/images/1.png"}, {**row, "image": "2.png", "question_id": 7}, {**row}]
    write_file(folder / "scienceqa_test_img.jsonl", benchmarks.jsonl(rows))
    write_file(folder / "images" / "1.png", picture(1, "PNG"))
    pairs, failures = read("scienceqa", "test", folder)
    assert failures == ["missing value"]
    assert [(pair.id, pair.pictures[0].path) for pair in pairs] == [
        ("1", f"{folder}/images/1.png"),
        ("7", f"{folder}/2.png"),
    ]


def test_seed_bench_asks_about_pictures_and_frames(tmp_path: Path) -> None:
    pairs, failures = read("seed_bench", "image", tmp_path)
    assert failures == ["question without an answer"]
    assert [[question.id for question in pair.questions] for pair in pairs] == [["101669", "101671"], ["101670"]]
    assert [question.category for question in pairs[0].questions] == ["Instances Counting", "Scene Understanding"]
    assert pairs[0].questions[0].answers == (Answer("Two"),)
    for split, count in (("video", 4), ("video_8", 8)):
        videos, _ = read("seed_bench", split, tmp_path)
        names = [[Path(each.path).name for each in pair.pictures] for pair in videos]
        assert names == [[f"{n}_{frame}.jpg" for frame in range(count)] for n in (30055, 30056)]
    whole, failures = read("seed_bench", "test", tmp_path)
    assert whole == [*pairs, *read("seed_bench", "video", tmp_path)[0]]
    assert failures == ["question without an answer"]


def test_grit_refexp_has_no_boxes(tmp_path: Path) -> None:
    pairs, failures = read("grit_refexp", "test", tmp_path)
    assert failures == ["missing value"]
    phrases = [[(region.id, region.phrase, region.boxes) for region in pair.regions] for pair in pairs]
    assert phrases == [[("refexp_0", "the dog", ()), ("refexp_2", "a cat", ())], [("refexp_1", "left", ())]]


# Videos


def test_frames_are_those_of_the_released_script() -> None:
    assert frame_indices(9, 4) == [1, 3, 5, 7]  # segments of 2
    assert frame_indices(10, 4) == [1, 3, 5, 8]  # of 2.25; 4.5 is rounded to 4
    assert frame_indices(3, 4) == [0, 1, 2]
    assert frame_indices(4, 4) == [0, 1, 2, 2]  # of 0.75; 1.5 and 2.25 are rounded to 2
    assert frame_indices(0, 4) == []


@given(st.integers(1, 10_000), st.integers(1, 16))
def test_frames_are_in_order_and_in_the_stretch(frames: int, count: int) -> None:
    indices = frame_indices(frames, count)
    assert len(indices) == min(frames, count) and indices == sorted(indices)
    assert indices[0] >= 0 and indices[-1] < frames


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames at 10 per second; frame n has the brightness 10 n."""
    path = tmp_path_factory.mktemp("video") / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))  # type: ignore[attr-defined]
    for number in range(20):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    return path


def numbers(frames: list[bytes]) -> list[int]:
    return [round(float(np.asarray(Image.open(io.BytesIO(frame))).mean()) / 10) for frame in frames]


def test_frames_of_a_video(video: Path) -> None:
    assert numbers(read_frames(str(video), 4)) == [2, 6, 11, 16]  # of 19: the script leaves out the last one
    assert numbers(read_frames(str(video), 4, (0.5, 1.5))) == [6, 8, 10, 13]  # frames 5 to 14
    assert numbers(read_frames(str(video), 4, (5, 9), in_frames=True)) == [5, 6, 7, 7]
    assert numbers(read_frames(str(video), 4, (18, 99), in_frames=True)) == [18, 19]
    for segment in ((3, 3), (50, 60)):
        with pytest.raises(BadRow, match="video unreadable"):
            read_frames(str(video), 4, segment, in_frames=True)
    with pytest.raises(BadRow, match="video unreadable"):
        read_frames(str(video.parent / "b.avi"), 4)


def test_seed_bench_takes_frames_from_a_video(video: Path, tmp_path: Path) -> None:
    """One video is there, one is damaged, one is missing: all three questions stay."""
    questions = [
        benchmarks.seed_question(1, 12, "/a.avi", segment=[5, 9]),
        benchmarks.seed_question(2, 11, "P04/b.MP4", segment=[0.5, 1.5]),
        benchmarks.seed_question(3, 10, "/c.webm"),
    ]
    write_json(tmp_path / "SEED-Bench.json", {"questions": questions})
    write_file(tmp_path / "BreakfastII_15fps_qvga_sync" / "a.avi", video.read_bytes())
    write_file(tmp_path / "EPIC-KITCHENS" / "b.MP4", b"no video")
    pairs, failures = read("seed_bench", "video", tmp_path)
    assert failures == []
    assert numbers([each.encoded for each in pairs[0].pictures]) == [5, 6, 7, 7]
    assert [pair.pictures for pair in pairs[1:]] == [(Picture(),)] * 2
    assert [pair.questions[0].category for pair in pairs] == ["12", "11", "10"]


# Tables


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(deadline=None)
@given(st.lists(st.lists(VALUES, min_size=2, max_size=2), max_size=5), st.sampled_from([",", "\t"]))
def test_tables_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], separator: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    path.write_text(text.getvalue(), newline="")
    expected = [{"a": row[0], "b": row[1]} for row in rows]
    assert [row for _, row in table_rows(storage.path(path), separator)] == expected


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("mmbench", "dev", "mmbench_dev_20230712.tsv"),
        ("touchstone", "en", "touchstone_20230831.tsv"),
        ("mmlu", "test", "data/test/abstract_algebra_test.csv"),
        ("ceval", "test", "test/advanced_mathematics_test.csv"),
        ("mme", "test", "MME_Benchmark_release_version/existence/000000006040.txt"),
        ("scienceqa", "test", "problems.json"),
        ("scienceqa", "test", "pid_splits.json"),
        ("seed_bench", "image", "SEED-Bench.json"),
        ("seed_bench", "video", "SEED-Bench.json"),
        ("grit_refexp", "test", "GRIT/samples/test/refexp.json"),
    ],
)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damage_costs_rows_and_never_the_run(
    name: str, split: str, file: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"damaged_{name}_{zlib.crc32(file.encode())}"
    if not folder.exists():
        FIXTURES[name](folder)
    path = folder / file
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = min(len(whole), start + data.draw(st.integers(0, 30)))
    put = data.draw(st.sampled_from([b"", b'"', b"\t", b",", b"\n", b"\r", b"\0", b"\xff", b"null", b"-1", b"../../x"]))
    try:
        path.write_bytes(whole[:start] + put + whole[end:])
        rows: list[Any] = list(CORPORA[name].read(folder, split))
    except (UserError, StorageError) as error:
        assert "\n" not in str(error)
        return
    finally:
        path.write_bytes(whole)
    for row in rows:
        if isinstance(row, FailedRow):
            assert len(row.reason) < 40
            row.detail.encode()
            continue
        row.id.encode()
        for each in row.pictures:
            assert not each.path or Path(each.path).is_relative_to(folder)
        for question in row.questions:
            assert question.text.strip() and question.id and question.right < max(1, len(question.choices))


def test_a_table_of_another_corpus_is_refused_in_one_sentence(tmp_path: Path) -> None:
    write_file(tmp_path / "mmbench_dev_20230712.tsv", b"url\tcaption\nx\ty\n")
    with pytest.raises(UserError, match=r"has no column 'index'; it has 'url', 'caption'. Is it the file of another"):
        read("mmbench", "dev", tmp_path)
