"""Four benchmarks from KGeography's maps, on which every division has a colour of its own.

debian_phrases     the name of a division, and the box of its area (form of RefCOCO)
debian_maps        the place that a map shows, its largest division, and which division is farther left, right, up
                   or down (form of GQA)
debian_yes_no      whether a division is above or left of another one (form of MME)
debian_capitals    capitals of divisions, without a picture (form of MMLU)
"""

from __future__ import annotations

import io
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from data_pipelines.corpora.kgeography import capitals_of
from data_pipelines.corpora.table import CORPORA
from data_pipelines.debian.benchmarks.files import jpeg, write_bytes, write_json, write_table
from data_pipelines.debian.benchmarks.stamps import yes_no_lines
from data_pipelines.pair import Box, RawPair

COMPARISONS = 6  # questions that compare two divisions of a map
EXAMPLES = 5  # of a subject, for few-shot prompts
LEAST_CAPITALS = 10  # of a map that becomes a subject
_PICTURES = "images/mscoco/images/train2014"


def maps(folder: Path, language: str) -> list[RawPair]:
    """The maps of `usr/share` of the package whose names are known in a language."""
    rows = CORPORA["kgeography"].read(folder)
    return [row for row in rows if isinstance(row, RawPair) and row.language == language]


def name_of(pair: RawPair) -> str:
    """The name of the files of a map."""
    return pair.id.partition("/")[0]


def divisions(pair: RawPair) -> dict[str, Box]:
    """The divisions of a map that are one area, with their boxes."""
    return {region.phrase: region.boxes[0] for region in pair.regions if len(region.boxes) == 1}


def write_phrases(members: Sequence[RawPair], folder: Path) -> None:
    """Writes the divisions in the form of RefCOCO, as its lists look when they are saved as JSON."""
    refs = []
    images = []
    annotations: list[dict[str, object]] = []
    for number, pair in enumerate(members):
        picture = pair.pictures[0]
        name = f"{name_of(pair)}.png"
        write_bytes(folder / _PICTURES / name, picture.read())
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        for phrase, (x1, y1, x2, y2) in divisions(pair).items():
            annotation = len(annotations)
            annotations.append({"id": annotation, "image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            sentences = [{"sent_id": annotation, "sent": phrase}]
            facts = {"ref_id": annotation, "ann_id": annotation, "image_id": number}
            refs.append({**facts, "split": "testA", "sentences": sentences})
    write_json(folder / "refcoco" / "refs(unc).json", refs)
    write_json(folder / "refcoco" / "instances.json", {"images": images, "annotations": annotations})


def compared(pair: RawPair, draw: random.Random) -> Iterator[tuple[str, str, str]]:
    """(relation, the division for which it holds, the other one): two divisions whose boxes do not overlap that way."""
    boxes = sorted(divisions(pair).items())
    for (first, one), (second, other) in draw.sample(list(itertools.combinations(boxes, 2)), k=_pairs(len(boxes))):
        if one[3] <= other[1]:
            yield "above", first, second
        elif other[3] <= one[1]:
            yield "above", second, first
        elif one[2] <= other[0]:
            yield "left of", first, second
        elif other[2] <= one[0]:
            yield "left of", second, first


def _pairs(count: int) -> int:
    return min(count * (count - 1) // 2, 4 * COMPARISONS)


def write_questions(members: Sequence[RawPair], folder: Path, seed: int = 0) -> None:
    """Writes questions about maps in the form of GQA."""
    draw = random.Random(seed)
    questions = {}
    for pair in members:
        name = name_of(pair)
        write_bytes(folder / "images" / f"{name}.jpg", _as_jpeg(pair))
        asked = [(each.text, each.answers[0].text, "query") for each in pair.questions]
        for relation, nearer, farther in itertools.islice(compared(pair, draw), COMPARISONS):
            turned = draw.random() < 0.5
            side = {"above": ("top", "bottom"), "left of": ("left", "right")}[relation][turned]
            choice = " or ".join(sorted((nearer, farther)))
            text = f"Which of the two is nearer to the {side} of the map, {choice}?"
            asked.append((text, farther if turned else nearer, "choose"))
        for number, (text, answer, kind) in enumerate(asked):
            facts = {"imageId": name, "question": text, "answer": answer, "types": {"structural": kind}}
            questions[f"{name}-{number}"] = facts
    write_json(folder / "testdev_balanced_questions.json", questions)


def _as_jpeg(pair: RawPair) -> bytes:
    return jpeg(Image.open(io.BytesIO(pair.pictures[0].read())))


def write_positions(members: Sequence[RawPair], folder: Path, seed: int = 0) -> None:
    """Writes a pair of questions per map as the subtask "position" of MME."""
    draw = random.Random(seed)
    for pair in members:
        for relation, nearer, farther in itertools.islice(compared(pair, draw), 1):
            asked = ((f"{nearer} is {relation} {farther}.", "Yes"), (f"{farther} is {relation} {nearer}.", "No"))
            write_bytes(folder / "position" / f"{name_of(pair)}.jpg", _as_jpeg(pair))
            write_bytes(folder / "position" / f"{name_of(pair)}.txt", yes_no_lines(asked, "Is this true of the map"))


def write_capitals(folder: Path, target: Path, seed: int = 0) -> None:
    """Writes the capitals of the maps in `folder` in the form of MMLU, a subject per map with enough of them."""
    draw = random.Random(seed)
    for file in sorted((folder / "kgeography").glob("*.kgm")):
        title, pairs = capitals_of(file)
        named = [(division, capital) for division, capital in pairs if division.casefold() != capital.casefold()]
        names = sorted({capital for _, capital in named})
        if len(names) < LEAST_CAPITALS:
            continue
        rows = []
        for division, capital in named:
            options = [capital, *draw.sample([name for name in names if name != capital], 3)]
            draw.shuffle(options)
            rows.append((f"{title}: what is the capital of {division}?", *options, "ABCD"[options.index(capital)]))
        draw.shuffle(rows)
        subject = re.sub(r"\W", "_", file.stem)
        write_table(target / "dev" / f"{subject}_dev.csv", rows[:EXAMPLES], ",")
        write_table(target / "test" / f"{subject}_test.csv", rows[EXAMPLES:], ",")
