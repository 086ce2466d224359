"""Shows what a stage would be taught, before it is run: its first samples, counted and decoded.

python -m qwenvl_jax.audit --config=configs/stage2_multitask.py --output=DIR [--config.key=value]
    [--samples=1000] [--shown=4] [--verify]

Prints tables and writes DIR/audit.json (the same numbers) and DIR/audit.html (with decoded samples, regions drawn into
their images). Needs the records and the vocabulary, but no device. docs/data.md says how to read it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qwenvl_jax.auditing.packing_preview import PACKING_COLUMNS, packing_row
from qwenvl_jax.auditing.page import page
from qwenvl_jax.auditing.samples import audit
from qwenvl_jax.config import FORMER_KEYS, load_config
from qwenvl_jax.runtime import artifacts, commandline, log, storage
from qwenvl_jax.runtime.errors import UserError

_CONFIG = commandline.define_config("The stage, e.g. configs/stage2_multitask.py.", FORMER_KEYS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for audit.html and audit.json, local or gs://.")
_SAMPLES = flags.DEFINE_integer("samples", 1000, "How many samples to draw.")
_VERIFY = flags.DEFINE_bool("verify", False, "Also compare the checksums of all shards of record folders.")
_SHOWN = flags.DEFINE_integer("shown", 4, "How many of every source to show decoded.")


def main() -> None:
    """Audits the stage, prints the tables and writes both files."""
    if not _OUTPUT.value:
        raise UserError("--output is missing; name the folder where audit.html goes")
    if _SAMPLES.value < 1 or _SHOWN.value < 0:
        raise UserError("--samples must be at least 1 and --shown must not be negative")
    config = load_config(_CONFIG.value)
    result = audit(config, _SAMPLES.value, _SHOWN.value, verify=_VERIFY.value)
    html = page(result, config)
    show(result.numbers)
    folder = storage.path(_OUTPUT.value)
    artifacts.write_json(folder / "audit.json", result.numbers)
    artifacts.write_text(folder / "audit.html", html)
    print(f"{folder / 'audit.html'}")


def show(numbers: dict[str, Any]) -> None:
    """Prints the numbers as tables."""
    sources = numbers["sources"]
    total = numbers["total"]
    print(
        f"config {numbers['config']}  model {numbers['model']}  stage {numbers['stage']}  rows of "
        f"{numbers['sequence_length']:,} tokens  images of {numbers['image_size']} px"
    )
    rows = [*sources, {**total, "name": "total", "share": 1.0, "loss_share": float(total["supervised"] > 0)}]
    counts = ("cut", "dropped", "filtered", "corrupt", "tokens", "supervised")
    head = ("source", "samples", "share", *counts, "of its tokens", "of the loss", "images", "regions")
    _table(
        f"supervision in the first {total['samples']:,} samples",
        head,
        (
            (
                row["name"],
                f"{row['samples']:,}",
                f"{row['share']:.1%}",
                *(f"{row[key]:,}" for key in counts),
                f"{row['supervised_share']:.1%}",
                f"{row['loss_share']:.1%}",
                f"{row['images']:,}",
                f"{row['regions']:,}",
            )
            for row in rows
        ),
    )
    _table(
        "tokens per sample, dropped ones too",
        ("source", *total["length"]),
        ((row["name"], *("" if value is None else f"{value:,}" for value in row["length"].values())) for row in rows),
    )
    _table(
        "samples by number of images, dropped ones too",
        ("source", "images: samples"),
        ((row["name"], ", ".join(_bar(bar) for bar in row["image_histogram"] if bar["samples"])) for row in rows),
    )
    if numbers["packing"]:
        _table(
            "packing, as if all samples were of one stream",
            PACKING_COLUMNS,
            [packing_row(numbers["packing"])],
        )
    if numbers["passes"]:
        _show_passes(numbers["passes"])
    for source in sources:
        for entry in source["left_out"]:
            print(log.printable(f"{entry['state']}: source {source['name']!r}, {entry['message']}"))
    for note in numbers["notes"]:
        print(log.printable(f"note: {note}"), file=sys.stderr)


def _show_passes(passes: dict[str, Any]) -> None:
    one_pass = passes["rows_per_step_of_one_pass"]
    _table(
        f"expected over {passes['steps']:,} steps of {passes['rows_per_step']:,} rows, at "
        f"{passes['samples_per_row']:.3g} samples per row; one pass needs {one_pass:,} rows per step",
        ("source", "samples", "passes"),
        ((name, f"{one['samples']:,}", f"{one['passes']:.2f}") for name, one in passes["sources"].items()),
    )


def _bar(bar: dict[str, int]) -> str:
    values = str(bar["first"]) if bar["first"] == bar["last"] else f"{bar['first']}-{bar['last']}"
    return f"{values}: {bar['samples']:,}"


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "source" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Numbers are never cut off, however narrow the terminal is.
    Console(highlight=False, width=max(Console().width, 160), soft_wrap=True).print(table)


if __name__ == "__main__":
    commandline.run(main)
