"""report.html of a folder of outputs: the shape of the paper's Tables 2 and 3, with totals."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from data_pipelines.report import paper
from data_pipelines.report.counts import TABLE_2_HEADER, language_of, percent, tasks_of
from data_pipelines.report.evaluation_sets import counts_of, is_evaluation, losses
from data_pipelines.report.texts import shortened
from qwenvl_jax.html.page import header, page, section, visible
from qwenvl_jax.html.tables import Cell, table

_ORDER = {name: number for number, name in enumerate(paper.LANGUAGES.values())}


def overview(outputs: Mapping[str, Mapping[str, Any]], linked: set[str]) -> str:
    """The page as HTML.

    Args:
      outputs: the manifests of all outputs by the names of their folders.
      linked: the folders that have a page of their own.
    """
    title = "Built corpora"
    asked = {name: manifest for name, manifest in outputs.items() if is_evaluation(manifest)}
    trained = {name: manifest for name, manifest in outputs.items() if name not in asked}
    comparison = ", next to the figures of the paper (arXiv 2308.12966)" if trained else ""
    intro = f"{len(outputs):,} outputs{comparison}."
    links = []
    sections = []
    if trained:
        links += [("table-2", "Table 2"), ("table-3", "Table 3")]
        sections += [_table_2(trained, linked), _table_3(trained)]
    if asked:
        links.append(("evaluation", "evaluation sets"))
        sections.append(_evaluation_sets(asked, linked))
    return visible(page(title, "\n".join([header(title, intro, links), *sections])))


def _evaluation_sets(outputs: Mapping[str, Mapping[str, Any]], linked: set[str]) -> str:
    """Records and questions of every evaluation set, and what the benchmark lacks."""
    rows: list[tuple[object, ...]] = []
    for name, manifest in sorted(outputs.items()):
        counts = [f"{count:,}" for count in counts_of(manifest)]
        rows.append((_dataset(name, manifest, name in linked), *counts, "; ".join(losses(manifest))))
    columns = ("benchmark", "records", "questions", "pictures", "what is missing")
    intro = "Questions about one picture are one record. No rule leaves out a question."
    content = f'<div class="wrapped">{table(columns, rows, text_columns=1)}</div>'
    return section("evaluation", "Evaluation sets", intro, content)


def _table_2(outputs: Mapping[str, Mapping[str, Any]], linked: set[str]) -> str:
    rows: list[tuple[object, ...]] = []
    languages = {name: language_of(manifest) for name, manifest in outputs.items()}
    ordered = sorted(outputs, key=lambda name: (_ORDER.get(languages[name], len(_ORDER)), languages[name], name))
    for name in ordered:
        manifest = outputs[name]
        counts = (manifest["rows"], manifest["kept"])
        figures = paper.TABLE_2.get(manifest["corpus"], paper.Figures("", "", ""))
        rows.append((languages[name], _dataset(name, manifest, name in linked), *_shown(*counts), *figures))
    total = tuple(sum(manifest[key] for manifest in outputs.values()) for key in ("rows", "kept"))
    rows.append(("total", "", *_shown(*total), *paper.TABLE_2_TOTAL))
    columns = (*TABLE_2_HEADER, "original in the paper", "cleaned in the paper", "remaining in the paper")
    intro = (
        "Original are all rows of a corpus, failed ones included; cleaned are the pairs that all rules have kept. "
        "The paper's total includes corpora that are not listed here."
    )
    return section("table-2", "As Table 2: cleaning", intro, table(columns, rows, text_columns=2, total=True))


def _shown(original: int, cleaned: int) -> tuple[str, str, str]:
    return f"{original:,}", f"{cleaned:,}", percent(cleaned, original)


def _dataset(name: str, manifest: Mapping[str, Any], linked: bool) -> Cell:
    """The corpus, the name of its folder if that is another one, its split if it is not train; a link to its page."""
    split = "" if manifest["split"] == "train" else f", {manifest['split']}"
    folder = "" if manifest["corpus"] == name else f" ({shortened(name, 60)})"
    text = escape(f"{manifest['corpus']}{split}{folder}")
    if not linked:
        return Cell(text)
    address = quote(name.encode("utf-8", "surrogateescape"))
    return Cell(f'<a href="./{address}/report.html">{text}</a>')


def _table_3(outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """Samples by task. All splits of a task's outputs count."""
    rows = []
    totals = [0, 0, 0]
    for task, (line, stated) in paper.TABLE_3.items():
        datasets = []
        sums = [0, 0, 0]
        for manifest in outputs.values():
            if task in tasks_of(manifest):
                datasets.append(manifest["corpus"])
                for number, key in enumerate(("samples", "records", "images")):
                    sums[number] += manifest["tasks"][task][key]
        if datasets:
            names = ", ".join(dict.fromkeys(datasets))
            rows.append((line, names, *(f"{each:,}" for each in sums), stated))
        totals = [total + each for total, each in zip(totals, sums, strict=True)]
    rows.append(("total", "", *(f"{each:,}" for each in totals), ""))
    columns = ("task", "datasets", "samples", "records", "pictures", "samples in the paper")
    intro = "A record holds a picture once and all its samples of one task. A picture counts once for each task."
    content = f'<div class="wrapped">{table(columns, rows, text_columns=2, total=True)}</div>'
    style = "<style>.wrapped td { white-space: normal; }</style>"
    return section("table-3", "As Table 3: samples by task", intro, style + content)
