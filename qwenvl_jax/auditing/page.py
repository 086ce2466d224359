"""audit.html: one page without outside parts that shows what a stage would be taught."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from qwenvl_jax.auditing.samples import Audit, Place, Span, pixels_of, places_of, spans_of
from qwenvl_jax.config import Config
from qwenvl_jax.data.images.pool import decode_all
from qwenvl_jax.data.stream import Sample

COLORS = 6  # of places, as in CSS
MAGNIFIED = 112  # px; images up to this side are shown with their pixels

CSS = """
:root {
  --paper: #fbfaf8; --card: #fff; --ink: #1d1b1a; --soft: #6b6560; --line: #e4dfd9; --wash: #f3efea;
  --taught: #d3f0dc; --edge: #2b8a3e; --bad: #c92a2a; --bar: #1971c2;
  --c0: #e8590c; --c1: #1971c2; --c2: #c2255c; --c3: #2f9e44; --c4: #7048e8; --c5: #0b7285;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161514; --card: #201e1d; --ink: #ece8e3; --soft: #a19a93; --line: #37332f; --wash: #2a2725;
    --taught: #173f25; --edge: #69db7c; --bad: #ff8787; --bar: #5cb3ff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: ui-sans-serif, system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.1rem 5rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.2rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .1rem; border-top: 1px solid var(--line); padding-top: 1.4rem; }
h3 { font-size: .9rem; margin: 0 0 .3rem; }
p { margin: .25rem 0 .8rem; max-width: 78ch; }
p.wide { max-width: none; } p.legend { margin-top: 1.5rem; }
.soft { color: var(--soft); } .small { font-size: .84rem; } .bad { color: var(--bad); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .8rem 0 1.4rem; font-size: .9rem; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .25em; }
.notes { border-left: 4px solid var(--bad); padding: .1rem 0 .1rem 1rem; margin: 1rem 0; }
.notes li, .left li { overflow-wrap: anywhere; } ul { padding-left: 1.1rem; margin: .3rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding: 1.2rem 0 .3rem; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-size: .78rem; font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; }
.left-1 tr > :nth-child(1), .left-2 tr > :nth-child(-n+2) { text-align: left; }
tr.total td { font-weight: 700; border-top: 2px solid var(--line); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem .9rem; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 11px; font-family: inherit; }
.chart .axis { stroke: var(--line); } .chart .used { fill: var(--bar); } .chart .dropped { fill: var(--bad); }
.samples { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); }
.samples { margin-top: 1rem; align-items: start; }
.sample { display: grid; gap: .9rem; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 480px) { .sample.seen { grid-template-columns: minmax(0, 250px) minmax(0, 1fr); } }
.pictures { display: flex; flex-direction: column; gap: .6rem; }
.pictures figure { margin: 0; } .pictures svg { display: block; width: 100%; height: auto; border-radius: 6px; }
.pixels image { image-rendering: pixelated; }
.place { fill: none; stroke-width: 2.5; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.place.given { stroke-dasharray: 6 4; } .place.earlier { stroke-opacity: .5; stroke-width: 1.5; }
.halo { fill: none; stroke: #fff; stroke-opacity: .75; stroke-width: 5; vector-effect: non-scaling-stroke; }
.number { font-family: ui-sans-serif, system-ui, sans-serif; font-weight: 700; paint-order: stroke; stroke: #fff;
  stroke-width: 9px; }
.k0 { --c: var(--c0); } .k1 { --c: var(--c1); } .k2 { --c: var(--c2); }
.k3 { --c: var(--c3); } .k4 { --c: var(--c4); } .k5 { --c: var(--c5); }
.place { stroke: var(--c); } .number { fill: var(--c); }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75; margin: 0;
  font: .86rem/1.8 ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono CJK SC", monospace; }
.taught { background: var(--taught); border-bottom: 2px solid var(--edge); }
.special { color: var(--soft); font-size: .9em; } .taught.special { color: var(--edge); }
.image { border: 1px solid var(--line); border-radius: 6px; padding: 0 .35em; background: var(--wash); }
.chip { background: var(--c); color: #fff; border-radius: 99px; padding: .05em .5em; font-size: .78em; }
.break { color: var(--soft); }
@media print {
  body { font-size: 12px; } main { max-width: none; padding: 0; } table { font-size: 9px; }
  th { font-size: 8px; } th, td { padding: 3px; } .card { break-inside: avoid; } h2 { break-after: avoid; }
  .samples { grid-template-columns: 1fr; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

_LEGEND = (
    '<p class="small legend">Below, the text is that of the tokens, in their order. <span class="tokens"><span '
    'class="taught">Marked</span></span> is what the loss counts, <span class="tokens"><span class="special">'
    '&lt;tags&gt;</span></span> are single special tokens, and <span class="tokens"><span class="image">image 1: 256 '
    "places</span></span> are places that features of an image replace. Boxes and quadrilaterals are drawn where the "
    "tokens put them, in thousandths of the image before them, and carry their number in the text: with a whole line "
    "if they are taught, dashed if they are given, and faintly in images further back, which they may mean as well. "
    "Images are as the model sees them, square and at the stage's resolution. Samples are the first ones drawn, not "
    "chosen; those that do not fit are red in the charts.</p>"
)


def page(found: Audit, config: Config) -> str:
    """The HTML of an audit; the same one for the same audit."""
    numbers, escape = found.numbers, html.escape
    title = f"Supervision of stage {numbers['stage']}"
    nav = "".join(f'<a href="#s{k}">{escape(own["name"])}</a>' for k, own in enumerate(numbers["sources"]))
    notes = "".join(f"<li>{escape(note)}</li>" for note in numbers["notes"])
    notes = f'<div class="notes"><ul>{notes}</ul></div>' if notes else ""
    facts = (
        f"The first {numbers['total']['samples']:,} samples of config {numbers['config']}, model {numbers['model']}: "
        f"images of {numbers['image_size']} px with {numbers['queries']} places each, rows of "
        f"{numbers['sequence_length']:,} tokens, at most {numbers['images_of_a_group']:,} images in a group of rows."
    )
    limits = {"length": numbers["sequence_length"], "image": numbers["images_of_a_group"]}
    sections = [
        _section(k, own, limits, [_sample(sample, found, config) for sample in samples])
        for k, (own, samples) in enumerate(zip(numbers["sources"], found.examples, strict=True))
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n<body><main>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(facts)}</p><nav>{nav}</nav>{notes}</header>\n'
        f"{_tables(numbers)}\n{_LEGEND}\n{chr(10).join(sections)}\n</main></body></html>\n"
    )


def _tables(numbers: dict[str, Any]) -> str:
    sources, total = numbers["sources"], numbers["total"]
    rows = [
        *sources,
        {**total, "name": "total", "task": "", "share": 1.0, "loss_share": float(total["supervised"] > 0)},
    ]
    counts = ("dropped", "corrupt", "tokens", "supervised")
    first = [
        [
            *(own["name"], own["task"], f"{own['samples']:,}", f"{own['share']:.1%}"),
            *(f"{own[key]:,}" for key in counts),
            *(f"{own['supervised_share']:.1%}", f"{own['loss_share']:.1%}"),
            *(f"{own[key]:,}" for key in ("images", "places", "empty_places")),
        ]
        for own in rows
    ]
    head = ["source", "task", "samples", "share", *counts, "of its tokens", "of the loss", "images", "places"]
    head.append("empty places")
    lengths = [
        [own["name"], *("" if value is None else f"{value:,}" for value in own["length"].values())] for own in rows
    ]
    return _table("Supervision", head, first, "left-2") + _table(
        "Tokens per sample, dropped ones too", ["source", *total["length"]], lengths, "left-1"
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}>{cell}</{tag}>" for cell in row)

    lines = [f"<tr>{cells('td', [html.escape(cell) for cell in row])}</tr>" for row in rows]
    lines[-1] = lines[-1].replace("<tr>", '<tr class="total">', 1)
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{title}</caption><thead><tr>{cells("th", head)}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _section(number: int, own: dict[str, Any], limits: dict[str, int], samples: Sequence[str]) -> str:
    name, escape = own["name"], html.escape
    facts = (
        f"{own['task']} · {own['records']:,} records in {own['path']} · {own['samples']:,} drawn, {own['used']:,} "
        f"used, {own['supervised_share']:.1%} of their tokens supervised"
    )
    charts = "".join(
        f'<div class="card chart"><h3>{title} per sample</h3>'
        f"{_histogram(own[f'{key}_histogram'], limit, escape(f'{name}: {title} per sample'))}</div>"
        for (key, limit), title in zip(limits.items(), ("tokens", "images"), strict=True)
    )
    left = "".join(
        f'<li><b class="bad">{entry["state"]}</b> {escape(entry["message"])}</li>' for entry in own["left_out"]
    )
    left = f'<p class="small soft">The first that are not used:</p><ul class="left small">{left}</ul>' if left else ""
    shown = f'<div class="samples">{"".join(samples)}</div>' if samples else '<p class="soft">No sample to show.</p>'
    return (
        f'<section id="s{number}"><h2>{escape(name)}</h2><p class="soft small wide">{escape(facts)}</p>'
        f'<div class="grid">{charts}</div>{left}{shown}</section>'
    )


def _histogram(bars: Sequence[dict[str, int]], limit: int, label: str) -> str:
    """Bars of samples by value, the dropped ones on top, and what is above the limit; `label` is escaped already."""
    width, height, floor, roof = 480, 170, 24, 18
    highest = max((bar["samples"] for bar in bars), default=0) or 1
    step = (width - 8) / max(len(bars), 6)
    scale = (height - floor - roof) / highest
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    every = -(-len(bars) // 8)  # labels that have room
    for k, bar in enumerate(bars):
        x, y = 4 + k * step, float(height - floor)
        for kind, count in (("used", bar["samples"] - bar["dropped"]), ("dropped", bar["dropped"])):
            y -= count * scale
            size = f'width="{step - 2:.1f}" height="{count * scale:.1f}"'
            parts.append(f'<rect class="{kind}" x="{x + 1:.1f}" y="{y:.1f}" {size}/>' if count else "")
        middle = f'x="{x + step / 2:.1f}" text-anchor="middle"'
        if bar["samples"]:
            parts.append(f'<text {middle} y="{y - 4:.1f}">{bar["samples"]}</text>')
        if bar["first"] > limit:
            parts.append(f'<text x="{width - 4}" text-anchor="end" y="{height - 8}">over {limit}</text>')
        elif k % every == 0 and (k + every < len(bars) or bars[-1]["first"] <= limit):
            where = middle if bar["first"] == bar["last"] else f'x="{x + 1:.1f}"'  # a bar begins at its label
            parts.append(f'<text {where} y="{height - 8}">{bar["first"]}</text>')
    parts.append(f'<line class="axis" x1="4" x2="{width - 4}" y1="{height - floor}" y2="{height - floor}"/></svg>')
    return "".join(parts)


def _sample(sample: Sample, found: Audit, config: Config) -> str:
    """One sample: its images with the places drawn into them, and its tokens."""
    spans = spans_of(sample.tokens, found.tokenizer, config.model.resampler.queries)
    places = list(enumerate(places_of(spans), start=1))
    pixels_IHWC = pixels_of(sample, config.data)
    decode_all(sample.images, sample.stated, pixels_IHWC, config.data.jpeg_draft)
    pictures = "".join(
        _picture(pixels_HWC, k, [(n, place) for n, place in places if k in place.images])
        for k, pixels_HWC in enumerate(pixels_IHWC)
    )
    if pictures:
        pictures = f'<div class="pictures">{pictures}</div>'
    supervised = sum(span.tokens for span in spans if span.supervised)
    facts = f"{sample.name} · {len(sample.tokens.tokens_L):,} tokens, {supervised:,} supervised"
    return (
        f'<article class="card sample{" seen" if pictures else ""}">{pictures}<div><h3>{html.escape(facts)}</h3>'
        f'<div class="tokens">{_tokens(spans, {place.span: (n, place) for n, place in places})}</div></div></article>'
    )


def _picture(pixels_HWC: np.ndarray, number: int, places: Sequence[tuple[int, Place]]) -> str:
    """An image in thousandths of its sides, so that the coordinates drawn are the very numbers of the tokens."""
    payload = io.BytesIO()
    Image.fromarray(pixels_HWC).save(payload, "JPEG", quality=95, subsampling=0)
    address = base64.b64encode(payload.getvalue()).decode()
    pixels = ' class="pixels"' if len(pixels_HWC) <= MAGNIFIED else ""
    parts = [f'<svg{pixels} viewBox="0 0 1000 1000" role="img" aria-label="image {number + 1}">']
    parts.append(
        f'<image href="data:image/jpeg;base64,{address}" width="1000" height="1000" preserveAspectRatio="none"/>'
    )
    size = 54 if len(places) <= 8 else 32
    for n, place in places:
        points = " ".join(f"{x},{y}" for x, y in place.polygon)
        kind = "" if place.supervised else " given"
        if place.images[-1] == number:
            parts.append(f'<polygon class="halo" points="{points}"/>')
        else:
            kind += " earlier"
        parts.append(f'<polygon class="place k{(n - 1) % COLORS}{kind}" points="{points}"/>')
    for n, place in places:
        if place.corners and place.images[-1] == number:
            x, y = place.corners[0]
            above = y - 10 if y > size else y + size
            parts.append(
                f'<text class="number k{(n - 1) % COLORS}" x="{min(max(x, 4), 960)}" y="{min(above, 990)}" '
                f'font-size="{size}">{n}</text>'
            )
    return f'<figure>{"".join(parts)}</svg><figcaption class="small soft">image {number + 1}</figcaption></figure>'


def _tokens(spans: Sequence[Span], places: dict[int, tuple[int, Place]]) -> str:
    """Spans as text; `places` are those that they open, with their numbers."""
    parts = []
    for k, span in enumerate(spans):
        kinds = ["taught"] if span.supervised else []
        text = html.escape(span.text).replace("\n", '<span class="break">⏎</span>\n')
        if span.kind == "image":
            text = f"{text}: {span.tokens} places"
        if span.kind != "text":
            kinds.append(span.kind)
        title = f"{span.tokens} token{'s' if span.tokens > 1 else ''}, {'' if span.supervised else 'not '}supervised"
        parts.append(f'<span class="{" ".join(kinds)}" title="{title}">{text}</span>')
        if k in places:
            n, place = places[k]
            wrong = "" if place.corners else " cannot be read"
            wrong = wrong or (" surrounds nothing" if place.empty else "")
            wrong += "" if place.images else " without an image"
            parts.append(f'<span class="chip k{(n - 1) % COLORS}">{n}{wrong}</span>')
    return "".join(parts)
