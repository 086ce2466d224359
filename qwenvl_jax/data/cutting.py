"""Record -> the examples that fit rows: samples that are too long are cut or dropped.

Texts continue in further rows, pages of OCR end at a line and dialogues at a turn.

Shape suffix: L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl_jax.config import DataConfig
from qwenvl_jax.data.examples import DrawnRecord, Example, Tokens, example_of, tokenize_pieces
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.schema import Record, samples_of
from qwenvl_jax.data.tags import IM_END, IM_START, QUAD_END
from qwenvl_jax.data.tokenizer import Tokenizer


def fit(drawn: DrawnRecord, record: Record, tokenizer: Tokenizer, queries: int, data: DataConfig) -> DrawnRecord:
    """Tokenises all samples of a record, each within a row of the config and the images of a group.

    Args:
      drawn: without its record.
      record: checked.
      tokenizer: of the run.
      queries: feature slots per image.
      data: the config.

    Raises:
      UserError: naming the record, if its content does not fit its task or a box leaves its image.
    """
    examples: list[Example] = []
    cut = 0
    dropped = []
    message = ""
    for sample in samples_of(record):
        pieces = training_pieces(sample)
        tokens = tokenize_pieces(pieces, tokenizer, queries)
        excess = _excess(tokens, data)
        if not excess:
            examples.append(example_of(sample, drawn.source, tokens))
            continue
        parts = _parts(sample.task, pieces, tokens, tokenizer, queries, data) if data.long_samples == "cut" else []
        examples += [example_of(sample, drawn.source, tokens, part=part) for part, tokens in enumerate(parts)]
        cut += bool(parts)
        if not parts:
            dropped.append(example_of(sample, drawn.source, tokens))
            message = f"record {sample.id!r}: {excess}"
    return drawn._replace(examples=tuple(examples), cut=cut, dropped=tuple(dropped), message=message)


def _excess(tokens: Tokens, data: DataConfig) -> str:
    """What is too long about a sample; "" if it fits."""
    if len(tokens.tokens_L) > data.sequence_length:
        return f"it has {len(tokens.tokens_L)} tokens, a row {data.sequence_length}"
    if len(tokens.image_indices) > data.group_images:
        return f"it has {len(tokens.image_indices)} images, a group of rows {data.group_images}"
    return ""


def _parts(
    task: str, pieces: Sequence[Piece], tokens: Tokens, tokenizer: Tokenizer, queries: int, data: DataConfig
) -> list[Tokens]:
    """The parts of a sample that fit, none if it cannot be cut.

    A text gives as many parts as it needs. Each begins with the last token of the part before, so every token but the
    first is a target once. A page of OCR and a dialogue give one part, as long as possible: a page that is cut has no
    `<|endoftext|>`, and a dialogue ends with a turn of the assistant, so nothing false is taught.
    """
    if task == "text" and all(piece.kind == "text" for piece in pieces[:-1]):
        return _split(tokens, data.sequence_length)
    longest: list[Tokens] = []
    for end in _ends(task, pieces):
        part = tokenize_pieces(pieces[:end], tokenizer, queries)
        if _excess(part, data):
            break
        longest = [part]
    return longest


def _split(tokens: Tokens, length: int) -> list[Tokens]:
    if length < 2:
        return []
    parts = []
    for start in range(0, len(tokens.tokens_L) - 1, length - 1):
        tokens_L, is_target_L, image_query_L = (array_L[start : start + length] for array_L in tokens[:3])
        parts.append(Tokens(tokens_L, is_target_L, image_query_L, ()))
    return parts


def _ends(task: str, pieces: Sequence[Piece]) -> list[int]:
    """The numbers of pieces that a part may have."""
    ends = []
    role: str | int = ""
    for number, piece in enumerate(pieces):
        if piece.kind != "special":
            continue
        if task == "ocr" and piece.value == QUAD_END:
            ends.append(number + 1)
        elif task == "dialogue" and piece.value == IM_START:
            role = pieces[number + 1].value
        elif task == "dialogue" and piece.value == IM_END and role == "assistant":
            ends.append(number + 2)  # with the line break
    return ends
