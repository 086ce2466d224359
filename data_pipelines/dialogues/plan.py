"""The plan: which pictures each dialogue is about, a function of the seed and the index alone."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from data_pipelines.dialogues.index import Index, Position
from data_pipelines.dialogues.job import DialogueJob
from qwenvl_jax.runtime import artifacts
from qwenvl_jax.runtime.errors import UserError

CONCATENATION = "concatenation"
SELF_INSTRUCTION = "self_instruction"
TEXT = "text"

_PICTURES_SHARES = (0.45, 0.35, 0.2)  # of the dialogues about one, two and three pictures
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dialogue that is to be made.

    Attributes:
      number: of the dialogue in the set.
      way: CONCATENATION, SELF_INSTRUCTION or TEXT.
      pictures: of each picture the positions of its records; for a text the position of its record alone.
    """

    number: int
    way: str
    pictures: list[list[Position]]


def planned(job: DialogueJob, index: Index) -> list[Entry]:
    """All dialogues in their order.

    In one pass every picture is dealt to one dialogue, so no picture is in a dialogue twice, and with one pass none in
    two dialogues. The same holds for texts.

    Raises:
      UserError: if there are fewer pictures or texts than `count` needs.
    """
    rng = random.Random(f"{job.seed}/plan")
    dealt = [each for number in range(job.passes) for each in _pass(job, index, number)]
    if not dealt:
        raise UserError("the records have no picture with annotations in English or Chinese; name others in --records")
    rng.shuffle(dealt)
    texts = list(index.texts)
    rng.shuffle(texts)
    text_count, picture_count = _counts(job, len(dealt), len(texts))
    chosen: list[tuple[str, list[list[Position]]]] = dealt[:picture_count]
    chosen += [(TEXT, [[position]]) for position in texts[:text_count]]
    rng.shuffle(chosen)
    return [Entry(number, way, pictures) for number, (way, pictures) in enumerate(chosen)]


def _pass(job: DialogueJob, index: Index, number: int) -> Iterator[tuple[str, list[list[Position]]]]:
    for language, pictures in sorted(index.pictures.items()):
        rng = random.Random(f"{job.seed}/{number}/{language}")
        order = sorted(pictures)
        rng.shuffle(order)
        while order:
            if rng.random() < job.self_instruction:
                way, count = SELF_INSTRUCTION, 1
            else:
                way, count = CONCATENATION, rng.choices((1, 2, 3), _PICTURES_SHARES)[0]
            yield way, [pictures[picture] for picture in order[-count:]]
            del order[-count:]


def _counts(job: DialogueJob, dealt: int, texts: int) -> tuple[int, int]:
    """How many dialogues are texts, and how many are about pictures."""
    share = job.text_share
    if job.count:
        text_count = round(job.count * share)
        if text_count > texts:
            raise UserError(
                f"--count={job.count} with --text_share={share:g} needs {text_count} text dialogues, and --text has "
                f"{texts}; name more or lower one of the two"
            )
        if job.count - text_count > dealt:
            raise UserError(
                f"--count={job.count} needs {job.count - text_count} dialogues about pictures, and the pictures allow "
                f"{dealt}; lower it, name more --records, or raise --passes, which uses pictures again"
            )
        return text_count, job.count - text_count
    wanted = round(dealt * share / (1 - share))
    if wanted > texts:
        _log.info("%d text dialogues would be %.0f%%; there are %d", wanted, 100 * share, texts)
    return min(wanted, texts), dealt


def shard_count(job: DialogueJob, entries: int) -> int:
    """How many shards the dialogues fill."""
    return -(-entries // job.dialogues_per_shard)


def save_plan(job: DialogueJob, entries: list[Entry]) -> None:
    """Writes the entries of every shard, then how many shards there are."""
    count = shard_count(job, len(entries))
    for shard in range(count):
        begin = shard * job.dialogues_per_shard
        members = entries[begin : begin + job.dialogues_per_shard]
        artifacts.write_json(_path(job, shard), [dataclasses.asdict(entry) for entry in members])
    artifacts.write_json(job.work / "plan.json", {"shards": count, "dialogues": len(entries)})


def planned_shards(job: DialogueJob) -> Iterable[int]:
    """The numbers of all shards."""
    return range(artifacts.read_json(job.work / "plan.json")["shards"])


def shard_entries(job: DialogueJob, shard: int) -> list[Entry]:
    """The entries of a shard."""
    values: list[dict[str, Any]] = artifacts.read_json(_path(job, shard))
    return [
        Entry(value["number"], value["way"], [[(a, b) for a, b in picture] for picture in value["pictures"]])
        for value in values
    ]


def _path(job: DialogueJob, shard: int) -> epath.Path:
    return job.work / "plan" / f"{shard:06d}.json"
