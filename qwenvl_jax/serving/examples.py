"""Questions with pictures that the page offers to try: from the held-out dialogues of the model's own run."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from qwenvl_jax.config import Config, DataConfig, SourceConfig
from qwenvl_jax.data.images.exact import FORMATS, decode_image
from qwenvl_jax.data.readers.source import Source, has_splits, open_source
from qwenvl_jax.data.readers.tfds_folder import PREFIX
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

MAX_EXAMPLES = 6
_MAX_PICTURE_BYTES = 1 << 20
_READ = 200  # records that are looked at
_SPLIT = "heldout"
_NAME = "Picture 1:"  # as conversations of the released fine-tuning write it; the page names its pictures itself


@dataclasses.dataclass(frozen=True)
class ExampleQuestion:
    """A question about pictures.

    Attributes:
      question: the text.
      images: encoded, in the order in which they are shown.
    """

    question: str
    images: tuple[bytes, ...]

    def media_type(self, index: int) -> str:
        """The type of an image, such as image/png."""
        with Image.open(io.BytesIO(self.images[index]), formats=FORMATS) as image:
            return image.get_format_mimetype() or "image/png"


def examples_of(config: Config) -> tuple[ExampleQuestion, ...]:
    """Up to MAX_EXAMPLES first questions from the held-out dialogues of a run.

    These are the split `heldout` of a source, the share of a JSON file that is not trained on, or a source whose loss
    alone was measured. Only records on this machine's disk are looked at. Without any, there are no examples: nothing
    depends on them.
    """
    trained_on = [(source, True) for source in config.data.mixture]
    measured = [(source, False) for source in config.evaluation.mixture]
    for source, is_trained_on in (*trained_on, *measured):
        if source.task != "dialogue" or source.records.startswith(PREFIX):
            continue
        try:
            if storage.is_remote(storage.path(source.records)):
                continue
            held_out = _held_out(source, config.data, is_trained_on=is_trained_on)
            if held_out is not None and (found := tuple(_examples(held_out))):
                return found
        except (UserError, StorageError, OSError):
            continue
    return ()


def _held_out(source: SourceConfig, data: DataConfig, *, is_trained_on: bool) -> Source | None:
    """The records of a source on which a run was not trained; None if there are none."""
    share = data.heldout_share if is_trained_on else 0.0
    if is_trained_on and not share and not has_splits(source):
        return None
    return open_source(source, _SPLIT, max_corrupt_share=data.max_corrupt_share, heldout_share=share)


def _examples(records: Source) -> Iterator[ExampleQuestion]:
    count = len(records)
    step = max(1, count // _READ)
    asked: set[str] = set()
    for index in range(0, count, step):
        try:
            example = _example_of(records[index])
            if example is not None:
                decode_image(example.images[0])
                example.question.encode()  # the page is UTF-8, which cannot express half a surrogate pair
        except Exception:  # readers and decoders raise nearly anything for damaged records
            continue
        if example is not None and example.question not in asked:
            asked.add(example.question)
            yield example
        if len(asked) == MAX_EXAMPLES:
            return


def _example_of(record: Record) -> ExampleQuestion | None:
    """The first question of a dialogue; None if it has not one picture, a large one, or regions in its text.

    Regions are drawn on the picture that is shown last; with several pictures, a dialogue may speak of another.
    """
    content: Mapping[str, Any] = record.content
    parts = content["turns"][0]["parts"]
    if not all("text" in part or "image" in part for part in parts) or any("tag" in part for part in parts):
        return None
    images = tuple(record.images[part["image"]] for part in parts if "image" in part)
    question = "".join(part.get("text", "") for part in parts).strip().removeprefix(_NAME).strip()
    if len(images) != 1 or not question or any(len(image) > _MAX_PICTURE_BYTES for image in images):
        return None
    return ExampleQuestion(question, images)
