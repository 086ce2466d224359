"""Record -> examples that fit rows: samples that are too long are cut into fragments or dropped.

A text continues in further rows, a page of OCR ends at a line and a dialogue at a turn.

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
      drawn: the draw; its `record` is not used.
      record: checked.
      tokenizer: of the run.
      queries: feature slots per image.
      data: the config.

    Returns:
      `drawn` with the examples of all samples that fit or were cut, and with those that were dropped.

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
        fragments: list[Tokens] = []
        if data.long_samples == "cut":
            fragments = _fragments(sample.task, pieces, tokens, tokenizer, queries, data)
        for number, fragment in enumerate(fragments):
            examples.append(example_of(sample, drawn.source, fragment, fragment=number))
        cut += bool(fragments)
        if not fragments:
            dropped.append(example_of(sample, drawn.source, tokens))
            message = f"record {sample.id!r}: {excess}"
    return drawn._replace(examples=tuple(examples), cut=cut, dropped=tuple(dropped), message=message)


def _excess(tokens: Tokens, data: DataConfig) -> str:
    """Says why a sample does not fit; "" if it does."""
    if len(tokens.tokens_L) > data.sequence_length:
        return f"it has {len(tokens.tokens_L)} tokens, a row {data.sequence_length}"
    if len(tokens.image_indices) > data.group_images:
        return f"it has {len(tokens.image_indices)} images, a group of rows {data.group_images}"
    return ""


def _fragments(
    task: str, pieces: Sequence[Piece], tokens: Tokens, tokenizer: Tokenizer, queries: int, data: DataConfig
) -> list[Tokens]:
    """The fragments of a sample, each of which fits; empty if it cannot be cut.

    A text gives as many fragments as it needs. Each begins with the last token of the one before, so every token but
    the first is a target once. A page of OCR and a dialogue give one fragment, as long as possible: a page that is cut
    has no `<|endoftext|>`, and a dialogue ends with a turn of the assistant, so nothing false is taught.
    """
    if task == "text" and all(piece.kind == "text" for piece in pieces[:-1]):
        return _split(tokens, data.sequence_length)
    longest: list[Tokens] = []
    for end in _ends(task, pieces):
        fragment = tokenize_pieces(pieces[:end], tokenizer, queries)
        if _excess(fragment, data):
            break
        longest = [fragment]
    return longest


def _split(tokens: Tokens, length: int) -> list[Tokens]:
    """Fragments of at most `length` tokens of a text; none if a row has no room for a target."""
    if length < 2:
        return []
    fragments = []
    for start in range(0, len(tokens.tokens_L) - 1, length - 1):
        tokens_L, is_target_L, image_query_L = (array_L[start : start + length] for array_L in tokens[:3])
        fragments.append(Tokens(tokens_L, is_target_L, image_query_L, ()))
    return fragments


def _ends(task: str, pieces: Sequence[Piece]) -> list[int]:
    """How many of the first pieces a fragment may have: one number per line of a page or answer of a dialogue."""
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
