"""JSON files in which not every line can be used, and what else a line may say."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.readers.json_files import JsonReader
from qwenvl_jax.data.schema import TRAINING_TASKS
from qwenvl_jax.runtime.errors import UserError
from tests.data.record_samples import content, encoded_image
from tests.data.source_files import SIZE, turn, write_jsonl


def lines(good: int, bad: int) -> list[Any]:
    """Samples of task text; the bad ones are numbers 2, 4, .."""
    values: list[Any] = [{"text": f"word {k}"} for k in range(good)]
    for k in range(bad):
        values.insert(2 * k + 1, {"text": k})
    return values


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_some_bad_lines_are_counted_and_named(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / f"a{suffix}", lines(96, 4))
    if suffix == ".json":
        path.write_text(json.dumps(lines(96, 4), indent=None).replace("}, {", "},\n{"))
    reader = JsonReader(path, "text", 0.01)
    assert (len(reader), reader.corrupt) == (100, 4)
    said = capsys.readouterr().out
    assert "4 of 100 samples cannot be used: line 2: 'text' must be a text, not 0; line 4: " in said
    assert "line 6" in said and "line 8" not in said
    assert reader[2].content == {"text": "word 1"}
    with pytest.raises(UserError, match=r"a\.jsonl?, line 4: 'text' must be a text, not 1"):
        reader[3]
    with pytest.raises(
        UserError,
        match=r"line 2: .* \(4 of 100 samples cannot be used; line 4: .*; line 6: .*\); mend or "
        r"remove them, or raise config\.data\.max_corrupt_share above 0$",
    ):
        JsonReader(path, "text")
    write_jsonl(path, lines(80, 20))
    with pytest.raises(UserError, match=r"20 of 100 samples cannot be used.*above 0\.01"):
        JsonReader(path, "text", 0.01)


def test_a_file_of_which_nothing_can_be_used_is_refused_whatever_the_share(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "a.png", "caption": "a"}] * 9)
    with pytest.raises(
        UserError, match=r"line 1: .*lacks question, answer.*\(9 of 9 samples cannot be used; .*\); mend"
    ):
        JsonReader(path, "vqa", 1.0)


def test_one_mistake_all_over_is_told_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [turn("the <img> tag")] * 5 + [turn("</ref>")])
    with pytest.raises(
        UserError, match=r"line 1: <img> is not .*\(6 of 6 samples cannot be used; line 2: the same; line 3"
    ):
        JsonReader(path, "dialogue")


def test_damaged_bytes_spoil_their_own_item_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"text": "a"},\n{"text": "\xff"},\n{"text": "\xc3\xa9"}]')
    reader = JsonReader(path, "text", 0.5)
    assert (reader.corrupt, reader[2].content) == (1, {"text": "é"})


def test_the_form_of_a_file_is_what_it_holds(tmp_path: Path) -> None:
    """Lines in a .json and a list in a .jsonl can mean one thing only."""
    (tmp_path / "a.json").write_text('\ufeff\n{"text": "a"}\r\n\r\n{"text": "b"}')
    (tmp_path / "a.jsonl").write_text('[{"text": "a"},\n {"text": "b"}]')
    for name in ("a.json", "a.jsonl"):
        reader = JsonReader(tmp_path / name, "text")
        assert [content(reader[k])["text"] for k in range(len(reader))] == ["a", "b"]


def test_a_bad_first_line_costs_one_sample(tmp_path: Path) -> None:
    for bad in ("[]", "[1, {}]", "{", "5", "\ufeff{"):
        (tmp_path / "a.jsonl").write_text(bad + '\n{"text": "a"}\n{"text": "b"}\n')
        reader = JsonReader(tmp_path / "a.jsonl", "text", 0.5)
        assert (len(reader), reader.corrupt, reader[2].content) == (3, 1, {"text": "b"})


def test_keys_that_mean_nothing_are_ignored_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"dataset": "coco", "source_id": 5, "image_id": 7, "clip_score": 0.3, "source": None, "license": None}
    (tmp_path / "a.png").write_bytes(encoded_image(0))
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "a.png", "caption": "a", **extra}] * 2)
    reader = JsonReader(path, "caption")
    assert reader[1].content == {"caption": "a"} and (reader[1].source, reader[1].license) == ("a", "unknown")
    assert reader.ignored == {"dataset": 2, "source_id": 2, "image_id": 2, "clip_score": 2}
    assert "mean nothing here and are ignored: 'dataset' (2 times), " in capsys.readouterr().out
    talk = write_jsonl(tmp_path / "b.jsonl", [{"dataset": "x", **turn("hi")}])
    assert JsonReader(talk, "dialogue").ignored == {"dataset": 1}


@pytest.mark.parametrize(
    ("task", "entry", "language"),
    [
        ("caption", {"image": "a.png", "caption": "一只猫在桌子上"}, "zh"),
        ("caption", {"image": "a.png", "caption": "a cat"}, "en"),
        ("caption", {"image": "a.png", "caption": "a cat", "language": "zh"}, "zh"),
        ("caption", {"image": "a.png", "caption": "一只猫", "language": ""}, "zh"),
        ("grounding", {"image": "a.png", "segments": [{"text": "一只猫", "boxes": [[0, 0, 9, 9]]}], **SIZE}, "zh"),
        ("dialogue", {"turns": [{"role": r, "parts": [{"text": "你好"}]} for r in ("user", "assistant")]}, "zh"),
    ],
)
def test_the_language_is_guessed_as_in_tar_shards(task: str, entry: Any, language: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded_image(0))
    assert JsonReader(write_jsonl(tmp_path / "a.jsonl", [entry]), task)[0].language == language


def test_a_picture_is_found_however_its_accents_are_written(tmp_path: Path) -> None:
    """As in the release. A path is no text otherwise: as it is written, so it is looked for first."""
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    lines = [turn(f"<img>{name}</img>") for name in (composed, decomposed)]
    (tmp_path / decomposed).write_bytes(encoded_image(0))
    reader = JsonReader(write_jsonl(tmp_path / "a.jsonl", lines), "dialogue")
    assert reader[0].images == reader[1].images == (encoded_image(0),)
    (tmp_path / composed).write_bytes(encoded_image(1))
    assert (reader[0].images, reader[1].images) == ((encoded_image(1),), (encoded_image(0),))
    with pytest.raises(UserError, match="does not exist"):
        JsonReader(write_jsonl(tmp_path / "b.jsonl", [turn("<img>caf\u00e8.png</img>")]), "dialogue")


DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_forms_of_other_trainers_teach_the_same(tmp_path: Path) -> None:
    """The same dialogue as the released fine-tuning, LLaVA, ShareGPT and OpenAI write it."""
    ask, answer = "Where is it?", "<ref>It</ref><box>(1,2),(30,40)</box> is here."
    (tmp_path / "a.png").write_bytes(encoded_image(0))
    data_url = "data:image/png;base64," + base64.b64encode(encoded_image(0)).decode()

    def openai(url: str) -> list[dict[str, Any]]:
        picture = {"type": "image_url", "image_url": {"url": url}}
        content = [picture, {"type": "text", "text": ask}]
        return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]

    llava = [{"from": "human", "value": f"<image>\n{ask}"}, {"from": "gpt", "value": answer}]
    shown = [{"role": "user", "content": f"<image>\n{ask}"}, {"role": "assistant", "content": answer}]
    released = [
        {"from": "user", "value": f"Picture 1: <img>a.png</img>\n{ask}"},
        {"from": "assistant", "value": answer},
    ]
    samples: list[dict[str, Any]] = [
        {"conversations": released},
        {"image": "a.png", "conversations": llava},
        {"images": ["a.png"], "conversations": llava},
        {"image": data_url, "conversations": llava},
        {"images": ["a.png"], "messages": shown},
        {"messages": openai("a.png")},
        {"messages": openai(f"file://{tmp_path}/a.png")},
        {"messages": openai(f"file://{tmp_path}/%61.png")},
        {"images": [f"file://{tmp_path}/a.png"], "messages": shown},
        {"messages": openai(data_url)},
    ]
    for system in ("", "Be brief."):
        told = [sample | {"system": system} if system else sample for sample in samples]
        reader = JsonReader(write_jsonl(tmp_path / "all.jsonl", told), "dialogue")
        assert reader.corrupt == 0 and not reader.ignored
        first = reader[0]
        for record in map(reader.__getitem__, range(len(told))):
            assert record.images == first.images == (encoded_image(0),)
            assert training_pieces(record) == training_pieces(first)
        assert any(piece.value == (system or "You are a helpful assistant.") for piece in training_pieces(first))


def messages(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def said(role: str, content: str, **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **keys}


def released_dialogue(*said: tuple[str, str], **keys: str) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in said], **keys}


IMAGE, HI = {"type": "image"}, {"type": "text", "text": "hi"}
ONE = released_dialogue(("user", "Picture 1: <img>a.png</img>\nhi"), ("assistant", "yo"))
TWO = released_dialogue(("user", "Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nhi"), ("assistant", "yo"))
WORDS = released_dialogue(("user", "hi"), ("assistant", "yo"))
LATER = released_dialogue(
    ("user", "x"), ("assistant", "y"), ("user", "Picture 1: <img>a.png</img>\nhi"), ("assistant", "yo"), system="s"
)
ANSWER = ("assistant", "yo")
BASE64 = base64.b64encode(encoded_image(0)).decode()
NULLS = {"image": None, "images": None}


@pytest.mark.parametrize(
    ("sample", "released"),
    [
        ({"images": ["a.png"], "messages": messages(("user", [IMAGE, HI]), ANSWER)}, ONE),
        ({"image": "a.png", "messages": messages(("user", [IMAGE, HI]), ("assistant", [HI | {"text": "yo"}]))}, ONE),
        ({"images": ["a.png", "b.png"], "messages": messages(("user", [IMAGE, IMAGE, HI]), ANSWER)}, TWO),
        ({"images": ["a.png"], "messages": messages(("user", [IMAGE | {"text": None}, HI | NULLS]), ANSWER)}, ONE),
        ({"images": ["a.png", "b.png"], "messages": messages(("user", "<image>\n<image>\nhi"), ANSWER)}, TWO),
        ({"images": ["a.png", "b.png"], "messages": messages(("user", "<image><image>hi"), ANSWER)}, TWO),
        ({"images": ["a.png"], "messages": messages(("user", "hi"), ANSWER)}, ONE),
        ({"images": ["data:image/png;base64," + BASE64], "messages": messages(("user", [IMAGE, HI]), ANSWER)}, ONE),
        (NULLS | {"messages": messages(("user", [IMAGE | {"image": "a.png"}, HI]), ANSWER)}, ONE),
        ({"images": ["a.png"], "query": "<image>hi", "response": "yo"}, ONE),
        (
            {"images": ["a.png"], "query": "<image>hi", "response": "yo", "history": [["x", "y"]], "system": "s"},
            LATER,
        ),
        (
            {
                "images": ["a.png"],
                "messages": messages(
                    ("system", [HI | {"text": "s"}]), ("user", "x"), ("assistant", "y"), ("user", [IMAGE, HI]), ANSWER
                ),
            },
            LATER,
        ),
        ({"query": "hi", "response": "yo", "history": None}, WORDS),
        (NULLS | {"messages": messages(("user", "hi"), ANSWER)}, WORDS),
        ({"images": [], "conversations": WORDS["conversations"]}, WORDS),
        ({"messages": messages(("assistant", "hey"), ("user", "hi"), ANSWER)}, WORDS),
        ({"messages": [message | {"tool_calls": None} for message in messages(("user", "hi"), ANSWER)]}, WORDS),
        ({"images": ["a.png"], "messages": messages(("user", [HI | {"text": "<image>hi"}]), ANSWER)}, ONE),
        (
            {"images": ["a.png", "b.png"], "messages": messages(("user", [IMAGE, HI | {"text": "<image>hi"}]), ANSWER)},
            TWO,
        ),
        ({"messages": [said("user", "hi", weight=0), said("assistant", "yo", weight=1)]}, WORDS),
        ({"messages": [said("user", "hi", loss=False), said("assistant", "yo", loss=True)]}, WORDS),
    ],
)
def test_a_form_of_another_framework_teaches_what_the_released_form_does(
    sample: dict[str, Any], released: dict[str, Any], tmp_path: Path
) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(encoded_image(number))
    reader = JsonReader(write_jsonl(tmp_path / "all.jsonl", [released, sample]), "dialogue")
    assert reader.corrupt == 0 and not reader.ignored
    assert reader[1].images == reader[0].images
    assert training_pieces(reader[1]) == training_pieces(reader[0])


def test_names_of_messages_are_ignored_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"messages": [said("user", "hi", name="Ann"), said("assistant", "yo", name="Bo")]}
    reader = JsonReader(write_jsonl(tmp_path / "all.jsonl", [WORDS, named]), "dialogue")
    assert training_pieces(reader[1]) == training_pieces(reader[0])
    assert reader.ignored == {"name": 1} and "are ignored: 'name' (1 times)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"images": ["a.png"], "messages": messages(("user", [IMAGE, IMAGE, HI]), ANSWER)}, "2 times <image> for 1 "),
        ({"images": ["a.png"], "messages": messages(("user", "<image><image>hi"), ANSWER)}, "2 times <image> for 1 "),
        ({"images": ["a.png"] * 2, "messages": messages(("user", "<image>hi"), ANSWER)}, "1 times <image> for 2 "),
        ({"images": ["a.png"] * 2, "query": "hi", "response": "yo"}, "0 times <image> for 2 .*correct or remove"),
        ({"messages": messages(("user", [IMAGE, HI]), ANSWER)}, "<image> .* shows nothing; write <img>PATH</img>"),
        ({"images": ["a.png"], "messages": messages(("user", "hi"), ("assistant", [IMAGE, HI]))}, "only the user's"),
        (
            {"images": ["b.png"], "messages": messages(("user", [IMAGE | {"image": "a.png"}, HI]), ANSWER)},
            'pictures beside "messages" and in its parts; keep one',
        ),
        (
            {"images": [{"bytes": BASE64, "path": None}], "messages": messages(("user", "<image>hi"), ANSWER)},
            'list of paths; write the bytes of a picture as "data:image/png;base64,',
        ),
        (
            {"messages": messages(("user", [IMAGE | {"image": {"bytes": BASE64}}, HI]), ANSWER)},
            "of type 'image' and cannot be read; write .*PATH or data URL",
        ),
        (
            {"image": BASE64 * 2, "messages": messages(("user", "<image>hi"), ANSWER)},
            r"'iVBORw0KGgoAAAANSUhE'\.\. of .* characters is not a path; write the bytes .*data:image",
        ),
        ({"image": None, "messages": messages(("user", "hi"))}, "nothing to learn; leave the record out"),
        ({"image": "a.png", "query": "hi", "response": None}, '"query", "response" .* must be texts; correct or'),
        ({"query": "hi", "response": "yo", "history": {"x": "y"}}, r"list of pairs \[query, response\]"),
        ({"instruction": "hi", "input": "", "output": "yo"}, 'lacks turns; .*write a dialogue as "messages"'),
        ({"prompt": messages(("user", "hi")), "completion": messages(ANSWER)}, 'write a dialogue as "messages"'),
        ({"prompt": "hi", "chosen": "yo", "rejected": "no"}, 'write a dialogue as "messages"'),
        ({"messages": messages(("user", "hi"), ("tool", "x"), ANSWER)}, "from 'tool'; use 'user' or 'assistant'"),
        (
            {"messages": [said("user", "hi", nickname="x")]},
            'keys role, content, nickname; it needs "role" and "content", and may have "loss" and "name" and "weight"',
        ),
        (
            {"messages": [said("user", "hi"), said("assistant", "yo", weight=0), said("assistant", "yes")]},
            """message of 'assistant' has "weight": 0, but all answers are taught, .* remove the key, or leave out""",
        ),
        ({"messages": [said("user", "hi"), said("assistant", "yo", loss=False)]}, '"loss": False'),
        ({"messages": [said("user", "hi", loss=True), said("assistant", "yo")]}, "'user' has \"loss\": True"),
        ({"messages": [said("user", "hi"), said("assistant", "yo", weight=0.5)]}, '"weight": 0.5'),
        (
            {
                "images": ["a.png"],
                "messages": messages(("user", "<image>Find the dog"), ("assistant", "It is <bbox>.")),
                "objects": {"ref": [], "bbox": [[1, 2, 3, 4]]},
            },
            r"<bbox> in 'It is <bbox>.' shows nothing; write <ref>WORDS</ref> and <box>.* in thousandths",
        ),
        (
            {"messages": messages(("user", "Find <ref-object>"), ANSWER), "objects": {"ref": ["a"], "bbox": []}},
            "<ref-object> in .* shows nothing",
        ),
        (
            {"messages": messages(("user", [IMAGE | {"image": "a.png"}, HI | {"text": "<image>hi"}]), ANSWER)},
            "<image> stands in a text beside parts for pictures; remove one",
        ),
        ({"system": "s", "messages": messages(("system", "t"), ("user", "hi"), ANSWER)}, "both .*system.*keep one"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused_with_what_to_do(
    sample: dict[str, Any], words: str, tmp_path: Path
) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(encoded_image(number))
    with pytest.raises(UserError, match=words) as refused:
        JsonReader(write_jsonl(tmp_path / "a.jsonl", [sample]), "dialogue")
    assert len(str(refused.value)) < 500 + len(str(tmp_path))


def test_the_examples_in_the_docs_are_read(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "images/dog.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded_image(0))
    blocks = re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "conversation.json").write_text(blocks[0])
    assert len(JsonReader(tmp_path / "conversation.json", "dialogue")) == 1
    tasks = ("caption", "vqa", "grounding", "ref_grounding", "grounded_caption", "ocr", "vqa", "text", "dialogue")
    for task, line in zip(tasks, blocks[1].splitlines(), strict=True):
        (tmp_path / "one.jsonl").write_text(line)
        assert JsonReader(tmp_path / "one.jsonl", task)[0].task == task


ENTRIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["user", "a.png"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["conversations", "from", "value", "turns", "role", "parts", "text", "image", "images", "box",
                         "segments", "boxes", "width", "height", "caption", "sizes", "lines", "quad", "id", "task"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(ENTRIES, max_size=3), st.sampled_from(TRAINING_TASKS))
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, values: list[Any], task: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    try:
        reader = JsonReader(path, task, 1.0)
    except UserError:
        return
    assert reader.corrupt < len(reader) == len(values)
