"""What a built data set holds, to look at: `contact_sheet.png` with boxes drawn, and `report.html` with counts.

python -m data_pipelines.quickstart.report data/quickstart
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from PIL import Image, ImageDraw

from qwenvl_jax.data.images.decode import decode_image
from qwenvl_jax.data.readers import record_folder
from qwenvl_jax.data.schema import Record
from qwenvl_jax.runtime import artifacts, storage
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

PICTURE_TASKS = ("caption", "vqa", "grounding", "ref_grounding", "grounded_caption", "ocr", "dialogue")
EXAMPLES = 6
_SCALE = 2
_COLORS = ("#ff2d2d", "#21d421", "#3f8cff", "#ffd400")


def write_report(folder: epath.Path, manifest: dict[str, Any]) -> None:
    """Writes both files into `folder`, whose record folders are finished.

    Args:
      folder: of the data set.
      manifest: the top manifest, possibly not written yet.
    """
    examples = {task: _examples(folder / task) for task in PICTURE_TASKS}
    sheet = contact_sheet([examples[task] for task in PICTURE_TASKS])
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    storage.write_bytes(folder / "contact_sheet.png", buffer.getvalue())
    texts = [record.content.get("text") or record.content["words"] for record in _examples(folder / "text", 12)]
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
    """The record's first picture, twice as large, with its boxes and quads."""
    image = decode_image(record.images[0])
    picture = image.resize((image.width * _SCALE, image.height * _SCALE))
    draw = ImageDraw.Draw(picture)
    for index, corners in enumerate(_shapes(record)):
        points = [(x * _SCALE, y * _SCALE) for x, y in corners]
        draw.line([*points, points[0]], fill=_COLORS[index % len(_COLORS)], width=2)
    return picture


def words_of(record: Record) -> str:
    """The record in words, for a caption under its picture."""
    content = record.content
    if record.task == "vqa":
        return f"{content['question']} {content['answer']}"
    if record.task == "grounding":
        return "".join(segment["text"] for segment in content["segments"])
    if record.task == "ocr":
        return " / ".join(line["text"] for line in content["lines"])
    if record.task == "dialogue":
        return "\n".join(
            f"{turn['role']}: " + "".join(part.get("text") or part.get("ref", "") for part in turn["parts"])
            for turn in content["turns"]
        )
    return str(content.get("caption") or content.get("phrase") or content.get("description"))


def _shapes(record: Record) -> Iterable[list[tuple[float, float]]]:
    content = record.content
    boxes = [content["box"]] if "box" in content else []
    boxes += [box for segment in content.get("segments", []) for box in segment["boxes"]]
    for turn in content.get("turns", []):
        for part in turn["parts"]:
            boxes += part.get("boxes", []) if part.get("image") == 0 else []
    for x1, y1, x2, y2 in boxes:
        yield [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    for line in content.get("lines", []):
        yield [(x, y) for x, y in line["quad"]]


def _examples(folder: epath.Path, count: int = EXAMPLES) -> list[Record]:
    reader = record_folder.RecordReader(folder, "heldout")
    return [reader[i] for i in range(min(count, len(reader)))]


def _page(manifest: dict[str, Any], examples: dict[str, list[Record]], texts: Sequence[str]) -> str:
    sources = manifest["sources"]
    origin = "real photographs and drawings (Tux Paint, GPL-2)"
    if manifest["rendered"]:
        why = manifest["fallback_reason"]
        origin = "RENDERED coloured shapes, not photographs" + (f" ({why})" if why else "")
    tasks = [
        (
            task,
            split,
            summary["records"],
            summary["images"],
            f"{summary['bytes'] / 1e6:.1f}",
            _pairs(summary["languages"]),
        )
        for task, splits in manifest["tasks"].items()
        for split, summary in splits.items()
    ]
    licenses = [
        (task, name, count)
        for task, splits in manifest["tasks"].items()
        for name, count in splits["train"]["licenses"].items()
    ]
    rules = [(rule, n["changed"], n["dropped"]) for rule, n in sources["cleaning_rules"].items()]
    names = [(key, *value) for key, value in sources["stamp_names"].items()]
    rows = "".join(
        f"<h3>{task}</h3><div class=row>{''.join(map(_figure, members))}</div>" for task, members in examples.items()
    )
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>Quickstart data</title>
<style>body{{font:15px/1.45 system-ui,sans-serif;max-width:1320px;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse;margin:.6em 0 1.4em}}td,th{{border:1px solid #ccc;padding:2px 10px;text-align:left}}
.row{{display:flex;gap:12px;flex-wrap:wrap}}figure{{margin:0;width:208px}}
figcaption{{white-space:pre-line;font-size:13px}}</style>
<h1>Quickstart data</h1><p>Pictures: {html.escape(origin)}. Settings {manifest["settings_hash"]}.</p>
<h2>Held-out examples</h2>{rows}
<h3>text</h3><ul>{"".join(f"<li>{html.escape(text)}</li>" for text in texts)}</ul>
<h2>Records</h2>{_table(("task", "split", "records", "images", "MB", "languages"), tasks)}
<h2>Licences (train)</h2>{_table(("task", "licence", "records"), licenses)}
<p>Backgrounds: {html.escape(_pairs(sources["backgrounds"]))}</p>
<h2>Cleaning of captions</h2>{_table(("rule", "changed", "dropped"), rules)}
<h2>Stamps</h2>{_table(("id", "English", "Chinese"), names)}</html>
"""


def _figure(record: Record) -> str:
    buffer = io.BytesIO()
    annotated(record).save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(words_of(record))
    return f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{name}</th>" for name in header) + f"</tr>{cells}</table>"


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
