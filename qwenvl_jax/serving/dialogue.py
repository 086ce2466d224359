"""Dialogues as those who ask write them, as prompts for the model; and the pictures that its answers mean.

A turn is `{"role": "system" | "user" | "assistant", "parts": [..]}`. A part is `{"text": str}`, in a turn of the user
also `{"image": index}`, and in one of the assistant also `{"ids": [..]}`: what the model wrote itself.

Source: the released chat (modeling_qwen.py, qwen_generation_utils.py), which answers from the newest turns that fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwenvl_jax.data import tags
from qwenvl_jax.data.dialogues import chat_pieces
from qwenvl_jax.data.examples import Tokens, tokenize_pieces
from qwenvl_jax.data.pieces import Piece, tagged_pieces
from qwenvl_jax.data.pointing import last_named
from qwenvl_jax.data.readers.conversations import prompt_parts
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.runtime.errors import UserError

# The system's turn and earlier turns have fewer tokens than this; the question is never cut (released max_window_size).
MAX_WINDOW = 6144

# Takes the position of an answer until the answer's pieces replace it.
_ANSWER = "\0answer\0"

_PICTURE_TAGS = (tags.IMG, tags.IMG_END, tags.IMGPAD)

Turns = Sequence[Mapping[str, Any]]


class PromptTooLong(UserError):
    """A question that does not fit into the context, even without the turns before it."""


class DialoguePrompt(NamedTuple):
    """The prompt of a dialogue's last question.

    Attributes:
      tokens: the ids; `image_indices` names the pictures that are shown.
      forgotten: how many of the oldest questions, with their answers, were left out.
    """

    tokens: Tokens
    forgotten: int


def build_prompt(turns: Turns, tokenizer: Tokenizer, queries: int, longest: int) -> DialoguePrompt:
    """The prompt of the last question, with as many of the newest turns before it as fit.

    The system's turn always comes first. Questions with their answers are added, the newest first, as long as they and
    the system's turn have fewer than MAX_WINDOW tokens (released make_context) and the prompt has at most `longest`.
    The first that does not fit ends this. Pictures keep their numbers when older turns are forgotten.

    `<ref>`, `<box>` and `<quad>` in pairs are tags, as in training and in the released `chat`; any other special token
    in a text is text.

    Args:
      turns: as at the top of this file; the last one is the user's.
      tokenizer: of the model.
      queries: features per picture.
      longest: tokens of the longest prompt.

    Raises:
      UserError: for turns of another form.
      PromptTooLong: for a question that is too long even without the turns before it.
    """
    system, *exchanges, question = _exchanges(dialogue_pieces(turns, tokenizer))

    def length(pieces: Sequence[Piece]) -> int:
        return len(tokenize_pieces(pieces, tokenizer, queries).tokens_L)

    total = length(system) + length(question)
    if total > longest:
        raise PromptTooLong(
            f"the question has {total:,} tokens with its pictures and the system's turn, but there is room for "
            f"{longest:,}; shorten it, show fewer pictures, or ask for a shorter answer"
        )
    window = length(system) - 1  # the released count leaves out the line break after the system's turn
    kept = 0
    for exchange in reversed(exchanges):
        tokens = length(exchange)
        window += tokens
        total += tokens
        if window >= MAX_WINDOW or total > longest:
            break
        kept += 1
    forgotten = len(exchanges) - kept
    shown = [piece for part in (system, *exchanges[forgotten:], question) for piece in part]
    return DialoguePrompt(tokenize_pieces(shown, tokenizer, queries), forgotten)


def dialogue_pieces(turns: Turns, tokenizer: Tokenizer) -> list[Piece]:
    """All turns in ChatML, up to where the model continues.

    Raises:
      UserError: for turns of another form.
    """
    system = ""
    turns = list(turns)
    if turns and turns[0].get("role") == "system":
        system = _system_text(turns.pop(0))
    if not turns or turns[-1].get("role") != "user":
        raise UserError("the last turn must be the user's; end the dialogue with a question")
    said: list[dict[str, Any]] = []
    answers: list[list[Piece]] = []
    for turn in turns:
        if turn.get("role") == "user":
            said.append({"role": "user", "parts": _user_parts(turn)})
        elif turn.get("role") == "assistant":
            answers.append(_answer_pieces(turn, tokenizer))
            said.append({"role": "assistant", "parts": [{"text": _ANSWER}]})
        elif turn.get("role") == "system":
            raise UserError("only the first turn may be the system's; remove the others")
        else:
            raise UserError(f"a turn has the role {turn.get('role')!r}; use system, user or assistant")
    pieces: list[Piece] = []
    waiting = iter(answers)
    for piece in chat_pieces(said, system=system, open_end=True):
        # Nobody else's text is supervised, so a user who writes the same words does not come here.
        pieces += next(waiting) if piece.supervised and piece.value == _ANSWER else [piece]
    return pieces


def as_pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[Piece]:
    """An answer as texts and special tokens. Its image tags are left out, because such an image has no pixels."""
    pieces: list[Piece] = []
    for name, group in itertools.groupby(ids, tokenizer.special_names.get):
        if name is None:
            pieces.append(Piece("text", tokenizer.decode(list(group))))
        elif name not in _PICTURE_TAGS:
            pieces += [Piece("special", name) for _ in group]
    return pieces


def pictures_meant(turns: Turns, forgotten: int) -> tuple[int, range]:
    """The pictures that an answer to a dialogue can be about; see `data.pointing`.

    Args:
      turns: the dialogue, with earlier answers as texts.
      forgotten: how many of the oldest questions the model has not seen.

    Returns:
      The index of the picture that is meant if the answer names none, and the indices that it can name: the pictures
      of questions that are not forgotten.
    """
    about = shown = seen_from = questions = 0
    for turn in turns:
        pictures = sum("image" in part for part in turn["parts"])
        shown += pictures
        if turn["role"] == "user":
            questions += 1
            if questions <= forgotten:
                seen_from = shown
        if pictures:
            about = shown - 1
        named = last_named("".join(part.get("text", "") for part in turn["parts"]), range(seen_from, shown))
        if named is not None:
            about = named
    return about, range(seen_from, shown)


def _exchanges(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The system's turn, then for every turn of the user this turn and the answers to it."""
    parts: list[list[Piece]] = []
    for index, piece in enumerate(pieces):  # no answer contains <|im_start|>, because that token ends it
        if piece.kind == "special" and piece.value == tags.IM_START and pieces[index + 1].value != "assistant":
            parts.append([])
        parts[-1].append(piece)
    return parts


def _parts(turn: Mapping[str, Any], *allowed: str) -> list[Mapping[str, Any]]:
    """The parts of a turn, of which each has one of the allowed keys.

    Raises:
      UserError: for another part.
    """
    parts = list(turn.get("parts", ()))
    for part in parts:
        if len(part) != 1 or next(iter(part)) not in allowed:
            raise UserError(
                f"a part of a turn of the {turn['role']} has the keys {', '.join(map(str, part)) or 'none'}; "
                f"it may have {' or '.join(allowed)}"
            )
    return parts


def _system_text(turn: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in _parts(turn, "text"))


def _user_parts(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parts: list[Mapping[str, Any]] = []
    for part in _parts(turn, "text", "image"):
        parts += prompt_parts(part["text"]) if "text" in part else [part]
    return parts


def _answer_pieces(turn: Mapping[str, Any], tokenizer: Tokenizer) -> list[Piece]:
    """An earlier answer as the model wrote it, or as somebody else has written it down."""
    pieces: list[Piece] = []
    for part in _parts(turn, "text", "ids"):
        if "ids" in part:
            pieces += as_pieces(part["ids"], tokenizer)
            continue
        for each in prompt_parts(part["text"]):
            tagged = "tag" in each
            pieces += tagged_pieces(each["tag"], each["text"]) if tagged else [Piece("text", each["text"])]
    return pieces
