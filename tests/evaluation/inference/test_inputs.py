"""The pictures and prompts that a user names."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_jax.evaluation.inference.answer_file import ROWS, SETTINGS, UNFINISHED, AnswerFile
from qwenvl_jax.evaluation.inference.inputs import Input, key_of, read_inputs
from qwenvl_jax.evaluation.inference.run import boxes_of, pieces_of
from qwenvl_jax.runtime.errors import UserError
from tests.evaluation.samples import grey


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures in folders; the working directory."""
    for name in ("a.jpg", "b.JPG", "notes.md", ".hidden.jpg", "x/c.jpg", "x/y/d.jpg", "x/y/e.png", "[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids(*named: str) -> list[str]:
    return [each.id for each in read_inputs(named, ["What?"]).asked]


@pytest.mark.parametrize(
    "pattern", ["*.jpg", "**/*.jpg", "x/*", "x/**", "?.jpg", "*/y/*.png", "x/**/[de].*", "./x/c.*"]
)
def test_patterns_are_those_of_a_shell(album: Path, pattern: str) -> None:
    expected = sorted(os.path.normpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    assert sorted(os.path.normpath(path) for path in ids(pattern)) == expected
    absolute = sorted(path for path in glob.glob(f"{album}/{pattern}", recursive=True) if os.path.isfile(path))
    assert sorted(map(os.path.normpath, ids(f"{album}/{pattern}"))) == [os.path.normpath(path) for path in absolute]


def test_a_folder_has_its_pictures_and_a_name_with_brackets_is_a_name(album: Path) -> None:
    assert ids("x") == ["x/c.jpg", "x/y/d.jpg", "x/y/e.png"]
    assert ids("[1].jpg") == ["[1].jpg"]
    assert ids("b.JPG", "a.jpg") == ["b.JPG", "a.jpg"]


@pytest.mark.parametrize(
    "named,message",
    [
        (["*.webp"], r"no picture matches '\*.webp'"),
        (["gone.jpg"], "gone.jpg does not exist"),
        (["empty"], "no picture matches 'empty'"),
        (["empty.txt"], "no picture matches"),
        ([], "--images is missing"),
        (["s3://bucket/*.jpg"], "only local paths and gs://"),
    ],
)
def test_what_names_no_picture_is_refused(album: Path, named: list[str], message: str) -> None:
    (album / "empty").mkdir()
    (album / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=message):
        read_inputs(named, ["What?"])


def test_no_picture_is_asked_twice(album: Path) -> None:
    inputs = read_inputs(["*.jpg", "a.jpg", "a.jpg"], ["What?", "Where?"])
    assert [each.id for each in inputs.asked] == ["[1].jpg", "[1].jpg", "a.jpg", "a.jpg"]
    assert inputs.repeated == 4
    assert len({each.key for each in inputs.asked}) == 4


def test_lists_name_pictures_from_their_folder(album: Path) -> None:
    """Equal names in two folders are two pictures."""
    lines = b"c.jpg\r\n\ny/d.jpg\n\xff\xfe\n/gone.jpg\nhttps://example.org/a.jpg\n~/a.jpg\ngs://bucket/a.jpg\n"
    for name in ("x/list.txt", "list.txt", "x/y/list.txt"):
        (album / name).write_bytes(lines)
    asked = read_inputs(["x/list.txt"], ["What?"]).asked
    assert [each.id for each in asked] == [
        "x/c.jpg", "x/y/d.jpg", "line 4 of list.txt", "/gone.jpg", "https://example.org/a.jpg", "~/a.jpg",
        "gs://bucket/a.jpg",
    ]  # fmt: skip
    assert [each.why for each in asked if each.why] == ["this line is not UTF-8"]
    assert ids("list.txt")[:2] == ["c.jpg", "y/d.jpg"]
    assert ids(f"{album}/x/y/list.txt")[0] == f"{album}/x/y/c.jpg"
    both = read_inputs(["x/list.txt", "x/y/list.txt"], ["What?"])
    assert len(both.asked) == 9 and both.repeated == 5


def test_json_lines(album: Path) -> None:
    rows: list[Any] = [
        {"image": "a.jpg"},
        {"image": "a.jpg", "prompt": "Why?", "id": 7, "more": [1]},
        {"images": ["a.jpg", "b.JPG"], "id": "two"},
        {"prompt": "No picture"},
        {"image": 3}, {"images": [""]}, {"image": "a.jpg", "prompt": 5}, {"image": "a.jpg", "id": True},
        {"image": "a.jpg", "prompt": "<img>b.JPG</img>?"}, [1], {"images": [], "prompt": ""},
    ]  # fmt: skip
    (album / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"image": "a.j\n')
    asked = read_inputs(["rows.jsonl"], ["What?", "Who?"]).asked
    good = [(each.id, each.images, each.prompt) for each in asked if not each.why]
    assert good == [
        ("a.jpg", ("a.jpg",), "What?"),
        ("a.jpg", ("a.jpg",), "Who?"),
        ("7", ("a.jpg",), "Why?"),
        ("two", ("a.jpg", "b.JPG"), "What?"),
        ("two", ("a.jpg", "b.JPG"), "Who?"),
        ("line 4 of rows.jsonl", (), "No picture"),
    ]
    bad = {each.id: each.why for each in asked if each.why}
    assert set(bad) == {f"line {number} of rows.jsonl" for number in range(5, 13)}
    assert "image tag" in bad["line 9 of rows.jsonl"] and "not a JSON object" in bad["line 12 of rows.jsonl"]


@given(st.binary(max_size=200))
def test_any_bytes_are_lines_or_reasons(tmp_path_factory: pytest.TempPathFactory, payload: bytes) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_bytes(payload)
    try:
        inputs = read_inputs([str(path)], ["What?"])
    except UserError as error:
        assert "no picture matches" in str(error)
        return
    assert all(each.why or each.prompt for each in inputs.asked)


def test_a_prompt_is_needed_and_names_no_pictures(album: Path) -> None:
    with pytest.raises(UserError, match="there is no prompt"):
        read_inputs(["*.jpg"], [])
    with pytest.raises(UserError, match="image tag"):
        read_inputs(["*.jpg"], ["<img>a.jpg</img>What?"])


def test_tags_of_a_prompt_are_special_tokens() -> None:
    pieces = pieces_of("<ref>a dog</ref><box>", 2, chat=False)
    assert [(piece.kind, piece.value) for piece in pieces] == [
        ("image", 0), ("image", 1),
        ("special", "<ref>"), ("text", "a dog"), ("special", "</ref>"), ("special", "<box>"),
    ]  # fmt: skip
    chat = pieces_of("Where?", 1, chat=True)
    text = "".join(str(piece.value) if piece.kind != "image" else "<img/>" for piece in chat)
    assert text.endswith("<|im_start|>user\nPicture 1: <img/>\nWhere?<|im_end|>\n<|im_start|>assistant\n")


def test_boxes_are_pixels_and_the_prompt_may_open_one() -> None:
    answer = "<ref>it</ref><box>(100,200),(500,1000)</box> and <box>(1,2),(3,x)</box>"
    assert boxes_of("Where?", answer, [(200, 50)]) == [{"ref": "it", "image": 0, "box": [20.0, 10.0, 100.0, 50.0]}]
    opened = boxes_of("<ref>a dog</ref><box>", "(0,0),(333,500)</box>", [(9, 9), (100, 10)])
    assert opened == [{"ref": "a dog", "image": 1, "box": [0.0, 0.0, 33.3, 5.0]}]
    (box,) = boxes_of("In Picture 1 find it:<box>", "(0,0),(333,500)", [(100, 10), (9, 9)])
    assert box == {"ref": "", "image": 0, "box": [0.0, 0.0, 33.3, 5.0]}


def row_of(number: int, answer: str | None = "yes") -> dict[str, Any]:
    return {"id": f"é{number}\u2028", "images": [f"{number}.jpg"], "prompt": "What?", "answer": answer, "boxes": []}


def test_rows_survive_a_kill_at_any_byte(tmp_path: Path) -> None:
    """Whatever part of the unfinished file is there, whole lines count and the rest is asked again."""
    with AnswerFile(tmp_path / "whole", {"prompt": "What?"}) as answers:
        for number in range(3):
            answers.add(row_of(number))
        payload = (tmp_path / "whole" / UNFINISHED).read_bytes()
    for size in range(len(payload) + 1):
        folder = tmp_path / f"cut{size}"
        folder.mkdir()
        (folder / UNFINISHED).write_bytes(payload[:size])
        with AnswerFile(folder, {"prompt": "What?"}) as answers:
            complete = payload[:size].count(b"\n")
            assert complete <= len(answers.rows) <= complete + 1  # a line may lack its line feed alone
            for number in range(3):
                if key_of(f"é{number}\u2028", [f"{number}.jpg"], "What?") not in answers.rows:
                    answers.add(row_of(number))
            answers.finish(Input(f"é{number}\u2028", (f"{number}.jpg",), "What?").key for number in range(3))
        assert [json.loads(line) for line in (folder / ROWS).read_text().split("\n")[:-1]] == list(
            map(row_of, range(3))
        )
        assert not (folder / UNFINISHED).exists()


def test_rows_without_an_answer_are_tried_again_and_other_rows_are_kept(tmp_path: Path) -> None:
    with AnswerFile(tmp_path, {}) as answers:
        rows = [row_of(0), row_of(1, None)]
        for row in rows:
            answers.add(row)
        answers.finish(key_of(row["id"], row["images"], row["prompt"]) for row in rows)
    with AnswerFile(tmp_path, {}) as answers:
        assert [row["id"] for row in answers.rows.values()] == ["é0\u2028"]
        answers.add(row_of(2))
        answers.finish([key_of("é2\u2028", ["2.jpg"], "What?")])
    text = (tmp_path / ROWS).read_text()
    assert [json.loads(line)["id"] for line in text.split("\n")[:-1]] == ["é2\u2028", "é0\u2028"]


def test_answers_under_other_settings_are_refused(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "a", {"checkpoint": "1", "prompt": ["What?"]}) as answers:
        answers.add(row_of(0))
    with pytest.raises(UserError, match=r"another prompt \(\['What\?'\], not \['Why\?'\]\); name another --output"):
        AnswerFile(tmp_path / "a", {"checkpoint": "1", "prompt": ["Why?"]})
    with pytest.raises(UserError, match="another checkpoint"):
        AnswerFile(tmp_path / "a", {"checkpoint": "2", "prompt": ["What?"]})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ROWS).write_text("{}")
    with pytest.raises(UserError, match="another origin"):
        AnswerFile(tmp_path / "b", {})
    assert not (tmp_path / "b" / SETTINGS).exists()
