"""A built data set for the eye: `contact_sheet.png` with boxes drawn, and `report.html` with examples and counts.

python -m data_pipelines.quickstart.report data/quickstart
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from html import escape
from typing import Any

from etils import epath
from PIL import Image

from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.data.readers.record_folder import RecordReader
from qwenvl_jax.data.schema import Record
from qwenvl_jax.data.tasks import RECORD_TASKS
from qwenvl_jax.html.figures import Corners, Region, corners_of_box, draw, figure, palette_color
from qwenvl_jax.html.page import bullets, captioned, grid, header, page, section
from qwenvl_jax.html.tables import table
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

PICTURE_TASKS = ("caption", "vqa", "grounding", "ref_grounding", "grounded_caption", "ocr", "dialogue")
EXAMPLES = 6
_SCALE = 2  # of the pictures on the contact sheet


def write_report(folder: epath.Path, manifest: dict[str, Any]) -> None:
    """Writes both files into `folder`, whose record folders are finished.

    Args:
      folder: the data set's.
      manifest: the content of the top manifest, which need not be written yet.
    """
    examples = {task: _examples(folder / task) for task in PICTURE_TASKS}
    sheet = contact_sheet([examples[task] for task in PICTURE_TASKS])
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    storage.write_bytes(folder / "contact_sheet.png", buffer.getvalue())
    texts = [words_of(record) for record in _examples(folder / "text", 12)]
    artifacts.write_text(folder / "report.html", _page(manifest, examples, texts))


def contact_sheet(rows: Sequence[Sequence[Record]]) -> Image.Image:
    """One row of pictures per task, boxes and quads drawn."""
    pictures = [[annotated(record) for record in row] for row in rows]
    side = max(picture.width for row in pictures for picture in row) + 8
    sheet = Image.new("RGB", (side * max(len(row) for row in pictures), side * len(pictures)), "white")
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * side + 4, y * side + 4))
    return sheet


def annotated(record: Record) -> Image.Image:
    """The record's first picture, twice as large, with its boxes and quadrilaterals."""
    return draw(decode_image(record.images[0]), regions_of(record), scale=_SCALE, width=2)


def words_of(record: Record) -> str:
    """The record in words, for a caption under its picture."""
    return RECORD_TASKS[record.task].words(record.content)


def regions_of(record: Record) -> list[Region]:
    """The boxes and quadrilaterals on the record's first picture, in pixels."""
    regions = RECORD_TASKS[record.task].regions(record.content)
    outlines: list[Corners] = [*map(corners_of_box, regions.boxes), *regions.quads]
    return [Region(corners, palette_color(index)) for index, corners in enumerate(outlines)]


def _examples(folder: epath.Path, count: int = EXAMPLES) -> list[Record]:
    reader = RecordReader(folder, "heldout")
    return [reader[index] for index in range(min(count, len(reader)))]


def _page(manifest: dict[str, Any], examples: dict[str, list[Record]], texts: Sequence[str]) -> str:
    origin = "real photographs and drawings (Tux Paint, GPL-2)"
    if manifest["rendered"]:
        reason = manifest["fallback_reason"]
        origin = "RENDERED coloured shapes, not photographs" + (f" ({reason})" if reason else "")
    intro = f"Pictures: {origin}. Settings {manifest['settings_hash']}."
    shown = [f"<h3>{escape(task)}</h3>{grid(map(_figure, records))}" for task, records in examples.items()]
    shown.append(f"<h3>text</h3>{bullets(map(escape, texts))}")
    parts = [
        header("Quickstart data", escape(intro)),
        section("examples", "Held-out examples", "", "".join(shown)),
        *_tables(manifest),
    ]
    return page("Quickstart data", "\n".join(parts), style="h3 { margin: 1.4rem 0 .5rem; }")


def _tables(manifest: dict[str, Any]) -> list[str]:
    """The sections with counts: records, licences, cleaning rules and names of stamps."""
    sources = manifest["sources"]
    records = []
    licences = []
    for task, splits in manifest["tasks"].items():
        for split, summary in splits.items():
            megabytes = f"{summary['bytes'] / 1e6:.1f}"
            languages = _pairs(summary["languages"])
            records.append((task, split, languages, summary["records"], summary["images"], megabytes))
        licences += [(task, name, count) for name, count in splits["train"]["licenses"].items()]
    rules = [(rule, counts["changed"], counts["dropped"]) for rule, counts in sources["cleaning_rules"].items()]
    stamps = [(key, *names) for key, names in sources["stamp_names"].items()]
    record_header = ("task", "split", "languages", "records", "images", "MB")
    backgrounds = f"<p>Backgrounds: {escape(_pairs(sources['backgrounds']))}</p>"
    licence_table = table(("task", "licence", "records"), licences, text_columns=2)
    return [
        section("records", "Records", "", table(record_header, records, text_columns=3)),
        section("licences", "Licences (train)", "", licence_table + backgrounds),
        section("cleaning", "Cleaning of captions", "", table(("rule", "changed", "dropped"), rules)),
        section("stamps", "Stamps", "", table(("id", "English", "Chinese"), stamps, text_columns=3)),
    ]


def _figure(record: Record) -> str:
    svg = figure(decode_image(record.images[0]), regions_of(record), alt=record.task)
    return captioned(svg, [escape(line) for line in words_of(record).split("\n")])


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report of a finished data set again."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    with exit_on_user_error():
        if len(arguments) != 1:
            raise UserError("give one folder: python -m data_pipelines.quickstart.report data/quickstart")
        folder = storage.path(arguments[0])
        write_report(folder, artifacts.read_json(folder / "manifest.json"))
        print(folder / "report.html")


if __name__ == "__main__":
    main()
