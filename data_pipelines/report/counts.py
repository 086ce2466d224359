"""The sections with numbers: the line of Table 2, the counts of every rule, rows that failed, languages, shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from data_pipelines.report import paper
from data_pipelines.report.texts import listed, shortened
from qwenvl_jax.html.charts import Step, funnel
from qwenvl_jax.html.page import card, section
from qwenvl_jax.html.tables import table

TABLE_2_HEADER = ("language", "dataset", "original", "cleaned", "remaining %")
_SHARDS_SHOWN = 20
_CAUSES_SHOWN = 10


def percent(part: int, whole: int) -> str:
    """A share to a tenth: 27.9; empty if there is nothing to share."""
    return f"{100 * part / whole:.1f}" if whole else ""


def language_of(manifest: Mapping[str, Any]) -> str:
    """The language of a corpus in Table 2: the one that it states, else those of its records."""
    codes = {code for task in manifest["tasks"].values() for code in task["languages"]}
    stated = manifest["job"].get("language", "")
    names = [paper.LANGUAGES.get(code, code) for code in ([stated] if stated else sorted(codes))]
    return listed(names, 3)


def tasks_of(manifest: Mapping[str, Any]) -> list[str]:
    """The tasks that have records, in the order of the corpus' entry."""
    return [task for task in manifest["job"]["tasks"] if task in manifest["tasks"]]


def table_2(manifest: Mapping[str, Any]) -> str:
    """The corpus as a line of Table 2, with the paper's line below it."""
    original, cleaned = manifest["rows"], manifest["kept"]
    language = language_of(manifest)
    rows = [(language, manifest["corpus"], f"{original:,}", f"{cleaned:,}", percent(cleaned, original))]
    figures = paper.TABLE_2.get(manifest["corpus"])
    note = "The paper's Table 2 has no line for this corpus."
    if figures is not None:
        remaining = figures.remaining.removesuffix("%")
        rows.append((language, "the same in the paper's Table 2", figures.original, figures.cleaned, remaining))
        note = ""
    intro = (
        "A row of the corpus is a picture with everything that the corpus says about it, or one text. "
        "Original are all rows, those that failed included; cleaned are the pairs that all rules have kept. " + note
    )
    return section("table-2", "As in Table 2", intro, table(TABLE_2_HEADER, rows, text_columns=2))


def rules(manifest: Mapping[str, Any]) -> str:
    """A bar and a line of a table for every rule, in order."""
    failed = manifest["failed"]["rows"]
    left = manifest["rows"] - failed
    steps = [Step("original", manifest["rows"])]
    if failed:
        steps.append(Step("failed", left, failed))
    across = {rule["rule"] for rule in manifest["job"]["across"]}
    rows = []
    for rule in manifest["rules"]:
        dropped = sum(rule["dropped"].values())
        left -= dropped
        steps.append(Step(rule["rule"], left, dropped))
        kind = "across pairs" if rule["rule"] in across else ""
        share = percent(dropped, rule["seen"])
        rows.append((rule["rule"], kind, f"{rule['seen']:,}", f"{rule['rewritten']:,}", f"{dropped:,}", share))
    chart = card("pairs that are left after each rule", f'<div class="scroll">{funnel(steps, label="rules")}</div>')
    header = ("rule", "", "seen", "rewritten", "dropped", "dropped %")
    intro = (
        "Each rule sees the pairs that the earlier ones have left. Rules across pairs compare "
        "the pairs of the whole corpus and so find duplicates. compose counts pairs from which no record can be made."
    )
    content = chart.replace('class="card"', 'class="card chart"', 1) + table(header, rows, text_columns=2)
    return section("rules", "Rules", intro, content + _reasons(manifest["rules"]))


def _reasons(counted: Sequence[Mapping[str, Any]]) -> str:
    """Why pairs were dropped, and the causes that rules name."""
    reasons = []
    for rule in counted:
        for reason, count in sorted(rule["dropped"].items(), key=lambda entry: (-entry[1], entry[0])):
            reasons.append((rule["rule"], shortened(reason, 200), f"{count:,}", percent(count, rule["seen"])))
    causes = []
    for rule in counted:
        entries = sorted(rule["causes"].items(), key=lambda entry: (-entry[1], entry[0]))
        causes += [(rule["rule"], shortened(name, 120), f"{count:,}") for name, count in entries[:_CAUSES_SHOWN]]
        if len(entries) > _CAUSES_SHOWN:
            more = sum(count for _, count in entries[_CAUSES_SHOWN:])
            causes.append((rule["rule"], f"and {len(entries) - _CAUSES_SHOWN:,} more names", f"{more:,}"))
    shown = ""
    if reasons:
        header = ("rule", "reason", "dropped", "% of seen")
        shown += table(header, reasons, caption="Dropped by reason", text_columns=2)
    if causes:
        caption = "Causes that rules name, of pairs that they rewrote or dropped"
        shown += table(("rule", "cause", "named"), causes, caption=caption, text_columns=2)
    return shown


def failed(manifest: Mapping[str, Any], examples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The rows that failed by reason, with the first ones."""
    reasons = sorted(manifest["failed"]["reasons"].items(), key=lambda entry: (-entry[1], entry[0]))
    if not reasons:
        return section("failed", "Rows that failed", "No row has failed.", "")
    counts = [(reason, f"{count:,}", percent(count, manifest["rows"])) for reason, count in reasons]
    rows = [
        (reason, shortened(row["file"], 80), row["row"], shortened(row["id"], 60), shortened(row["detail"], 160))
        for reason, _ in reasons
        for row in examples.get(reason, ())
    ]
    intro = "Rows that could not be read or processed. failed.jsonl lists all; --retry reads them again."
    content = table(("reason", "rows", "% of all"), counts)
    header = ("reason", "file", "row", "id", "detail")
    shown = table(header, rows, caption="The first for each reason", text_columns=3)
    return section("failed", "Rows that failed", intro, f'{content}<div class="details">{shown}</div>')


def languages_and_licences(manifest: Mapping[str, Any]) -> str:
    """Records by language, licence and source."""
    content = ""
    for key, title in (("languages", "language"), ("licenses", "licence"), ("sources", "source")):
        rows = []
        for task in tasks_of(manifest):
            summary = manifest["tasks"][task]
            entries = sorted(summary[key].items(), key=lambda entry: (-entry[1], entry[0]))
            for name, count in entries[:_CAUSES_SHOWN]:
                shown = shortened(name, 120) or "not stated"
                rows.append((shown, task, f"{count:,}", percent(count, summary["records"])))
            if len(entries) > _CAUSES_SHOWN:
                more = sum(count for _, count in entries[_CAUSES_SHOWN:])
                others = f"{len(entries) - _CAUSES_SHOWN:,} others"
                rows.append((others, task, f"{more:,}", percent(more, summary["records"])))
        if rows:
            content += table((title, "task", "records", "%"), rows, caption=f"Records by {title}", text_columns=2)
    return section("languages", "Languages and licences", "" if content else "No record was written.", content)


def shards(manifest: Mapping[str, Any]) -> str:
    """Records, samples, pictures and shards of every task."""
    rows = []
    files = []
    for task in tasks_of(manifest):
        summary = manifest["tasks"][task]
        sizes = [shard["bytes"] for shard in summary["shards"]]
        counts = (f"{summary[key]:,}" for key in ("records", "samples", "images"))
        rows.append((task, *counts, f"{len(sizes):,}", megabytes(summary["bytes"]), megabytes(max(sizes))))
        for shard in summary["shards"][:_SHARDS_SHOWN]:
            size = megabytes(shard["bytes"])
            files.append((f"{task}/{shard['file']}", shard["sha256"][:16], f"{shard['records']:,}", size))
        if len(sizes) > _SHARDS_SHOWN:
            files.append((f"{task}: {len(sizes) - _SHARDS_SHOWN:,} more in manifest.json", "", "", ""))
    header = ("task", "records", "samples", "pictures", "shards", "MB", "largest shard, MB")
    content = table(header, rows) if rows else ""
    content += (
        table(("shard", "sha256 begins", "records", "MB"), files, caption="Shards", text_columns=2) if files else ""
    )
    intro = "A record holds a picture once and all its samples of one task."
    return section("shards", "Records and shards", intro, content)


def megabytes(size: int) -> str:
    """Bytes in units of 10^6."""
    return f"{size / 1e6:,.2f}"


def versions(manifest: Mapping[str, Any]) -> str:
    """The settings of the rules, and the versions of the packages."""
    job = manifest["job"]
    settings = []
    for rule in (*job["recipe"], *job["across"]):
        values = ", ".join(f"{key}={value}" for key, value in sorted(rule.items()) if key != "rule")
        settings.append((rule["rule"], shortened(values, 200)))
    packages = ", ".join(f"{name} {version}" for name, version in sorted(manifest["versions"].items()))
    content = table(("rule", "settings"), settings, text_columns=2) if settings else ""
    content += f'<p class="soft small">{escape(packages)}</p>'
    return section("settings", "Settings and versions", "", f'<div class="details">{content}</div>')
