"""The pictures and texts of evaluation sets, which a corpus must not contain, as signatures in one file.

    index = build_index([("data/flickr30k/caption", "test"), ("data/vqav2/vqa", "val")])
    save_index(index, "evaluation.index")

Of each picture the file has the hashes of the whole, of crops of 5 % and 10 % of its sides, and of all these mirrored,
because these changes move a hash far. So a picture has 70 hashes of 32 bytes; a set of 100,000 pictures takes 1 GB of
memory with its lookup tables.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from data_pipelines.duplicates.hash_index import HashIndex
from data_pipelines.duplicates.signatures import PERMUTATIONS, flipped, hash_of, minhash, picture_of, plain_text
from data_pipelines.thumbnails import jpeg_thumbnail
from qwenvl_jax.data.annotations import contents_of
from qwenvl_jax.data.evaluation_content import EVALUATION
from qwenvl_jax.data.languages import guess_language
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import UserError

VERSION = 1
CROPS = ((0.05, 3), (0.10, 5))  # share of each side that is cut away, offsets along each side
THUMBNAIL_PX = 96
# Shorter texts are common to many sets: "What color is the car?" is asked in training and evaluation sets alike.
LEAST_CHARACTERS = {"en": 40, "zh": 15}
_TEXT_KEYS = ("question", "caption", "text")


@dataclasses.dataclass(frozen=True)
class EvaluationIndex:
    """Signatures of evaluation sets.

    Attributes:
      ids: of the samples, "source/record id"; pictures and texts refer to them by index.
      hashes: uint8 [N, 32].
      hash_pictures: int32 [N], the picture of each hash.
      picture_ids: int32 [P], the id of each picture.
      thumbnails: one JPEG per picture.
      texts: long enough to be compared.
      text_ids: int32 [T].
      sketches: uint32 [T, PERMUTATIONS].
    """

    ids: tuple[str, ...]
    hashes: np.ndarray
    hash_pictures: np.ndarray
    picture_ids: np.ndarray
    thumbnails: tuple[bytes, ...]
    texts: tuple[str, ...]
    text_ids: np.ndarray
    sketches: np.ndarray

    @functools.cached_property
    def pictures(self) -> HashIndex:
        """The lookup of hashes."""
        return HashIndex(self.hashes)

    @functools.cached_property
    def text_keys(self) -> Mapping[bytes, tuple[int, ...]]:
        """Which texts have a band of six minima: band number and minima -> indices."""
        keys: dict[bytes, list[int]] = {}
        for index, sketch in enumerate(self.sketches):
            for key in bands_of(sketch):
                keys.setdefault(key, []).append(index)
        return {key: tuple(indices) for key, indices in keys.items()}


def bands_of(sketch: np.ndarray) -> list[bytes]:
    """The keys under which a MinHash is found: 20 bands of 6 minima."""
    return [bytes([band]) + part.tobytes() for band, part in enumerate(sketch.reshape(20, 6))]


def is_long(text: str) -> bool:
    """Whether a text is long enough to tell that it was copied."""
    return len(plain_text(text)) >= LEAST_CHARACTERS[guess_language(text)]


def variants(image: Image.Image) -> Iterator[Image.Image]:
    """The picture, its crops, and all of them mirrored."""
    width, height = image.size
    boxes = [(0, 0, width, height)]
    for share, steps in CROPS:
        across = max(1, round(width * (1 - share)))
        down = max(1, round(height * (1 - share)))
        for left in np.linspace(0, width - across, steps).round().astype(int).tolist():
            for top in np.linspace(0, height - down, steps).round().astype(int).tolist():
                boxes.append((left, top, left + across, top + down))
    for box in dict.fromkeys(boxes):
        crop = image.crop(box)
        yield crop
        yield flipped(crop)


def thumbnail(payload: bytes) -> bytes:
    """A small JPEG of a picture, for the report."""
    return jpeg_thumbnail(picture_of(payload), THUMBNAIL_PX)


def build_index(folders: Sequence[tuple[epath.PathLike, str]]) -> EvaluationIndex:
    """The index of record folders, each with its split.

    A picture that several records share has one entry; its id is the first record's.

    Raises:
      UserError: if a folder is not a record folder.
    """
    ids: dict[str, int] = {}
    pictures: dict[bytes, int] = {}
    thumbnails: list[bytes] = []
    hashes: list[np.ndarray] = []
    owners: list[int] = []
    texts: dict[str, tuple[int, np.ndarray]] = {}
    for folder, split in folders:
        for record in RecordReader(folder, split):
            number = ids.setdefault(f"{record.source}/{record.id}", len(ids))
            for payload in record.images:
                digest = hashlib.sha256(payload).digest()
                if digest in pictures or not _is_readable(payload):
                    continue
                pictures[digest] = number
                for variant in variants(picture_of(payload)):
                    if (bits := hash_of(variant)) is not None:
                        hashes.append(bits)
                        owners.append(len(thumbnails))
                thumbnails.append(thumbnail(payload))
            for text in _texts_of(record):
                sketch = minhash(text) if is_long(text) and text not in texts else None
                if sketch is not None:
                    texts[text] = (number, sketch)
    return EvaluationIndex(
        ids=tuple(ids),
        hashes=np.array(hashes, np.uint8).reshape(-1, 32),
        hash_pictures=np.array(owners, np.int32),
        picture_ids=np.array(list(pictures.values()), np.int32),
        thumbnails=tuple(thumbnails),
        texts=tuple(texts),
        text_ids=np.array([number for number, _ in texts.values()], np.int32),
        sketches=np.array([sketch for _, sketch in texts.values()], np.uint32).reshape(-1, PERMUTATIONS),
    )


def _is_readable(payload: bytes) -> bool:
    """Benchmarks keep pictures that were lost or damaged, because their questions count."""
    try:
        picture_of(payload)
    except (UserError, OSError, ValueError):
        return False
    return True


def _texts_of(record: Record) -> Iterator[str]:
    content: Mapping[str, Any] = record.content
    if record.task == EVALUATION:
        for question in content["questions"]:
            yield from [question["text"]] if "text" in question else question.get("answers", ())
        return
    for sample in contents_of(content):
        for key in _TEXT_KEYS:
            if isinstance(sample.get(key), str):
                yield sample[key]


def save_index(index: EvaluationIndex, path: epath.PathLike) -> None:
    """Writes the file; equal records give equal bytes."""
    facts = {
        "version": VERSION,
        "ids": index.ids,
        "texts": index.texts,
        "thumbnails": [base64.b64encode(picture).decode() for picture in index.thumbnails],
    }
    buffer = io.BytesIO()
    arrays = {field: getattr(index, field) for field in _ARRAYS}
    np.savez_compressed(buffer, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    storage.write_bytes(path, buffer.getvalue())


_ARRAYS = ("hashes", "hash_pictures", "picture_ids", "text_ids", "sketches")


@functools.lru_cache(maxsize=4)
def load_index(path: str, digest: str) -> EvaluationIndex:
    """Reads an index once per process.

    Args:
      path: of the file.
      digest: its sha256, so that a rule does not go on with another file of that name.

    Raises:
      UserError: if the file has changed, or is not an index.
    """
    payload = storage.read_bytes(path)
    if hashlib.sha256(payload).hexdigest() != digest:
        raise UserError(f"{path} has changed since the recipe was made; start the build again")
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            if facts["version"] != VERSION:
                raise ValueError(f"version {facts['version']}")
            thumbnails = tuple(base64.b64decode(picture) for picture in facts["thumbnails"])
            values = {field: arrays[field] for field in _ARRAYS}
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise UserError(f"{path} is no index of evaluation sets ({error}); build it again") from None
    return EvaluationIndex(tuple(facts["ids"]), thumbnails=thumbnails, texts=tuple(facts["texts"]), **values)
