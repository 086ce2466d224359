"""JSON and JSONL sources: the same examples as record files, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data import image
from qwenvl_jax.data.conversations import parse_conversation
from qwenvl_jax.data.examples import make_example
from qwenvl_jax.data.formats import Piece, chat_pieces
from qwenvl_jax.data.json_source import JsonReader
from qwenvl_jax.data.schema import TASKS, Example
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError

from .record_samples import encoded_image, make_record
from .source_files import bad_images, line_of, write_jsonl

CONVERSATION = [
    {"from": "user", "value": "Picture 1: <img>a.png</img>\nWhere is the dog?"},
    {"from": "assistant", "value": "<ref> The dog</ref><box>(1,20),(300,999)</box><box>(5,5),(9,9)</box> runs."},
    {"from": "user", "value": "Picture 2: <img>b.png</img>\nAnd <box>(7,8),(7,1000)</box>?"},
    {"from": "assistant", "value": "<ref>STOP</ref><quad>(1,1),(9,1),(9,5),(1,5)</quad>"},
]


def assert_same(a: Example, b: Example) -> None:
    for name in ("tokens_L", "is_target_L", "image_query_L", "images_IHWC"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert (a.task, a.source) == (b.task, b.source)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_lines_give_the_records_they_came_from(task: str, suffix: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    records = [make_record(task, k) for k in range(7)]
    lines = [line_of(record, tmp_path) for record in records]
    path = tmp_path / f"lines{suffix}"
    path.write_text(json.dumps(lines, indent=1)) if suffix == ".json" else write_jsonl(path, lines)
    reader = JsonReader(path, task)
    assert [reader[k] for k in range(len(reader))] == records
    for k in (6, 0):
        made = [make_example(record, "a", tokenizer, 4, 28) for record in (reader[k], records[k])]
        assert_same(*made)
    with pytest.raises(IndexError):
        reader[7]


def pieces_of(turns: list[dict[str, str]]) -> tuple[list[Piece], list[str]]:
    content, paths = parse_conversation(turns)
    return chat_pieces(content["turns"], sizes=content["sizes"]), paths


def written(pieces: list[Piece], paths: list[str]) -> str:
    """Pieces back to the text that they were parsed from."""
    return "".join(f"<img>{paths[int(p.value)]}</img>" if p.kind == "image" else str(p.value) for p in pieces)


def test_a_conversation_is_written_as_it_stands(tmp_path: Path) -> None:
    pieces, paths = pieces_of(CONVERSATION)
    expected = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + "".join(
        f"<|im_start|>{turn['from']}\n{turn['value']}<|im_end|>\n" for turn in CONVERSATION
    )
    assert written(pieces, paths) == expected.replace("1000", "999") and paths == ["a.png", "b.png"]
    special = [piece.value for piece in pieces if piece.kind == "special" and "im_" not in str(piece.value)]
    assert special[:6] == ["<ref>", "</ref>", "<box>", "</box>", "<box>", "</box>"]
    said = "".join(str(p.value) for p in pieces if p.supervised and p.kind == "text")
    assert " The dog(1,20),(300,999)(5,5),(9,9) runs." in said and "Where" not in said


def test_a_conversation_equals_the_dialogue_record(tokenizer: Tokenizer, tmp_path: Path) -> None:
    record = make_record("dialogue", 3)
    line = line_of(record, tmp_path)
    answer = "<ref>A dog</ref><box>(35,35),(321,321)</box>"  # of [1, 1, 9, 9] in 28 x 28 pixels
    conversations = [
        {"from": "user", "value": f"Picture 1: <img>{line['images'][0]}</img>\nWhat is this?"},
        {"from": "assistant", "value": record.content["turns"][1]["parts"][0]["text"]},
        {"from": "user", "value": f"Picture 2: <img>{tmp_path / line['images'][1]}</img>\nAnd this?"},
        {"from": "assistant", "value": answer},
    ]
    reader = JsonReader(write_jsonl(tmp_path / "chat.jsonl", [{"id": 5, "conversations": conversations}]), "dialogue")
    assert reader[0].id == "5"
    assert_same(*(make_example(found, "a", tokenizer, 4, 28) for found in (reader[0], record)))


TEXTS = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(0, 999)


@st.composite
def values(draw: st.DrawFn) -> str:
    """A turn of text, references, boxes and pictures in any order."""
    parts = []
    for kind in draw(st.lists(st.sampled_from(["text", "ref", "box", "img"]), max_size=6)):
        if kind == "text":
            parts.append(draw(TEXTS))
        elif kind == "box":
            x, y = sorted((draw(NUMBERS), draw(NUMBERS))), sorted((draw(NUMBERS), draw(NUMBERS)))
            parts.append(f"<box>({x[0]},{y[0]}),({x[1]},{y[1]})</box>")
        else:
            inside = draw(TEXTS) if kind == "ref" else draw(st.sampled_from(["a.png", "图/b.jpg"]))
            parts.append(f"<{kind}>{inside}</{kind}>")
    return "".join(parts)


@settings(max_examples=60, deadline=None)
@given(st.lists(values(), min_size=1, max_size=3))
def test_any_conversation_comes_out_as_it_went_in(said: list[str]) -> None:
    turns = [{"from": ("user", "assistant")[k % 2], "value": value} for k, value in enumerate(said)]
    pieces, paths = pieces_of(turns)
    whole = "".join(f"<|im_start|>{turn['from']}\n{turn['value']}<|im_end|>\n" for turn in turns)
    assert written(pieces, paths).endswith(whole)


def test_a_first_turn_of_the_assistant_is_dropped() -> None:
    first = {"from": "assistant", "value": "<img>lost.png</img>Hello"}
    assert pieces_of([first, *CONVERSATION]) == pieces_of(CONVERSATION)
    assert parse_conversation(list(CONVERSATION[2:]))[1] == ["b.png"]


def turn(value: str, role: str = "user") -> dict[str, Any]:
    """A conversation of this turn, answered if it is the user's."""
    answer = [{"from": "assistant", "value": "Yes."}] * (role == "user")
    return {"conversations": [{"from": role, "value": value}, *answer]}


SIZE = {"width": 28, "height": 28}


@pytest.mark.parametrize(
    ("task", "value", "what"),
    [
        ("dialogue", turn("<img>a.png"), "<img> is not closed"),
        ("dialogue", turn("<img>a.png</ref>"), "<img> is not closed"),
        ("dialogue", turn("the <ref>dog<box>(1,1),(2,2)</box></ref>"), "<ref> is not closed"),
        ("dialogue", turn("a <box>(1,1),(2,2)"), "<box> is not closed"),
        ("dialogue", turn("a </box>"), "</box> closes nothing"),
        ("dialogue", turn("<box>(1,1),(2,2),(3,3)</box>"), "is not of the form"),
        ("dialogue", turn("<box>(1,1),(2,1001)</box>"), "whole numbers from 0 to 1000"),
        ("dialogue", turn("<box>(-1,1),(2,10)</box>"), "whole numbers from 0 to 1000"),
        ("dialogue", turn("<box>(0.1,0.1),(0.2,0.5)</box>"), "whole numbers from 0 to 1000"),
        ("dialogue", turn("<box>(5,1),(2,10)</box>"), "inverted"),
        ("dialogue", turn("<img>none.png</img>"), "none.png does not exist"),
        ("dialogue", turn("<img>https://x.org/a.png</img>"), "download it"),
        ("dialogue", turn("hi", "human"), "from 'human'; use 'user' or 'assistant'"),
        ("dialogue", turn("hi", "assistant"), "at least one turn of the user"),
        ("dialogue", {"conversations": [{"from": "user", "text": "hi"}]}, 'needs the texts "from" and "value"'),
        ("dialogue", {"conversations": "hi"}, "must be a list"),
        ("dialogue", {"conversation": []}, "'conversation' is unknown for task 'dialogue'; did you mean 'conversat"),
        ("caption", turn("hi"), "is of task 'dialogue', but the source is for 'caption'"),
        ("caption", {"image": "a.png", "captoin": "a"}, "'captoin' is unknown .* did you mean 'caption'"),
        ("caption", {"image": "a.png"}, "lacks caption"),
        ("caption", {"image": "a.png", "caption": 5}, "'caption' must be a text"),
        ("caption", {"image": "a.png", "images": [], "caption": "a"}, "keep one"),
        ("caption", {"image": ["a.png"], "caption": "a"}, '"image" must be a path'),
        ("caption", {"caption": "a"}, "has 0 images instead of one"),
        ("caption", {"image": "a.png", "caption": "a", "language": "fr"}, "language 'fr' has no prompt"),
        ("caption", {"image": "a.png", "caption": "\ud800"}, "not readable JSON"),
        ("caption", {"image": "", "caption": "a"}, '"image" must be a path'),
        ("vqa", {"task": "vaq", "image": "a.png", "question": "a", "answer": "b"}, "'vaq' is unknown; did you mean"),
        ("vqa", {"task": "caption", "image": "a.png", "caption": "a"}, "task 'caption', but the source is for 'vqa'"),
        ("ref_grounding", {"image": "a.png", "phrase": "a", "box": [0, 0, 29, 9], **SIZE}, "outside its image"),
        ("ref_grounding", {"image": "a.png", "phrase": "a", "box": [0, 0, "9", 9], **SIZE}, "finite numbers, not '9'"),
        ("grounding", {"image": "a.png", "segments": ["a"], **SIZE}, "'segments' must list objects, not a text"),
        ("dialogue", {"conversations": turn("hi")["conversations"][:1]}, "no turn is the assistant's"),
        (
            "dialogue",
            {"conversations": [*turn("hi")["conversations"][:1], {"from": "assistant", "value": " "}]},
            "nothing",
        ),
        ("caption", [1], "not a JSON object"),
    ],
)
def test_mistakes_name_file_and_line(task: str, value: Any, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded_image(0))
    good = line_of(make_record(task, 0), tmp_path)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(good) + "\n\n" + json.dumps(value) + "\n")
    with pytest.raises(UserError, match=rf"broken\.jsonl, line 3: .*{what}"):
        JsonReader(broken, task)
    listed = tmp_path / "broken.json"
    listed.write_text("[\n" + json.dumps(good) + ",\n\n" + json.dumps(value) + "]")
    with pytest.raises(UserError, match=rf"broken\.json, line 4: .*{what}"):
        JsonReader(listed, task)


@pytest.mark.parametrize(
    ("name", "payload", "what"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "a"\n', "line 2: this is not readable JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: this is not readable JSON"),
        ("a.jsonl", b'{"text": "\xed\xa0\x80"}', "line 1: this is not readable JSON"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16-le"), "line 1: this is not readable JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: this is not readable JSON"),
        ("a.jsonl", b"\n \n", "holds no samples"),
        ("a.json", b"[]", "holds no samples"),
        ("a.json", b"", r"line 1: this is not readable JSON \(no \[\)"),
        ("a.json", b'\n{"text": "a"}', r"line 2: this is not readable JSON \(no \[\)"),
        ("a.json", b'[{"text": "a"},\n{"text" "a"}]', "line 2: this is not readable JSON"),
        ("a.json", b'[{"text": "a"}\n{"text": "a"}]', "line 2: this is not readable JSON"),
        ("a.json", b'[{"text": "a"},\n', "line 2: this is not readable JSON"),
        ("a.json", b'[{"text": "a"}] 5', "text after the list"),
        ("a.json", b'[\n{"text": "\xff"}]', "line 2: this is not UTF-8"),
        ("a.json", b"[" * 100_000, "line 1: this is not readable JSON"),
    ],
)
def test_files_that_cannot_be_read(name: str, payload: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(UserError, match=what):
        JsonReader(tmp_path / name, "text")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        JsonReader(tmp_path / "none.jsonl", "text")


def test_bad_images_are_left_to_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They open and are read like others; decoding refuses them, which the loader counts."""
    monkeypatch.setattr(image, "MAX_BYTES", 2000)
    bad = {**bad_images(), "long": encoded_image(3, 60, 60)}
    assert len(bad["long"]) > 2000
    for name, payload in bad.items():
        (tmp_path / f"{name}.png").write_bytes(payload)
    reader = JsonReader(
        write_jsonl(tmp_path / "a.jsonl", [{"image": f"{n}.png", "caption": "a"} for n in bad]), "caption"
    )
    for k in range(len(reader)):
        [payload] = reader[k].images
        with pytest.raises(UserError, match="image"):
            image.decode_image(payload)
    (tmp_path / "bomb.png").unlink()
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: the image .*bomb\.png cannot be read"):
        reader[3]
