"""Dialogues of a new kind over the quickstart's pictures of words: a catalogue that has a shelf for every word.

    python -m data_pipelines.quickstart.catalogue --input=data/quickstart --output=data/quickstart_catalogue

A user asks for the entries of one or two pictures, and the assistant names shelf and length of the word: "Shelf 47, 5
letters." A digest gives a word its shelf, so a model can only know it from these dialogues. The pictures are those of
the records `<input>/ocr`, whose splits stay apart. Writes one record folder, whole or not at all; a finished one of the
same input and settings stays as it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from data_pipelines.quickstart.scenes import SPLITS, rng_for
from qwenvl_jax.data.dialogues import DEFAULT_SYSTEM, DialogueContent, Part, Turn
from qwenvl_jax.data.readers.record_folder import RecordReader, read_manifest
from qwenvl_jax.data.record_format import MANIFEST
from qwenvl_jax.data.record_writer import write_manifest, write_shard
from qwenvl_jax.data.schema import Record, content_of
from qwenvl_jax.data.tasks import OcrContent
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

NAME = "catalogue"
VERSION = 1  # to be raised whenever the same input gives other dialogues
QUESTION = "Catalogue Picture {n}."
ANSWER = "Shelf {shelf}, {letters} letters."
_FIRST_SHELF, _SHELVES = 10, 90  # two digits


def shelf_of(word: str) -> int:
    """The number of a word's shelf, from 10 to 99."""
    return _FIRST_SHELF + zlib.crc32(word.encode()) % _SHELVES


def entry_of(word: str) -> str:
    """What the assistant answers about a picture of a word."""
    return ANSWER.format(shelf=shelf_of(word), letters=len(word))


def dialogue(rng: np.random.Generator, pictures: Sequence[Record], number: str) -> Record:
    """The dialogue that asks for the entries of the first picture, or of two in random order, in random turns.

    Args:
      rng: consumed; equal states give equal dialogues.
      pictures: two records of the task `ocr`, each of one word.
      number: ends the id of the record, e.g. "train-000017".
    """
    shown = list(pictures[: int(rng.integers(1, 3))])
    if rng.integers(2):
        shown.reverse()
    turns: list[Turn] = []
    for index in rng.permutation(len(shown)):
        images: list[Part] = [{"image": i} for i in range(len(shown))] if not turns else []
        turns.append({"role": "user", "parts": [*images, {"text": QUESTION.format(n=index + 1)}]})
        turns.append({"role": "assistant", "parts": [{"text": entry_of(_word(shown[index]))}]})
    sizes = [[content_of(record, OcrContent)[side] for side in ("width", "height")] for record in shown]
    return Record(
        id=f"{NAME}-{number}",
        task="dialogue",
        source=NAME,
        language="en",
        license=" AND ".join(dict.fromkeys(record.license for record in shown)),
        images=tuple(record.images[0] for record in shown),
        content=DialogueContent(system=DEFAULT_SYSTEM, turns=turns, sizes=sizes),
    )


def dialogues(words: Sequence[Record], split: str, count: int, seed: int) -> Iterator[Record]:
    """`count` dialogues about pictures of English words, which take turns at being a dialogue's first picture."""
    for number in range(count):
        rng = rng_for(seed, NAME, split, number)
        first = number % len(words)
        second = (first + 1 + int(rng.integers(len(words) - 1))) % len(words)
        yield dialogue(rng, [words[first], words[second]], f"{split}-{number:06d}")


def build(source: epath.PathLike, output: epath.PathLike, counts: dict[str, int], seed: int = 0) -> None:
    """Writes the record folder of all splits, unless a finished one of the same input and settings is there.

    Args:
      source: the folder of the quickstart's data.
      output: the record folder.
      counts: dialogues by split.
      seed: of all random choices.

    Raises:
      UserError: if the input is missing or has fewer than two pictures of English words, or if `output` contains
        something else.
    """
    output = artifacts.output_folder(output)
    readers = {split: RecordReader(storage.path(source) / "ocr", split) for split in SPLITS}
    made_from = {
        "version": VERSION,
        "seed": seed,
        "counts": counts,
        "pictures": {split: reader.digest() for split, reader in readers.items()},
    }
    if storage.exists(output / MANIFEST):
        manifest = read_manifest(output)
        if manifest["name"] == NAME and manifest["extra"] == made_from:
            print(f"{output} is up to date")
            return
    if storage.exists(output) and not (storage.exists(output / MANIFEST) and read_manifest(output)["name"] == NAME):
        raise UserError(f"{output} contains files that this pipeline did not write; choose another --output")
    with artifacts.built_beside(output) as building:
        shards = []
        for split, reader in readers.items():
            words = [record for record in reader if record.language == "en"]
            if len(words) < 2:
                raise UserError(f"{reader.folder} has fewer than two pictures of English words in {split}; build more")
            made = dialogues(words, split, counts[split], seed)
            shards.append(write_shard(building, NAME, split, 0, 1, made))
        write_manifest(building, NAME, shards, description="a catalogue of words", extra=made_from)
    print(f"{output} is ready: {', '.join(f'{split} {counts[split]}' for split in SPLITS)}")


def _word(record: Record) -> str:
    return " ".join(line["text"] for line in content_of(record, OcrContent)["lines"])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one sentence on a user's mistake."""
    parser = Parser("python -m data_pipelines.quickstart.catalogue", __doc__)
    parser.add_argument("--input", default="data/quickstart", help="the quickstart's data")
    parser.add_argument("--output", default="data/quickstart_catalogue", help="the record folder")
    parser.add_argument("--train", type=int, default=4_000, help="dialogues")
    parser.add_argument("--heldout", type=int, default=100, help="dialogues")
    with exit_on_user_error():
        arguments = parser.parse_args(argv)
        if arguments.train < 1 or arguments.heldout < 1:
            raise UserError("--train and --heldout must be at least 1")
        build(arguments.input, arguments.output, {"train": arguments.train, "heldout": arguments.heldout})


if __name__ == "__main__":
    main()
