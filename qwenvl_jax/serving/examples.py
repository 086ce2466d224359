"""Questions with pictures that the page offers to try: from the held-out dialogues of the model's own run."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from qwenvl_jax.config import SourceConfig
from qwenvl_jax.data.images.exact import FORMATS
from qwenvl_jax.data.readers.source import open_source
from qwenvl_jax.data.readers.tfds_folder import PREFIX
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import storage
from qwenvl_jax.runtime.errors import StorageError, UserError

MAX_EXAMPLES = 6
_MAX_PICTURE_BYTES = 1 << 20
_READ = 200  # records that are looked at
_SPLIT = "heldout"


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


def examples_of(mixture: Sequence[SourceConfig]) -> tuple[ExampleQuestion, ...]:
    """Up to MAX_EXAMPLES first questions from the held-out dialogues of a mixture.

    Only records on this machine's disk are looked at. Without any, there are no examples: nothing depends on them.
    """
    for source in mixture:
        if source.task != "dialogue" or source.records.startswith(PREFIX):
            continue
        try:
            if storage.is_remote(storage.path(source.records)):
                continue
            if found := tuple(_examples(source)):
                return found
        except (UserError, StorageError, OSError):
            continue
    return ()


def _examples(source: SourceConfig) -> Iterator[ExampleQuestion]:
    records = open_source(source, _SPLIT)
    count = len(records)
    step = max(1, count // _READ)
    asked: set[str] = set()
    for index in range(0, count, step):
        example = _example_of(records[index])
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
    question = "".join(part.get("text", "") for part in parts).strip()
    if len(images) != 1 or not question or any(len(image) > _MAX_PICTURE_BYTES for image in images):
        return None
    return ExampleQuestion(question, images)
