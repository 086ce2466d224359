"""Record -> Example: pieces become ids, loss mask and image slots. Images stay encoded until a batch is laid out.

Shape suffixes: L tokens, I images, H/W pixels, Q feature slots per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.images.decode import decode_into
from qwenvl_jax.data.images.exact import Size
from qwenvl_jax.data.pieces import Piece
from qwenvl_jax.data.schema import Record, stated_sizes
from qwenvl_jax.data.tokenizer import Tokenizer


class Tokens(NamedTuple):
    """The ids of an example or a prompt.

    Attributes:
      tokens_L: [L] int32 ids; image slots hold the id of `<imgpad>`.
      is_target_L: [L] bool, whether the token is a training target.
      image_query_L: [L] int32, `image * Q + query` of the feature that replaces this token; -1 for text. `image`
        counts the images that are used.
      image_indices: the record's images that are used, in order of first occurrence. An image that occurs twice is
        encoded once.
    """

    tokens_L: np.ndarray
    is_target_L: np.ndarray
    image_query_L: np.ndarray
    image_indices: tuple[int, ...]


class Example(NamedTuple):
    """One tokenised sample with its encoded images.

    Attributes:
      source: index of its source in the mixture.
      record_id: the id of its record.
      tokens: of the whole sample.
      images: encoded, in the order in which `tokens.image_query_L` counts them.
      stated_sizes: the size of each image if the record states it, else None.
      position: of its record in the stream; examples of one position show the same images. -1 outside a stream.
      fragment: index of this fragment if the sample was cut, 0 for the first; -1 for a whole sample.
      error: why the example cannot be used although a row has room reserved for it; "" if it can be used.
    """

    source: int
    record_id: str
    tokens: Tokens
    images: tuple[bytes, ...]
    stated_sizes: tuple[Size | None, ...]
    position: int = -1
    fragment: int = -1
    error: str = ""

    @property
    def begins(self) -> bool:
        """Whether a sample begins here; false for the second and later fragments of a text."""
        return self.fragment <= 0


class DrawnRecord(NamedTuple):
    """A record that a stream has drawn, on its way through the pipeline.

    Attributes:
      source: index of its source in the mixture.
      record_index: of the record in its source.
      record: the record; None if it could not be read, and after it was tokenised.
      examples: of its samples or their fragments; each fits a row.
      cut: number of samples that were cut to fit.
      dropped: the samples that are left out because they do not fit.
      filtered: whether a transformation removed the record.
      message: why the record could not be read, or why a sample was left out; else "".
    """

    source: int
    record_index: int
    record: Record | None = None
    examples: tuple[Example, ...] = ()
    cut: int = 0
    dropped: tuple[Example, ...] = ()
    filtered: bool = False
    message: str = ""

    @property
    def unreadable(self) -> bool:
        """Whether the record could not be read, transformed or tokenised."""
        return bool(self.message) and not self.dropped


class Prompt(NamedTuple):
    """The input of generation: `tokens_L` and `image_query_L` as in `Tokens`, pixels [I, H, W, 3] uint8."""

    tokens_L: np.ndarray
    image_query_L: np.ndarray
    images_IHWC: np.ndarray


def tokenize_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, queries: int) -> Tokens:
    """Turns pieces into ids.

    An image is `<img>`, `queries` times `<imgpad>` and `</img>`: 258 tokens at full size, never supervised (the
    released tokenizer writes the file's path into those slots; features overwrite them in any case).
    """
    image_block = np.full(queries + 2, tokenizer.special.imgpad, np.int32)
    image_block[0] = tokenizer.special.img
    image_block[-1] = tokenizer.special.img_end
    ids: list[np.ndarray] = []
    image_blocks: list[tuple[int, int]] = []  # (first slot of the block, number of the image that fills it)
    image_numbers: dict[int, int] = {}
    supervised: list[bool] = []
    length = 0
    for piece in pieces:
        if piece.kind == "text":
            piece_ids = tokenizer.encode_array(str(piece.value))
        elif piece.kind == "special":
            piece_ids = np.array([tokenizer.special_by_name[str(piece.value)]], np.int32)
        else:
            piece_ids = image_block
            image_blocks.append((length + 1, image_numbers.setdefault(int(piece.value), len(image_numbers))))
        ids.append(piece_ids)
        supervised.append(piece.supervised)
        length += len(piece_ids)
    tokens_L = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    is_target_L = np.repeat(np.array(supervised, bool), [len(piece_ids) for piece_ids in ids])
    image_query_L = np.full(length, -1, np.int32)
    for start, number in image_blocks:
        image_query_L[start : start + queries] = np.arange(number * queries, (number + 1) * queries)
    return Tokens(tokens_L, is_target_L, image_query_L, tuple(image_numbers))


def make_example(sample: Record, source: int, tokenizer: Tokenizer, queries: int) -> Example:
    """The example of a whole sample. No pixel is decoded.

    Args:
      sample: a checked record with one sample (`schema.samples_of`).
      source: index of its source in the mixture.
      tokenizer: of the run.
      queries: feature slots per image.

    Raises:
      UserError: naming the record, if its content does not fit its task or a box leaves its image.
    """
    return example_of(sample, source, tokenize_pieces(training_pieces(sample), tokenizer, queries))


def example_of(sample: Record, source: int, tokens: Tokens, *, fragment: int = -1) -> Example:
    """The example of a sample from the tokens of the whole sample or of one of its fragments."""
    sizes = stated_sizes(sample)
    return Example(
        source=source,
        record_id=sample.id,
        tokens=tokens,
        images=tuple(sample.images[k] for k in tokens.image_indices),
        stated_sizes=tuple(sizes[k] for k in tokens.image_indices),
        fragment=fragment,
    )


def decode_images(images: Sequence[bytes], image_size: int, sizes: Sequence[Size | None] = ()) -> np.ndarray:
    """Pixels [I, H, W, 3] uint8 of encoded images.

    Args:
      images: encoded.
      image_size: H = W.
      sizes: the size that each image must have, None for any; empty if no size is known.

    Raises:
      UserError: if an image cannot be read or has another size.
    """
    images_IHWC = np.empty((len(images), image_size, image_size, 3), np.uint8)
    for index, payload in enumerate(images):
        decode_into(payload, images_IHWC[index], stated=sizes[index] if sizes else None)
    return images_IHWC


def make_prompt(
    pieces: Sequence[Piece],
    images: Sequence[bytes],
    tokenizer: Tokenizer,
    queries: int,
    image_size: int,
    sizes: Sequence[Size | None] = (),
) -> Prompt:
    """A prompt for generation from `formats.prompt_pieces` or `formats.chat_pieces(.., open_end=True)`.

    Args:
      pieces: of the prompt.
      images: encoded images that the pieces index.
      tokenizer: of the run.
      queries: feature slots per image.
      image_size: H = W.
      sizes: the size that each image must have (`schema.stated_sizes`); empty for images without a record.

    Raises:
      UserError: if an image cannot be read or has another size.
    """
    tokens = tokenize_pieces(pieces, tokenizer, queries)
    used = [images[k] for k in tokens.image_indices]
    used_sizes = [sizes[k] for k in tokens.image_indices] if sizes else ()
    return Prompt(tokens.tokens_L, tokens.image_query_L, decode_images(used, image_size, used_sizes))
