"""Entry of the plan -> record: the pictures, the dialogue about them and the licences of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from data_pipelines.dialogues.concatenation import concatenated, sizes_of
from data_pipelines.dialogues.index import picture_at
from data_pipelines.dialogues.job import DialogueJob, reader
from data_pipelines.dialogues.picture import AnnotatedPicture
from data_pipelines.dialogues.plan import SELF_INSTRUCTION, TEXT, Entry
from data_pipelines.dialogues.self_instruction import Conversation, outcome
from data_pipelines.dialogues.texts import text_dialogue
from data_pipelines.pair import FailedRow
from qwenvl_jax.data.dialogues import Turn
from qwenvl_jax.data.formats import training_pieces
from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.data.tasks import Content
from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.runtime.replies import Replies


@dataclasses.dataclass(frozen=True)
class Composed:
    """A dialogue record, with the kinds of its exchanges and the corpora of its pictures."""

    record: Record
    kinds: tuple[str, ...]
    corpora: tuple[str, ...]


def composed(job: DialogueJob, entry: Entry) -> Composed | FailedRow:
    """The dialogue of an entry; a failed row if the annotations or the replies of the model do not allow one."""
    try:
        made = _composed(job, entry)
        if isinstance(made, Composed):
            training_pieces(check_record(made.record))
    except UserError as error:
        return FailedRow("malformed annotations", str(error))
    return made


def _composed(job: DialogueJob, entry: Entry) -> Composed | FailedRow:
    seed = f"{job.seed}/{entry.number}"
    if entry.way == TEXT:
        ((folder, number),) = entry.pictures[0]
        source = reader(job.folders[folder], job.split)[number]
        text = text_dialogue(source, entry.number, seed)
        assert text is not None, "the index leaves such texts out"
        return Composed(text, (TEXT,), (source.source,))
    pictures = [picture_at(job, positions) for positions in entry.pictures]
    if entry.way == SELF_INSTRUCTION:
        assert job.endpoint is not None
        conversation = Conversation(pictures[0], job.endpoint, seed_of(job, entry))
        answered = outcome(conversation, Replies(job.replies))
        if isinstance(answered, FailedRow):
            return answered
        return _of(entry, pictures, answered, (SELF_INSTRUCTION,))
    dialogue = concatenated(pictures, seed, job.weights)
    if dialogue is None:
        return FailedRow("nothing to ask", f"about one of {len(pictures)} pictures")
    return _of(entry, pictures, dialogue.turns, dialogue.kinds)


def seed_of(job: DialogueJob, entry: Entry) -> int:
    """The seed that the language model gets for a dialogue."""
    return (job.seed * 1_000_003 + entry.number) % (1 << 31)


def _of(entry: Entry, pictures: Sequence[AnnotatedPicture], turns: list[Turn], kinds: tuple[str, ...]) -> Composed:
    content: dict[str, Any] = {"turns": turns, "sizes": sizes_of(pictures)}
    record = Record(
        id=f"dialogue-{entry.number:08d}",
        task="dialogue",
        source=entry.way,
        language=pictures[0].language,
        license=joined_licenses([license for picture in pictures for license in picture.licenses]),
        images=tuple(picture.encoded for picture in pictures),
        content=cast(Content, content),
    )
    return Composed(record, kinds, tuple(sorted({corpus for picture in pictures for corpus in picture.corpora})))


def joined_licenses(licenses: Sequence[str]) -> str:
    """All licences as one expression; a choice ("A OR B") keeps its brackets."""
    distinct = sorted(set(licenses))
    if len(distinct) == 1:
        return distinct[0]
    return " AND ".join(f"({each})" if " OR " in each else each for each in distinct)
