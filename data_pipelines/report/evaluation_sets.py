"""What the manifest of an evaluation set says: its records and questions, and what the benchmark lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipelines.clean.evaluation import LOST, evaluation_pictures
from qwenvl_jax.data.evaluation_content import EVALUATION

# Reasons of a failed row that stands for all further rows of its file.
_UNFINISHED = ("the reader stopped", "rest of the file unreadable", "file damaged")


def is_evaluation(manifest: Mapping[str, Any]) -> bool:
    """Whether an output is an evaluation set."""
    return bool(manifest["job"]["tasks"] == [EVALUATION])


def counts_of(manifest: Mapping[str, Any]) -> tuple[int, int, int]:
    """The numbers of records, of questions and of pictures."""
    split = manifest["tasks"].get(EVALUATION, {"records": 0, "samples": 0, "images": 0})
    return split["records"], split["samples"], split["images"]


def losses(manifest: Mapping[str, Any]) -> list[str]:
    """Phrases on rows that could not be read, rows without a question, and pictures that are lost."""
    phrases = []
    if not counts_of(manifest)[1]:
        phrases.append("it has no question; compare its files with docs/benchmark_data.md")
    if any(reason in manifest["failed"]["reasons"] for reason in _UNFINISHED):
        phrases.append("the rest of a file could not be read, so questions are missing; get that file again")
    failed = manifest["failed"]["rows"]
    if failed:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest["failed"]["reasons"].items())
        phrases.append(f"rows that could not be read and are not asked: {failed:,} ({reasons}), see failed.jsonl")
    for each in manifest["rules"]:
        if dropped := sum(each["dropped"].values()):
            phrases.append(f"rows that have nothing to ask: {dropped:,}")
        if each["rule"] == evaluation_pictures.__name__:
            counts = {cause: each["causes"].get(cause, 0) for cause in LOST}
            phrases += [f"{cause}: {count:,} of {each['seen']:,} records" for cause, count in counts.items() if count]
    return phrases
