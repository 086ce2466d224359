"""JSON and JSONL sources: the same examples as record files, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.examples import Example, Tokens, decode_images, make_example
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.readers import json_files
from qwenvl_jax.data.readers.conversations import parse_conversation, prompt_parts
from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.schema import TRAINING_TASKS
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import StorageError, UserError
from tests.data.record_samples import content as content_of
from tests.data.record_samples import encoded_image, make_record
from tests.data.source_files import SIZE, bad_images, line_of, turn, write_jsonl

CONVERSATION = [
    {"from": "user", "value": "Picture 1: <img>a.png</img>\nWhere is the dog?"},
    {"from": "assistant", "value": "<ref> The dog</ref><box>(1,20),(300,999)</box><box>(5,5),(9,9)</box> runs."},
    {"from": "user", "value": "Picture 2: <img>b.png</img>\nAnd <box>(7,8),(7,1000)</box>?"},
    {"from": "assistant", "value": "<ref>STOP</ref><quad>(1,1),(9,1),(9,5),(1,5)</quad>"},
]


def assert_same(a: Example, b: Example) -> None:
    for name, array_a, array_b in zip(Tokens._fields, a.tokens, b.tokens, strict=True):
        np.testing.assert_array_equal(array_a, array_b, err_msg=name)
    np.testing.assert_array_equal(decode_images(a.images, 28), decode_images(b.images, 28))
    assert a.source == b.source


@pytest.mark.parametrize("task", TRAINING_TASKS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_lines_give_the_records_they_came_from(task: str, suffix: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    records = [make_record(task, k) for k in range(7)]
    lines = [line_of(record, tmp_path) for record in records]
    path = tmp_path / f"lines{suffix}"
    path.write_text(json.dumps(lines, indent=1)) if suffix == ".json" else write_jsonl(path, lines)
    reader = JsonReader(path, task)
    assert [reader[k] for k in range(len(reader))] == records
    for k in (6, 0):
        made = [make_example(record, 0, tokenizer, 4) for record in (reader[k], records[k])]
        assert_same(*made)
    with pytest.raises(IndexError):
        reader[7]


def pieces_of(turns: list[dict[str, str]]) -> tuple[list[Piece], list[str]]:
    content, paths = parse_conversation(turns)
    return chat_pieces(content["turns"], system=content["system"], sizes=content["sizes"]), paths


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
        {"from": "assistant", "value": content_of(record)["turns"][1]["parts"][0]["text"]},
        {"from": "user", "value": f"Picture 2: <img>{tmp_path / line['images'][1]}</img>\nAnd this?"},
        {"from": "assistant", "value": answer},
    ]
    reader = JsonReader(write_jsonl(tmp_path / "chat.jsonl", [{"id": 5, "conversations": conversations}]), "dialogue")
    assert reader[0].id == "5"
    assert_same(*(make_example(each, 0, tokenizer, 4) for each in (reader[0], record)))


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
    turns = [{"from": ("user", "assistant")[k % 2], "value": value} for k, value in enumerate([*said, "a", "b"])]
    pieces, paths = pieces_of(turns)
    whole = "".join(f"<|im_start|>{turn['from']}\n{turn['value']}<|im_end|>\n" for turn in turns)
    assert written(pieces, paths).endswith(whole)


def test_a_first_turn_of_the_assistant_is_dropped() -> None:
    first = {"from": "assistant", "value": "<img>lost.png</img>Hello</ref>"}
    assert pieces_of([first, *CONVERSATION]) == pieces_of(CONVERSATION)
    assert parse_conversation(list(CONVERSATION[2:]))[1] == ["b.png"]


def parts(part: dict[str, Any]) -> dict[str, Any]:
    """A dialogue about one picture whose user says `part`."""
    turns = [{"role": "user", "parts": [part]}, {"role": "assistant", "parts": [{"text": "Yes."}]}]
    return {"image": "a.png", "turns": turns, "sizes": [[28, 28]]}


@pytest.mark.parametrize(
    ("task", "value", "what"),
    [
        ("dialogue", turn("<img>a.png"), "<img> is not closed"),
        ("dialogue", turn("<img>a.png</ref>"), "<img> is not closed"),
        ("dialogue", turn("the <ref>dog<box>(1,1),(2,2)</box></ref>"), "<ref> is not closed"),
        ("dialogue", turn("a <box>(1,1),(2,2)"), "<box> is not closed"),
        ("dialogue", turn("a </box>"), "</box> closes nothing"),
        ("dialogue", turn("<box>(1,1),(2,2),(3,3)</box>"), "is not a region"),
        ("dialogue", turn("<box>(1,1),(2,1001)</box>"), "whole numbers from 0 to 1000"),
        ("dialogue", turn("<box>(-1,1),(2,10)</box>"), "whole numbers from 0 to 1000"),
        ("dialogue", turn("<box>(0.1,0.1),(0.2,0.5)</box>"), "whole numbers from 0 to 1000"),
        ("dialogue", turn("<box>(5,1),(2,10)</box>"), "inverted"),
        ("dialogue", turn("<img>none.png</img>"), "none.png does not exist"),
        ("dialogue", turn("<img>https://x.org/a.png</img>"), "download it"),
        ("dialogue", turn("hi", "usr"), "from 'usr'; use 'user' or 'assistant'; did you mean 'user'"),
        ("dialogue", turn("hi", "assistant"), "needs a turn of the user first"),
        ("dialogue", {"conversations": [{"from": "user", "text": "hi"}]}, 'needs the texts "from" and "value"'),
        ("dialogue", {"conversations": "hi"}, "must be a list"),
        ("dialogue", {"conversations": [{"from": "system", "value": "hi"}]}, "needs a turn of the user first"),
        (
            "dialogue",
            {"conversations": [*turn("hi")["conversations"], {"from": "system", "value": "a"}]},
            "only the fir",
        ),
        ("dialogue", {"system": "a", "conversations": [{"from": "system", "value": "b"}]}, "keep one"),
        ("dialogue", {"system_prompt": "a", **turn("hi")}, "did you mean 'system'"),
        ("dialogue", turn('what does <ref name="a">b</ref> do?'), '</ref> closes nothing.* give the sample as "turns"'),
        ("dialogue", turn("the <img> of HTML"), '<img> is not closed.* give the sample as "turns"'),
        ("dialogue", turn("<img> </img>"), "names no file"),
        (
            "dialogue",
            {"conversations": [{"from": "user", "value": "a"}, {"from": "gpt", "value": "<box>(x,y)</box>"}]},
            "is not a region",
        ),
        ("dialogue", turn("<image>\nWhat is this?", "human"), "<image> .* shows nothing; write <img>PATH</img>"),
        ("dialogue", {"image": "a.png", **turn("<image> and <image>?", "human")}, "2 times <image> for 1 pictures"),
        ("dialogue", {"image": "a.png", **turn("<img>b.png</img>", "human")}, "use one of the two"),
        ("dialogue", {"image": "a.png", **turn("<image><box>(9)</box>", "human")}, "is not a region"),
        ("dialogue", {"image": "data:image/png;base64,###", **turn("<image>", "human")}, "is not base64"),
        ("dialogue", {"messages": "hi"}, "must be a list"),
        ("dialogue", {"messages": [{"role": "user"}]}, 'needs "role" and "content", and may have'),
        ("dialogue", {"messages": [{"role": "user", "content": 5}]}, "a text or a list of parts"),
        ("dialogue", {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "is of type 'video'"),
        ("dialogue", {"messages": [{"role": "tool", "content": "a"}]}, "a turn is from 'tool'"),
        (
            "dialogue",
            {"messages": [{"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}]},
            "only the user's may",
        ),
        (
            "dialogue",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]}
                ]
            },
            "needs a turn|download it",
        ),
        ("caption", {"image": "a.png", "text": "a"}, "lacks caption; it has the keys 'image', 'text'"),
        ("caption", {"image": "a\0.png", "caption": "a"}, "is not a path"),
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
        ("dialogue", turn("<img>gs://</img>"), "names no bucket"),
        ("caption", {"image": "gs://b/a.png", "caption": "a"}, "names no bucket"),
        ("dialogue", parts({"text": "a", "image": 0}), "both 'text' and 'image'; make two parts"),
        ("dialogue", parts({"text": "a", "boxes": [[1, 1, 2, 2]]}), "both 'text' and 'boxes'"),
        ("dialogue", parts({"image": 0.5}), "the number of an image, the first being 0, not 0.5"),
        ("dialogue", parts({"image": "a.png"}), "the number of an image, the first being 0, not 'a.png'"),
        ("dialogue", parts({"ref": "a", "boxes": [[1, 1, 2, 2]], "image": -1}), "the first being 0, not -1"),
        ("dialogue", parts({"image": 0, "numbered": "no"}), "'numbered' must be true or false"),
        ("dialogue", parts({"tag": "box"}), "'text' must be a text"),
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
        ("a.jsonl", '{"text": "a"}'.encode("utf-16-le"), "not UTF-8, perhaps UTF-16"),
        ("a.jsonl", b"[" * 100_000, "line 1: this is not readable JSON"),
        ("a.jsonl", b"\n \n", "holds no samples"),
        ("a.json", b"[]", "holds no samples"),
        ("a.json", b"", r"line 1: this is not readable JSON \(it is empty\)"),
        ("a.json", b"\n\n{'text': 'a'}", r"line 3: this is not readable JSON \(it must begin with \[\)"),
        ("a.json", b'\n{"text": "a"}', "one object with the keys 'text', and must be one list"),
        ("a.json", b'{"data": [{"text": "a"}],\n"version": 1}', "its samples seem to lie under 'data'; save that list"),
        ("a.json", b'{"images": [], "annotations": []}', "as COCO has it; write one sample per annotation"),
        ("a.json", b'{"version": 1, "splits": {}}', "manifest of a record folder; name the folder"),
        ("a.json", b'"text"', "must be one list of samples"),
        ("a.jsonl", b"\x1f\x8b\x08", "is compressed; unpack it"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "a Git-LFS pointer"),
        ("a.json", b'[{"text": "a", "n": ' + b"9" * 5000 + b"}]", "line 1: this is not readable JSON"),
        ("a.json", b'[{"text": "a"},\n{"text" "a"}]', "line 2: this is not readable JSON"),
        ("a.json", b'[{"text": "a"}\n{"text": "a"}]', "line 2: this is not readable JSON"),
        ("a.json", b'[{"text": "a"},\n', "line 2: this is not readable JSON"),
        ("a.json", b'[{"text": "a"}] 5', "text after the list"),
        ("a.json", b'[\n{"text": "\xff"}]', "line 2: this is not readable JSON"),
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
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder\.json is a folder"):
        JsonReader(tmp_path / "folder.json", "text")


def test_bad_images_are_left_to_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They open and are read like others; decoding refuses them, which the loader counts."""
    monkeypatch.setattr(json_files, "MAX_BYTES", 2000)
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
            decode_image(payload)
    (tmp_path / "bomb.png").unlink()
    with pytest.raises(StorageError, match=r"bomb\.png was there when .*a\.jsonl was opened and is gone"):
        reader[3]


def test_the_far_edge_does_not_end_a_source(tmp_path: Path) -> None:
    value = "<box>(1000,10),(1000,20)</box><quad>(0,0),(1000,0),(1000,1000),(0,1000)</quad>"
    reader = JsonReader(write_jsonl(tmp_path / "a.jsonl", [turn(value)]), "dialogue")
    said = "".join(str(piece.value) for piece in training_pieces(reader[0]))
    assert "<box>(999,10),(999,20)</box><quad>(0,0),(999,0),(999,999),(0,999)</quad>" in said


@pytest.mark.parametrize("words", ["(x1,y1),(x2,y2)", "(xmin, ymin), (xmax, ymax)", "..", "", "(左,上),(右,下)"])
def test_a_box_that_a_user_only_speaks_of_is_text_of_the_prompt(words: str, tokenizer: Tokenizer) -> None:
    value = f"Answer as <box>{words}</box>."
    pieces, _ = pieces_of(turn(value)["conversations"])
    assert f"user\n{value}<|im_end|>" in written(pieces, [])
    assert Piece("special", "<box>") in pieces and Piece("text", words) in pieces
    # The same tokens as those of the released chat, which reads every tag in a prompt as a tag.
    [typed] = [chat_pieces([{"role": "user", "parts": prompt_parts(value)}], open_end=True)]
    assert pieces[: len(typed) - 3] == typed[:-3]


@given(
    st.lists(st.sampled_from([*"ab<>/ ", "<ref>", "</ref>", "<box>", "</box>", "<img>", "(1,2),(3,4)"])).map("".join)
)
def test_what_is_typed_is_never_refused_nor_changed(text: str) -> None:
    pieces = chat_pieces([{"role": "user", "parts": prompt_parts(text)}], open_end=True)
    assert "".join(str(piece.value) for piece in pieces[9:-5]) == text
    assert all(piece.value not in ("<img>", "</img>") for piece in pieces if piece.kind == "special")


def test_texts_of_turns_hold_no_tags(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The way out for words that look like tags."""
    text = "What do <img> and </ref> mean, <box>(9,9),(1,1)</box> and <image>?"
    parts = [{"text": text}]
    entry = {"turns": [{"role": "user", "parts": parts}, {"role": "assistant", "parts": parts}]}
    record = JsonReader(write_jsonl(tmp_path / "a.jsonl", [entry]), "dialogue")[0]
    assert [piece.value for piece in training_pieces(record) if piece.kind == "text"].count(text) == 2
    example = make_example(record, 0, tokenizer, 4)
    assert not set(example.tokens.tokens_L) & {tokenizer.special_by_name[name] for name in ("<img>", "</ref>", "<box>")}


def test_roles_and_order_of_turns(tmp_path: Path) -> None:
    def roles(turns: list[tuple[str, str]]) -> str:
        pieces, _ = pieces_of([{"from": role, "value": value} for role, value in turns])
        return written(pieces, []).removesuffix("<|im_end|>\n").replace("<|im_start|>", "").replace("\n", ":")

    plain = "system:You are a helpful assistant.<|im_end|>:user:a<|im_end|>:assistant:b"
    assert roles([("user", "a"), ("assistant", "b")]) == roles([("human", "a"), ("gpt", "b")]) == plain
    assert roles([("system", "c <ref>"), ("user", "a"), ("assistant", "b")]).startswith("system:c <ref><|im_end|>:user")
    twice = [("user", "a"), ("user", ""), ("assistant", "b"), ("assistant", " \u3000c")]
    assert roles(twice).endswith("user:a<|im_end|>:user:<|im_end|>:assistant:b<|im_end|>:assistant: \u3000c")
    reader = JsonReader(write_jsonl(tmp_path / "a.jsonl", [{"system": "c", **turn("a")}]), "dialogue")
    assert content_of(reader[0])["system"] == "c"
