"""Pairs that were kept, with their regions drawn, and the first pairs that each rule dropped, with evidence."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from data_pipelines.duplicates.decontaminate import not_in_evaluation
from data_pipelines.report.files import DECONTAMINATED
from data_pipelines.report.texts import shortened
from qwenvl_jax.data.evaluation_content import single_contents
from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.tasks import RECORD_TASKS
from qwenvl_jax.html.figures import Region, corners_of_box, figure, palette_color
from qwenvl_jax.html.page import grid, section
from qwenvl_jax.runtime.errors import UserError

KEPT_KEYS = ("file", "row", "id", "records", "size", "thumbnail")
DROPPED_KEYS = ("rule", "reason", "file", "row", "id", "texts", "evidence", "size", "thumbnail")
LISTED_KEYS = ("rule", "reason", "file", "row", "id", "evidence")
DECONTAMINATED_SHOWN = 100  # pairs on the page
_TEXT = 400  # characters of a text that are shown
_TEXTS = 5
_SAMPLES = 6  # of a record that are shown in words
_REGIONS = 60  # of a picture that are drawn
_CHIPS = 6  # numbers of regions before a text; of a text with more regions the first and the last number
_MAGNIFIED = 96  # px; pictures up to this side are shown with their pixels
_EVIDENCE = 3

STYLE = """
section > h3 { margin: 1.6rem 0 .5rem; } section > .grid { margin-top: .8rem; } h3 .soft { font-weight: 400; }
#rules .chart { margin: .8rem 0 1.2rem; } #rules svg { min-width: 720px; }
.card { align-self: start; } .card p { unicode-bidi: isolate; white-space: pre-line; font-size: .86rem; }
.card figure svg, .pictures svg { max-height: 340px; }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1px; align-items: end; }
.pictures figcaption { padding: .2rem .6rem; font-size: .8rem; }
.chip { color: #fff; border-radius: 99px; padding: 0 .45em; font-size: .78em; margin-right: .25em; }
.facts td { white-space: normal; overflow-wrap: anywhere; } .facts td, .facts th { text-align: left !important; }
.details td { white-space: normal; overflow-wrap: anywhere; } .details td, .details th { text-align: left !important; }
.details table { font-size: .84rem; }
"""


def picture_of(encoded: object) -> Image.Image | None:
    """The picture of a thumbnail in base64; None if there is none, or it cannot be decoded."""
    if not isinstance(encoded, str) or not encoded:
        return None
    try:
        return decode_image(base64.b64decode(encoded, validate=True))
    except (UserError, binascii.Error, ValueError):
        return None


def kept(examples: Iterable[Mapping[str, Any]], pairs: int) -> str:
    """The section of pairs that were kept."""
    cards = [_kept_card(example) for example in examples]
    if not cards:
        return section("kept", "Kept", "No pair was kept.", "")
    intro = (
        f"{len(cards):,} of {pairs:,} pairs, evenly spread over the corpus and not chosen. Numbers join a text and its "
        "regions."
    )
    return section("kept", "Kept", intro, grid(cards, wide=any("polygon" in card for card in cards)))


def _kept_card(example: Mapping[str, Any]) -> str:
    """A kept pair: its picture with the regions of one task, and its samples of all tasks in words."""
    records = example["records"]
    contents = {task: single_contents(task, record["content"]) for task, record in records.items()}
    drawn = max(contents, key=lambda task: sum(bool(_outlines(task, each)) for each in contents[task]))
    regions: list[Region] = []
    lines = []
    for task, samples in contents.items():
        for number, content in enumerate(samples):
            first = len(regions)
            if task == drawn:
                for corners in _outlines(task, content)[: _REGIONS - first]:
                    color = palette_color(len(regions))
                    regions.append(Region(corners, color, label=str(len(regions) + 1)))
            if number < _SAMPLES:
                words = shortened(RECORD_TASKS[task].words(content), _TEXT)
                head = f'<span class="soft">{escape(task)}</span> ' if number == 0 else ""
                lines.append(f"{head}{_chips(first, len(regions))}{escape(words)}")
        if len(samples) > _SAMPLES:
            lines.append(f'<span class="soft">and {len(samples) - _SAMPLES:,} more samples</span>')
    record = next(iter(records.values()))
    facts = [_where(example), _size(example), record["language"], shortened(record["license"], 60)]
    lines.append(f'<span class="soft">{escape(" · ".join(filter(None, facts)))}</span>')
    units = _units(contents[drawn][0], example["size"])
    return _card(_figure(example["thumbnail"], "kept", regions, units), lines)


def _outlines(task: str, content: Mapping[str, Any]) -> list[Any]:
    regions = RECORD_TASKS[task].regions(content)
    return [*map(corners_of_box, regions.boxes), *regions.quads]


def _units(content: Mapping[str, Any], size: Sequence[int] | None) -> tuple[int, int] | None:
    """The size of the picture in the units of its regions."""
    if "width" in content:
        return round(content["width"]), round(content["height"])
    sizes = content.get("sizes")
    stated = sizes[0] if sizes else size
    return (round(stated[0]), round(stated[1])) if stated else None


def _chips(first: int, stop: int) -> str:
    """The numbers of the regions from `first` to `stop`."""
    numbers = range(first, stop) if stop - first <= _CHIPS else (first, stop - 1)
    dots = "–" if stop - first > _CHIPS else ""
    chips = [f'<span class="chip" style="background:{palette_color(each)}">{each + 1}</span>' for each in numbers]
    return dots.join(chips)


def dropped(examples: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]) -> str:
    """The section with the first pairs that every rule dropped, by rule and reason."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for example in examples:
        groups.setdefault((example["rule"], example["reason"]), []).append(example)
    counts = {
        (rule["rule"], reason): count for rule in manifest["rules"] for reason, count in sorted(rule["dropped"].items())
    }
    content = []
    for key, count in counts.items():
        rule, reason = key
        if rule == not_in_evaluation.__name__:
            link = f'<a href="#decontaminated">{count:,} pairs, see below</a>'
            content.append(f"<h3>{escape(rule)}: {escape(reason)} {link}</h3>")
            continue
        shown = groups.get(key, [])
        cards = [_dropped_card(example) for example in shown]
        wide = any(example["evidence"] for example in shown)
        title = f"{escape(rule)}: {escape(shortened(reason, 120))}"
        content.append(f'<h3>{title} <span class="soft">{len(cards)} of {count:,}</span></h3>{grid(cards, wide=wide)}')
    intro = "The first pairs that each rule dropped for each reason, in the order of the corpus, as the rule saw them."
    return section("dropped", "Dropped", intro, "".join(content) or "<p>No rule has dropped a pair.</p>")


def decontaminated(rows: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]) -> str:
    """The section with the first pairs that were dropped as close to evaluation data, each next to that sample.

    Args:
      rows: the lines of `files.DECONTAMINATED`.
      manifest: of the output.
    """
    counts = next(rule["dropped"] for rule in manifest["rules"] if rule["rule"] == not_in_evaluation.__name__)
    empty: dict[str, Any] = {"texts": [], "size": None, "thumbnail": None}
    cards = [_dropped_card({**empty, **row}) for row in itertools.islice(rows, DECONTAMINATED_SHOWN)]
    intro = (
        f"{len(cards):,} of {sum(counts.values()):,} pairs, the first ones in the order of the corpus. The distance is "
        "in bits of the 256 of a perceptual hash, the similarity a share of MinHashes. "
        f"{DECONTAMINATED} lists every pair."
    )
    return section("decontaminated", "Close to evaluation data", intro, grid(cards, wide=True))


def _dropped_card(example: Mapping[str, Any]) -> str:
    evidence = example["evidence"][:_EVIDENCE]
    shown_by_evidence = any("picture" in item for item in evidence)
    head = [] if shown_by_evidence else [_figure(example["thumbnail"], "dropped", caption="dropped" * bool(evidence))]
    lines = [escape(shortened(text, _TEXT)) for text in example["texts"][:_TEXTS]]
    lines.append(f'<span class="soft">{escape(" · ".join(filter(None, [_where(example), _size(example)])))}</span>')
    for item in evidence:
        pictures, words = _evidence(item)
        head += pictures
        lines += words
    if len(example["evidence"]) > _EVIDENCE:
        lines.append(f'<span class="soft">and {len(example["evidence"]) - _EVIDENCE:,} more</span>')
    drawn = list(filter(None, head))
    if len(drawn) > 1:
        return _card(f'<div class="pictures">{"".join(drawn)}</div>', lines)
    return _card(drawn[0] if drawn else "", lines)


def _evidence(item: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The pictures and the lines of one piece of evidence: the better pair, or the evaluation sample that is close."""
    if "thumbnail" in item:
        lines = [f"<b>kept instead:</b> {escape(shortened(text, _TEXT))}" for text in item["texts"][:1]]
        lines += [f"<b>{name}:</b> {escape(str(item[name]))}" for name in ("distance", "similarity") if name in item]
        lines.append(f'<span class="soft">{escape(_where(item))}</span>')
        return [_figure(item["thumbnail"], "kept instead", caption="kept instead")], lines
    pictures = []
    facts = []
    for name, value in sorted(item.items()):
        if name.endswith("picture"):
            title = name.replace("_", " ")
            pictures.append(_figure(value, title, caption=title))
        elif name != "pair":
            facts.append(f"<b>{escape(name.replace('_', ' '))}:</b> {escape(shortened(value, _TEXT))}")
    return pictures, facts


def _card(drawn: str, lines: Iterable[str]) -> str:
    """A box with pictures, if there are any, above paragraphs."""
    paragraphs = "".join(f'<p dir="auto">{line}</p>' for line in lines if line)
    return f'<article class="card">{drawn}<div class="body">{paragraphs}</div></article>'


def _figure(
    encoded: object,
    alt: str,
    regions: Sequence[Region] = (),
    units: tuple[int, int] | None = None,
    caption: str = "",
) -> str:
    """A thumbnail, decoded and encoded anew; empty if there is none."""
    image = picture_of(encoded)
    if image is None:
        return ""
    title = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    pixelated = max(image.size) <= _MAGNIFIED
    return f"<figure>{figure(image, regions, alt=alt, units=units, pixelated=pixelated)}{title}</figure>"


def _where(example: Mapping[str, Any]) -> str:
    """The row of an example."""
    return f"{shortened(example['file'], 80)}, row {example['row']:,} · {shortened(example['id'], 60)}"


def _size(example: Mapping[str, Any]) -> str:
    return "{}×{} px".format(*example["size"]) if example["size"] else ""
