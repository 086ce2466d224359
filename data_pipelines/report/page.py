"""report.html of one output: its manifest, failed.jsonl and examples on one page.

The page needs no other file. Texts of the corpus are escaped, invisible characters are written as numbers, and
pictures are decoded and encoded again. The same output gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from etils import epath

from data_pipelines.report import counts, examples
from data_pipelines.report.files import DECONTAMINATED, failed_examples, has_decontamination, lines
from data_pipelines.report.histograms import TokenCounts, count_tokens, histograms
from qwenvl_jax.data.tokenizer import Tokenizer
from qwenvl_jax.html.page import header, page, visible
from qwenvl_jax.html.tables import Cell, table
from qwenvl_jax.runtime import artifacts

REPORT = "report.html"
_SECTIONS = (
    ("table-2", "Table 2"),
    ("rules", "rules"),
    ("failed", "failed rows"),
    ("histograms", "texts and pictures"),
    ("languages", "languages and licences"),
    ("kept", "kept"),
    ("dropped", "dropped"),
    ("decontaminated", "close to evaluation data"),
    ("shards", "shards"),
    ("settings", "settings"),
)


def write_report(folder: epath.Path, manifest: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> None:
    """Writes the page into an output.

    Args:
      folder: of the output; its manifest need not be written yet.
      manifest: the content of its manifest.
      tokenizer: counts the tokens of its texts, which reads its records; None: tokens are not counted.

    Raises:
      UserError: if a file of the output is missing or is not what was written.
    """
    tokens = count_tokens(folder, manifest, tokenizer) if tokenizer else {}
    artifacts.write_text(folder / REPORT, report(folder, manifest, tokens))


def report(folder: epath.Path, manifest: Mapping[str, Any], tokens: Mapping[str, TokenCounts]) -> str:
    """The page as HTML. `tokens` may be empty."""
    manifest = json.loads(json.dumps(manifest, sort_keys=True))  # as it is read back, whoever asks
    title = f"{manifest['corpus']}, {manifest['split']}"
    evaluation = has_decontamination(manifest["job"])
    sections = [each for each in _SECTIONS if evaluation or each[0] != "decontaminated"]
    intro = f"{manifest['rows']:,} rows became {manifest['kept']:,} pairs: what each rule did, and what is left."
    parts = [
        header(title, intro, sections, _facts(manifest)),
        counts.table_2(manifest),
        counts.rules(manifest),
        counts.failed(manifest, failed_examples(folder, manifest["failed"]["reasons"])),
        histograms(manifest, tokens),
        counts.languages_and_licences(manifest),
        examples.kept(lines(folder / "examples" / "kept.jsonl", examples.KEPT_KEYS), manifest["kept"]),
        examples.dropped(lines(folder / "examples" / "dropped.jsonl", examples.DROPPED_KEYS), manifest),
        examples.decontaminated(lines(folder / DECONTAMINATED, examples.LISTED_KEYS), manifest) if evaluation else "",
        counts.shards(manifest),
        counts.versions(manifest),
    ]
    return visible(page(f"{title} · report", "\n".join(parts), style=examples.STYLE))


def _facts(manifest: Mapping[str, Any]) -> str:
    """Where the corpus is from, and from which input and code the output was built."""
    inputs = manifest["inputs"]
    rows = [
        ("home page", _link(manifest["home_page"])),
        ("licence, as its publisher states it", manifest["license"]),
        ("records", f"of the tasks {', '.join(counts.tasks_of(manifest)) or '-'}"),
        ("input", f"{len(inputs):,} files, whose digests are in manifest.json"),
        ("digest of settings and code", Cell(f"<code>{escape(manifest['digest'])}</code>")),
    ]
    return f'<div class="facts">{table(("", ""), rows, text_columns=2)}</div>'


def _link(address: str) -> Cell:
    """A link that tells the other side nothing; only a text if the address is not one of the web."""
    shown = escape(address)
    if not address.startswith(("https://", "http://")):
        return Cell(shown)
    return Cell(f'<a href="{shown}" rel="noreferrer noopener">{shown}</a>')
