"""Record -> Example: pieces become ids, loss mask and image slots.

Shape suffixes: L tokens, I images, H/W pixels, Q feature slots per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qwenvl_jax.data.formats import Piece, training_pieces
from qwenvl_jax.data.images.decode import Size, decode_image, resize_square
from qwenvl_jax.data.schema import Example, Record
from qwenvl_jax.data.tokenizer import Tokenizer


class Tokens(NamedTuple):
    """The tokenised part of a sample, before any pixel is touched.

    Attributes:
      tokens_L, is_target_L, image_query_L: as in schema.Example.
      image_indices: which of the record's images the slots refer to, in order of first occurrence. An image that
        occurs twice is encoded once.
    """

    tokens_L: np.ndarray
    is_target_L: np.ndarray
    image_query_L: np.ndarray
    image_indices: tuple[int, ...]


class Prompt(NamedTuple):
    """What generation starts from: `tokens_L` and `image_query_L` int32 as in schema.Example, pixels uint8."""

    tokens_L: np.ndarray
    image_query_L: np.ndarray
    images_IHWC: np.ndarray


def tokenize_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, queries: int) -> Tokens:
    """Turns pieces into ids.

    An image is `<img>`, `queries` times `<imgpad>` and `</img>`: 258 tokens at full size, never supervised (the
    released tokenizer writes the file's path into those slots; features overwrite them in any case).
    """
    image_block = np.full(queries + 2, tokenizer.special.imgpad, np.int32)
    image_block[0], image_block[-1] = tokenizer.special.img, tokenizer.special.img_end
    ids: list[np.ndarray] = []
    starts: list[tuple[int, int]] = []  # first slot of every image block, feature block it reads
    order: dict[int, int] = {}
    supervised: list[bool] = []
    length = 0
    for piece in pieces:
        if piece.kind == "text":
            part = tokenizer.encode_array(str(piece.value))
        elif piece.kind == "special":
            part = np.array([tokenizer.special_by_name[str(piece.value)]], np.int32)
        else:
            part = image_block
            starts.append((length + 1, order.setdefault(int(piece.value), len(order))))
        ids.append(part)
        supervised.append(piece.supervised)
        length += len(part)
    tokens_L = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    is_target_L = np.repeat(np.array(supervised, bool), [len(part) for part in ids])
    image_query_L = np.full(length, -1, np.int32)
    for start, block in starts:
        image_query_L[start : start + queries] = np.arange(block * queries, (block + 1) * queries)
    return Tokens(tokens_L, is_target_L, image_query_L, tuple(order))


def decode_images(
    images: Sequence[bytes], indices: Sequence[int], image_size: int, stated: Sequence[Size | None] = ()
) -> np.ndarray:
    """Pixels [I, H, W, 3] uint8 of the images that are used.

    Raises:
      UserError: for one that is not an image, or has another size than the one that is `stated` for it.
    """
    images_IHWC = np.empty((len(indices), image_size, image_size, 3), np.uint8)
    for row, index in enumerate(indices):
        image = decode_image(images[index], stated=stated[index] if stated else None)
        images_IHWC[row] = resize_square(image, image_size)
    return images_IHWC


def make_example(record: Record, source: str, tokenizer: Tokenizer, queries: int, image_size: int) -> Example:
    """One training sample. `source` is the mixture entry's name, `queries` the feature slots per image.

    Raises:
      UserError: naming the record, if its content does not fit its task, a box leaves its image, or an image is
        not one.
    """
    tokens = tokenize_pieces(training_pieces(record), tokenizer, queries)
    return Example(
        task=record.task,
        source=source,
        tokens_L=tokens.tokens_L,
        is_target_L=tokens.is_target_L,
        image_query_L=tokens.image_query_L,
        images_IHWC=decode_images(record.images, tokens.image_indices, image_size),
    )


def make_prompt(
    pieces: Sequence[Piece],
    images: Sequence[bytes],
    tokenizer: Tokenizer,
    queries: int,
    image_size: int,
    stated: Sequence[Size | None] = (),
) -> Prompt:
    """A prompt for generation from `formats.prompt_pieces` or `formats.chat_pieces(.., open_end=True)`.

    Args:
      images: encoded images that the pieces index.
      stated: the size that each of them must have (`record_content.stated_sizes`); none for pictures of no record.

    Raises:
      UserError: if an image is not one, or has another size.
    """
    tokens = tokenize_pieces(pieces, tokenizer, queries)
    images_IHWC = decode_images(images, tokens.image_indices, image_size, stated)
    return Prompt(tokens.tokens_L, tokens.image_query_L, images_IHWC)
