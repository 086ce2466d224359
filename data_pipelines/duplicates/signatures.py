"""Signatures of pictures and texts that stay close if the picture or the text is changed a little.

A picture's is the perceptual hash of ImageHash with 16 x 16 bits (`phash`): the signs of the low frequencies of its
grey values at 64 x 64 pixels. `benchmarks/near_duplicates.py` gives, on 200 composed photographs, the bits by which a
change moves the hash (99th percentile), and those between the two most similar of all 200:

                      JPEG quality 30   half size   224 x 224   grey     most similar others
    phash, 256 bits          6              4           2         0              90
    phash, 64 bits           2              2           2         0              12
    PDQ, 256 bits            6             28          24         2              94

So phash with 256 bits was chosen: a duplicate is 15 times closer than another picture. A crop of 10 % (138 bits) and a
flip (136) move every hash as far as another picture is; both are covered by hashing cropped and flipped pictures too.

A text's is its MinHash over groups of characters, five for English and two for Chinese.
"""

from __future__ import annotations

import unicodedata

import imagehash
import numpy as np
from PIL import Image, ImageOps
from rensa import RMinHash

from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.languages import guess_language

PICTURE_BYTES = 32
PERMUTATIONS = 120
_SIDE = 16
_DRAFT_PX = 256  # a JPEG is decoded at no more than needed; phash starts from 64 x 64
# A picture of one colour, or nearly, has few bits set, all by noise.
_LEAST_BITS = 64
_SEED = 1
_SHINGLE = {"en": 5, "zh": 2}  # characters


def picture_of(payload: bytes) -> Image.Image:
    """The decoded picture for `hash_of`.

    Raises:
      UserError: if it cannot be decoded.
    """
    return decode_image(payload, _DRAFT_PX)


def hash_of(image: Image.Image) -> np.ndarray | None:
    """The perceptual hash, uint8 [32]; None for a picture that is too plain to be recognised by it."""
    bits = imagehash.phash(image, hash_size=_SIDE).hash
    return np.packbits(bits) if int(bits.sum()) >= _LEAST_BITS else None


def flipped(image: Image.Image) -> Image.Image:
    """The picture as in a mirror."""
    return ImageOps.mirror(image)


def distances(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Bits in which hashes differ: uint8 [32] and [N, 32] give int [N]."""
    return np.bitwise_count(others ^ one).sum(axis=1, dtype=np.int64)


def plain_text(text: str) -> str:
    """Letters and digits of a text in lower case, words separated by one space: what its duplicates have in common."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(x if x.isalnum() else " " for x in folded).split())


def shingles(text: str) -> list[str]:
    """The groups of characters of a plain text that MinHash compares; the text itself if it is shorter."""
    if guess_language(text) == "zh":
        text = text.replace(" ", "")
        length = _SHINGLE["zh"]
    else:
        length = _SHINGLE["en"]
    return [text[start : start + length] for start in range(max(len(text) - length, 0) + 1)]


def minhash(text: str) -> np.ndarray | None:
    """The MinHash of a text's shingles, uint32 [PERMUTATIONS]; None if the text has no letter and no digit."""
    plain = plain_text(text)
    if not plain:
        return None
    sketch = RMinHash(num_perm=PERMUTATIONS, seed=_SEED)
    sketch.update(shingles(plain))
    return np.array(sketch.digest(), np.uint32)
