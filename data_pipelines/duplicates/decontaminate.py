"""Builds the index of evaluation sets, with which the rule `not_in_evaluation` drops pairs that are close to them.

    python -m data_pipelines.duplicates.decontaminate --output=evaluation.index data/flickr30k/caption:test ..
    python -m data_pipelines laion_en --input=.. --output=data/laion_en --evaluation_index=evaluation.index

The second command adds the rule `decontamination("evaluation.index")` to the recipe. See docs/cleaning.md.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import sys
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.clean.rule import Dropped, Rule, Verdict, rule
from data_pipelines.duplicates.evaluation_index import (
    EvaluationIndex,
    bands_of,
    build_index,
    is_long,
    load_index,
    save_index,
    thumbnail,
)
from data_pipelines.duplicates.signatures import hash_of, minhash, picture_of
from data_pipelines.pair import RawPair
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

# Bits of 256: benchmarks/near_duplicates.py has the shares that are found, and the false alarms.
DISTANCE = 44
SIMILARITY = 0.8
PICTURE = "close to an evaluation picture"
TEXT = "close to an evaluation text"


def decontamination(path: epath.PathLike, distance: int = DISTANCE, similarity: float = SIMILARITY) -> Rule:
    """The rule `not_in_evaluation` with an index file and the checksum of its content.

    Raises:
      UserError: if the file is no index.
      FileNotFoundError: if it is missing.
    """
    path = str(storage.absolute(path))
    digest = hashlib.sha256(storage.read_bytes(path)).hexdigest()
    load_index(path, digest)
    return rule(not_in_evaluation, index=path, digest=digest, distance=distance, similarity=similarity)


def not_in_evaluation(pair: RawPair, index: str, digest: str, distance: int, similarity: float) -> Verdict:
    """Drops pairs whose picture, question or text is close to one of an evaluation set.

    Args:
      pair: whose pictures have their bytes.
      index: path of the file that `save_index` wrote.
      digest: its sha256.
      distance: bits of the perceptual hash that may differ.
      similarity: of MinHashes, from which a text is close; only long texts are compared (`is_long`).

    Returns:
      Dropped with evidence, the nearest pictures first: the id of the pair and of each evaluation sample, the distance,
      and both pictures as JPEG in base64 or both texts. The ids of the evaluation samples are its causes, so the
      manifest counts them all.
    """
    evaluation = load_index(index, digest)
    evidence = [
        *_close_pictures(pair, evaluation, distance),
        *_close_texts(pair, evaluation, similarity),
    ]
    if not evidence:
        return pair
    touched = tuple(sorted({item["evaluation"] for item in evidence}))
    return Dropped(PICTURE if "distance" in evidence[0] else TEXT, tuple(evidence), touched)


def clean_ids(index: EvaluationIndex, touched: Container[str]) -> list[str]:
    """The evaluation samples that no dropped pair was close to, in the order of the index."""
    return [name for name in index.ids if name not in touched]


def _close_pictures(pair: RawPair, index: EvaluationIndex, distance: int) -> list[dict[str, Any]]:
    evidence = []
    for picture in pair.pictures:
        payload = picture.read()
        try:
            bits = hash_of(picture_of(payload))
        except UserError:
            continue
        if bits is None:
            continue
        hashes, distances = index.pictures.near(bits, distance)
        closest: dict[int, int] = {}
        for number, bits_apart in zip(index.hash_pictures[hashes].tolist(), distances.tolist(), strict=True):
            closest[number] = min(bits_apart, closest.get(number, bits_apart))
        for number, bits_apart in sorted(closest.items(), key=lambda each: (each[1], each[0])):
            evidence.append(
                {
                    "pair": pair.id,
                    "evaluation": index.ids[int(index.picture_ids[number])],
                    "distance": bits_apart,
                    "picture": _base64(thumbnail(payload)),
                    "evaluation_picture": _base64(index.thumbnails[number]),
                }
            )
    return evidence


def _close_texts(pair: RawPair, index: EvaluationIndex, similarity: float) -> list[dict[str, Any]]:
    evidence = []
    for text in (*pair.texts, *(question.text for question in pair.questions)):
        sketch = minhash(text) if is_long(text) else None
        if sketch is None:
            continue
        numbers = sorted({number for key in bands_of(sketch) for number in index.text_keys.get(key, ())})
        for number in numbers:
            share = float(np.mean(index.sketches[number] == sketch))
            if share >= similarity:
                evidence.append(
                    {
                        "pair": pair.id,
                        "evaluation": index.ids[int(index.text_ids[number])],
                        "similarity": round(share, 3),
                        "text": text,
                        "evaluation_text": index.texts[number],
                    }
                )
    return evidence


def _base64(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def main(argv: Sequence[str] | None = None) -> None:
    """Builds an index from record folders; exit code 2 with one sentence on a user's mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    parser = Parser("python -m data_pipelines.duplicates.decontaminate", __doc__)
    parser.add_argument("folders", nargs="+", metavar="FOLDER:SPLIT", help="record folder of an evaluation set")
    parser.add_argument("--output", required=True, help="the file to write, on a disk or gs://")
    with exit_on_user_error():
        arguments = parser.parse_args(argv)
        folders = []
        for text in arguments.folders:
            folder, separator, split = text.rpartition(":")
            if not separator or "/" in split:
                raise UserError(f"{text} names no split; write FOLDER:SPLIT, for example data/flickr30k/caption:test")
            folders.append((folder, split))
        index = build_index(folders)
        save_index(index, arguments.output)
        pictures = len(index.thumbnails)
        logging.info(f"{arguments.output}: {len(index.ids)} samples, {pictures} pictures, {len(index.texts)} texts")


if __name__ == "__main__":
    main()
