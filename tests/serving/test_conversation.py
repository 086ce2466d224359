"""Conversations: what the model is shown, and the terminal loop around it."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import pytest
from etils import epath

from qwenvl_jax import chat
from qwenvl_jax.config import Config
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.models.loaded import LoadedModel
from qwenvl_jax.runtime import log
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving import dialogue
from qwenvl_jax.serving.answer import Answer
from qwenvl_jax.serving.conversation import AnswerFailed, ChatAnswer, Conversation
from qwenvl_jax.serving.dialogue import dialogue_pieces
from qwenvl_jax.serving.engine import Engine
from qwenvl_jax.serving.options import AnswerOptions, EngineSettings
from qwenvl_jax.serving.slot_batch import SlotBatch
from tests.evaluation.samples import grey as picture

FOUR = AnswerOptions(max_new_tokens=4)
PATIENCE_S = 300.0  # of a test that fails


@pytest.fixture
def engine(loaded: LoadedModel, config: Config, tokenizer: Tokenizer) -> Iterator[Engine]:
    settings = EngineSettings(slots=1, context=config.model.decoder.max_positions, burst=1)
    with Engine(loaded, tokenizer, config.data.image_size, settings) as engine:
        yield engine


@pytest.fixture
def conversation(engine: Engine) -> Conversation:
    return Conversation(engine, FOUR)


@pytest.fixture
def written(tokenizer: Tokenizer) -> Callable[[Conversation], str]:
    """What a next question would be asked after."""

    def text(conversation: Conversation) -> str:
        turns = [*conversation.turns, {"role": "user", "parts": [{"text": "NEXT"}]}]
        pieces = dialogue_pieces(turns, tokenizer)
        return "".join("<img/>" if piece.kind == "image" else str(piece.value) for piece in pieces)

    return text


Written = Callable[[Conversation], str]


def test_a_later_question_sees_the_earlier_turns(conversation: Conversation, written: Written) -> None:
    conversation.add_image(picture())
    first = conversation.ask("What?")
    conversation.add_image(picture())
    conversation.ask("And this?")
    said = first.text
    for name in ("<img>", "</img>", "<imgpad>"):
        said = said.replace(name, "")
    text = written(conversation)
    assert f"Picture 1: <img/>\nWhat?<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n" in text
    assert "Picture 2: <img/>\nAnd this?<|im_end|>" in text


def test_questions_draw_with_seeds_of_their_own(engine: Engine) -> None:
    drawn = AnswerOptions(max_new_tokens=20, temperature=5.0, seed=7)
    first = Conversation(engine, drawn)
    answers = [first.ask("What?").text for _ in range(2)]
    again = Conversation(engine, drawn)
    assert [again.ask("What?").text for _ in range(2)] == answers
    assert Conversation(engine, AnswerOptions(max_new_tokens=20, temperature=5.0)).ask("What?").text != answers[0]
    assert answers[0] != answers[1]


def test_no_picture_no_boxes_and_reset_forgets(conversation: Conversation) -> None:
    assert conversation.ask("<box>(1,1),(2,2)</box>").boxes == []
    conversation.add_image(picture())
    conversation.reset()
    assert conversation.ask("<box>(1,1),(2,2)</box>").boxes == []


def test_something_else_is_not_a_picture(conversation: Conversation) -> None:
    with pytest.raises(UserError, match="not a readable image"):
        conversation.add_image(b"no picture")
    assert conversation.ask("Hello?").boxes == []


def test_the_chat_goes_on_after_mistakes(
    conversation: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "good.png").write_bytes(picture())
    lines = [
        "", f"/image {tmp_path}/bad.png", "/image /nowhere.png", "/image", "/dance",
        f"/image {tmp_path}/good.png", "What is it?", "/reset", "/quit", "never asked",
    ]  # fmt: skip
    chat.talk(conversation, lines, epath.Path(tmp_path / "boxes"), train_length=1)
    said = capsys.readouterr().out
    assert "bad.png is not used" in said and "/nowhere.png is not used: there is no such file" in said
    assert "/dance is not a command" in said and "good.png goes with your next question" in said
    assert said.count("model: ") == 1 and "a new conversation" in said
    assert "longer than the 1 tokens" in said


def test_what_is_forgotten_is_said(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation.add_image(picture(20, 20))
    conversation.ask("First?")
    conversation.ask("Second?")
    monkeypatch.setattr(dialogue, "MAX_WINDOW", 1)
    conversation.add_image(picture(40, 40))
    answer = conversation.ask("Third?")
    assert answer.forgotten == 2
    assert conversation.ask("Fourth?").forgotten == 3


def test_a_question_that_fails_leaves_the_conversation_as_it_was(
    conversation: Conversation, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation.ask("First?")
    conversation.add_image(picture())
    before = written(conversation)

    def fails(*arguments: Any) -> None:
        raise ValueError("boom")

    with monkeypatch.context() as patched:
        patched.setattr(SlotBatch, "put", fails)
        with pytest.raises(AnswerFailed, match="boom"):
            conversation.ask("Second?")
    with pytest.raises(UserError, match="shorten it"):
        conversation.ask("word " * 1000)
    assert written(conversation) == before
    conversation.ask("Third?")
    assert conversation.turns[-2]["parts"][0] == {"image": 0}, "the picture was still to be shown"
    assert "Second?" not in written(conversation)


def test_an_answer_that_never_began_is_not_remembered(
    loaded: LoadedModel, config: Config, tokenizer: Tokenizer
) -> None:
    with Engine(loaded, tokenizer, config.data.image_size, EngineSettings(slots=1, wait_seconds=1e-9)) as engine:
        conversation = Conversation(engine, FOUR)
        with pytest.raises(AnswerFailed, match="no slot became free"):
            conversation.ask("What?")
    assert conversation.turns == []


def test_an_answer_is_heard_while_it_is_written(conversation: Conversation) -> None:
    conversation.add_image(picture())
    heard: list[str] = []
    answer = conversation.ask("What?", heard.append)
    assert "".join(heard) == answer.text and len(heard) > 2
    assert not answer.stopped


def test_ctrl_c_keeps_what_was_written(
    engine: Engine, written: Written, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """The chat goes on from the part of the answer that was read; from a pipe, the command ends."""
    for seed in range(50):
        conversation = Conversation(engine, AnswerOptions(max_new_tokens=200, temperature=5.0, seed=seed))
        whole = conversation.ask("What?").text
        if len(whole) > 100:  # no stop id was drawn soon
            break
    conversation.reset()
    cancelled = threading.Event()
    heard: list[str] = []
    advance = SlotBatch.advance
    cancel = Answer.cancel

    def waits_for_the_user(batch: SlotBatch, steps: int) -> None:
        if len(heard) >= 3:
            cancelled.wait(PATIENCE_S)
        advance(batch, steps)

    def tells(answer: Answer) -> None:
        cancel(answer)
        cancelled.set()

    def after_three(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            raise KeyboardInterrupt

    def interrupted(writer: Any, piece: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Answer, "cancel", tells)
        patched.setattr(SlotBatch, "advance", waits_for_the_user)
        answer = conversation.ask("What?", after_three)
    assert answer.stopped and "".join(heard) == answer.text
    assert whole.startswith(answer.text.rstrip("\ufffd"))
    assert f"What?<|im_end|>\n<|im_start|>assistant\n{answer.text}" in written(conversation)

    monkeypatch.setattr(chat._Written, "add", interrupted)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(KeyboardInterrupt):
        chat.talk(conversation, ["And?"], epath.Path(tmp_path), 512)
    monkeypatch.undo()
    assert not conversation.ask("Go on.").stopped


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_a_question_too_long_for_memory_does_not_end_the_chat(
    error: Exception,
    conversation: Conversation,
    written: Written,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put = SlotBatch.put

    def short_only(batch: SlotBatch, slots: Any, requests: Any, options: Any) -> None:
        if len(requests[0].tokens_L) > 100:
            raise error
        put(batch, slots, requests, options)

    monkeypatch.setattr(SlotBatch, "put", short_only)
    chat.talk(conversation, ["word " * 40, "word " * 1000, "Short?"], epath.Path(tmp_path), 512)
    first, second, third = capsys.readouterr().out.splitlines()[:3]
    assert "not answered: the devices have not enough memory" in first
    assert "not answered: the question has" in second and third.startswith("model: ")
    assert "word" not in written(conversation) and "Short?" in written(conversation)


def test_paths_are_read_as_a_shell_and_a_desktop_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my dog.png").write_bytes(b"dog")
    (tmp_path / "it's.png").write_bytes(b"its")
    (tmp_path / "'quoted'.png").write_bytes(b"quoted")
    monkeypatch.setenv("HOME", str(tmp_path))
    for line in (
        f"{tmp_path}/my dog.png", f"'{tmp_path}/my dog.png'", f'"{tmp_path}/my dog.png"', "~/my dog.png",
        f"{tmp_path}/my\\ dog.png", f"file://{tmp_path}/my%20dog.png",
    ):  # fmt: skip
        assert chat.read_picture(line) == b"dog", line
    assert chat.read_picture(f"{tmp_path}/it's.png") == chat.read_picture(f"{tmp_path}/it\\'s.png") == b"its"
    assert chat.read_picture(f"{tmp_path}/'quoted'.png") == b"quoted"


@pytest.mark.parametrize(
    "line,message",
    [
        ("/nowhere/dog.png", "no such file"),
        ("'/nowhere/dog.png'", "no such file"),
        ("{folder}", "it is a folder"),
        ("https://example.org/dog.png", "web address"),
        ("s3://bucket/dog.png", "only local paths and gs://"),
        ("{folder}/locked/dog.png/more", "no such file"),
        ("file://", "no such file|folder"),
        ("a\0b.png", "null byte|no such file"),
        ("x" * 5000, "too long"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line(
    conversation: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    chat.show(conversation, line.format(folder=tmp_path))
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and " is not used: " in said
    assert re.search(message, said), said
    assert not conversation._pending


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    text = "a\x1b[2Jb\x9b1mc\rd\x07e\u202ef\udc80g\n\t狗🐕\u200d🦺 ok"
    assert log.printable(text) == "a\ufffd[2Jb\ufffd1mc\ufffdd\ufffde\ufffdf\ufffdg\n\t狗🐕\u200d🦺 ok"


class _Says:
    """A conversation that gives one answer to everything."""

    def __init__(self, text: str) -> None:
        self._text = text

    def add_image(self, payload: bytes) -> None:
        raise AssertionError("there is no picture")

    def ask(self, question: str, on_text: Callable[[str], Any]) -> ChatAnswer:
        for piece in re.split("(?=<)", self._text):
            on_text(piece)
        return ChatAnswer(self._text, [], 3)


def test_an_answer_cannot_move_the_cursor_and_odd_bytes_cost_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raw = b"caf\xe9?\nWhat?\n\xff\xfe\n/image nowhere\xc3\xa9.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    says = cast(Conversation, _Says("\x1b]0;title\x07<ref>red</ref><box>(1,1),(2,2)</box>"))
    chat.talk(says, chat._typed(), epath.Path(tmp_path), 99)
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "this line is not UTF-8 and is not used",
        "model: \ufffd]0;title\ufffdred(1,1),(2,2)",
        "this line is not UTF-8 and is not used",
        "nowhereé.png is not used: there is no such file",
    ]


def test_boxes_of_an_answer_are_drawn(
    conversation: Conversation, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """With an answer put into the mouth of the model, because an untrained one writes no boxes."""
    words = tokenizer.special_by_name
    said = [words["<ref>"], *tokenizer.encode("it"), words["</ref>"]]
    said += [words["<box>"], *tokenizer.encode("(100,200),(1000,800)"), words["</box>"]]
    read = SlotBatch.read

    def spoken(batch: SlotBatch, told: Any) -> Iterator[Any]:
        for slot, new in read(batch, told):
            yield slot, new._replace(ids=said, ended="stop")

    monkeypatch.setattr(SlotBatch, "read", spoken)
    conversation.add_image(picture(100, 50))
    chat.talk(conversation, ["Where?"], epath.Path(tmp_path), 512)
    assert "model: it(100,200),(1000,800)" in capsys.readouterr().out
    assert (tmp_path / "answer_001.png").read_bytes().startswith(b"\x89PNG")
    box = ("it", (10.0, 10.0, 100.0, 40.0))
    assert conversation.ask("Where?").boxes == [(picture(100, 50), [box])]
    conversation.add_image(picture(10, 10))
    assert conversation.ask("Where is it in Picture 1?").boxes == [(picture(100, 50), [box])]
    assert conversation.ask("And in Picture 2?").boxes == [(picture(10, 10), [("it", (1.0, 2.0, 10.0, 8.0))])]


def test_a_pipe_or_a_device_shown_as_a_picture_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(UserError):
            chat.read_picture(str(path))
