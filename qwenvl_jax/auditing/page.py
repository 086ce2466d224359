"""audit.html: one self-contained page that shows what a stage would be taught."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from qwenvl_jax.auditing.packing_preview import PACKING_COLUMNS, packing_row
from qwenvl_jax.auditing.samples import Audit, pixels_of
from qwenvl_jax.auditing.spans import Span, SpelledRegion, regions_of, spans_of
from qwenvl_jax.config import Config
from qwenvl_jax.data.examples import Example
from qwenvl_jax.data.images.pool import decode_all
from qwenvl_jax.html import page as html_page
from qwenvl_jax.html.charts import Bar, histogram
from qwenvl_jax.html.figures import Region, figure, palette_color
from qwenvl_jax.html.tables import table

MAGNIFIED = 112  # px; images up to this side are shown with their pixels

# Besides the style that all reports share.
STYLE = """
:root { --taught: #d3f0dc; --edge: #2b8a3e; }
@media (prefers-color-scheme: dark) { :root { --taught: #173f25; --edge: #69db7c; } }
h2 { border-top: 1px solid var(--line); padding-top: 1.4rem; }
.notes { border-left: 4px solid var(--bad); padding: .1rem 0 .1rem 1rem; margin: 1rem 0; }
.legend { margin-top: 1.5rem; }
.samples { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr));
  margin-top: 1rem; align-items: start; }
.sample { display: grid; gap: .9rem; grid-template-columns: minmax(0, 1fr); padding: .8rem .9rem; }
@media (min-width: 480px) { .sample.seen { grid-template-columns: minmax(0, 250px) minmax(0, 1fr); } }
.pictures { display: flex; flex-direction: column; gap: .6rem; } .pictures svg { border-radius: 6px; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75; margin: 0;
  font: .86rem/1.8 ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono CJK SC", monospace; }
.taught { background: var(--taught); border-bottom: 2px solid var(--edge); }
.special { color: var(--soft); font-size: .9em; } .taught.special { color: var(--edge); }
.image { border: 1px solid var(--line); border-radius: 6px; padding: 0 .35em; background: var(--wash); }
.chip { color: #fff; border-radius: 99px; padding: .05em .5em; font-size: .78em; }
.break { color: var(--soft); }
@media print { .samples { grid-template-columns: 1fr; } }
"""

_LEGEND = (
    '<p class="small legend">The text below is that of the tokens, in their order. <span class="tokens"><span '
    'class="taught">Marked</span></span> tokens count in the loss, <span class="tokens"><span class="special">'
    '&lt;tags&gt;</span></span> are single special tokens, and <span class="tokens"><span class="image">image 1: 256 '
    "slots</span></span> stands for the tokens that the features of an image replace. Boxes and quadrilaterals are "
    "drawn at the coordinates in the tokens, which are thousandths of the image before them, and carry their number in "
    "the text. The outline is solid if the region is taught and dashed if it is given. It is faint in earlier images, "
    "which the region may refer to as well. Images are as the model sees them, square and at the stage's resolution. "
    "Samples are the first ones drawn, not chosen; samples that do not fit are red in the charts.</p>"
)


def page(audit: Audit, config: Config) -> str:
    """The HTML of an audit; the same audit always gives the same page."""
    numbers = audit.numbers
    title = f"Supervision of stage {numbers['stage']}"
    links = [(f"s{index}", source["name"]) for index, source in enumerate(numbers["sources"])]
    notes = ""
    if numbers["notes"]:
        notes = f'<div class="notes">{html_page.bullets(map(escape, numbers["notes"]))}</div>'
    facts = (
        f"The first {numbers['total']['samples']:,} samples of config {numbers['config']}, model {numbers['model']}: "
        f"images of {numbers['image_size']} px with {numbers['queries']} features each, rows of "
        f"{numbers['sequence_length']:,} tokens, at most {numbers['images_of_a_group']:,} images in a group of rows."
    )
    parts = [html_page.header(title, escape(facts), links, notes), _tables(numbers), _LEGEND]
    for index, (source, samples) in enumerate(zip(numbers["sources"], audit.examples, strict=True)):
        examples = [_sample(sample, audit, config) for sample in samples]
        parts.append(_section(f"s{index}", source, numbers, examples))
    return html_page.page(title, "\n".join(parts), style=STYLE)


def _tables(numbers: dict[str, Any]) -> str:
    total = numbers["total"]
    summary = {**total, "name": "total", "task": "", "share": 1.0, "loss_share": float(total["supervised"] > 0)}
    sources = [*numbers["sources"], summary]
    counts = ("cut", "dropped", "filtered", "corrupt", "tokens", "supervised")
    supervision_header = ["source", "task", "samples", "share", *counts, "of its tokens", "of the loss", "images"]
    supervision_header += ["regions", "empty regions"]
    supervision = [
        [
            *(source["name"], source["task"], f"{source['samples']:,}", f"{source['share']:.1%}"),
            *(f"{source[key]:,}" for key in counts),
            *(f"{source['supervised_share']:.1%}", f"{source['loss_share']:.1%}"),
            *(f"{source[key]:,}" for key in ("images", "regions", "empty_regions")),
        ]
        for source in sources
    ]
    lengths = [
        [source["name"], *("" if value is None else f"{value:,}" for value in source["length"].values())]
        for source in sources
    ]
    tables = [
        table(supervision_header, supervision, caption="Supervision", text_columns=2, total=True),
        table(["source", *total["length"]], lengths, caption="Tokens per sample, dropped ones too", total=True),
    ]
    if numbers["packing"]:
        caption = "Packing, as if all samples were of one stream"
        tables.append(table(PACKING_COLUMNS, [packing_row(numbers["packing"])], caption=caption))
    return "".join(tables)


def _section(anchor: str, source: dict[str, Any], numbers: dict[str, Any], samples: Sequence[str]) -> str:
    facts = (
        f"{source['task']} · {source['records']:,} records in {source['path']} · {source['samples']:,} drawn, "
        f"{source['used']:,} used, {source['supervised_share']:.1%} of their tokens supervised"
    )
    charts = [
        _chart(source, "tokens", source["length_histogram"], numbers["sequence_length"]),
        _chart(source, "images", source["image_histogram"], numbers["images_of_a_group"]),
    ]
    unused = ""
    if source["left_out"]:
        reasons = [f'<b class="bad">{entry["state"]}</b> {escape(entry["message"])}' for entry in source["left_out"]]
        unused = f'<p class="small soft">The first that are not used:</p>{html_page.bullets(reasons)}'
    examples = '<p class="soft">No sample to show.</p>'
    if samples:
        examples = f'<div class="samples">{"".join(samples)}</div>'
    return html_page.section(anchor, source["name"], facts, html_page.grid(charts, wide=True) + unused + examples)


def _chart(source: dict[str, Any], unit: str, bars: Sequence[dict[str, int]], limit: int) -> str:
    title = f"{unit} per sample"
    shown = [Bar(bar["first"], bar["last"], bar["samples"], bar["dropped"]) for bar in bars]
    svg = histogram(shown, limit, label=f"{source['name']}: {title}")
    return html_page.card(title, svg, "chart")


def _sample(example: Example, audit: Audit, config: Config) -> str:
    """One sample: its images with the regions drawn on them, and its tokens."""
    spans = spans_of(example.tokens, audit.tokenizer, config.model.resampler.queries)
    regions = list(enumerate(regions_of(spans), start=1))
    pixels_IHWC = pixels_of(example, config.data)
    decode_all(example.images, example.stated_sizes, pixels_IHWC, config.data.image_decoder)
    pictures = "".join(
        _picture(pixels_HWC, index, [(number, region) for number, region in regions if index in region.images])
        for index, pixels_HWC in enumerate(pixels_IHWC)
    )
    if pictures:
        pictures = f'<div class="pictures">{pictures}</div>'
    supervised = sum(span.tokens for span in spans if span.supervised)
    facts = f"{example.record_id} · {len(example.tokens.tokens_L):,} tokens, {supervised:,} supervised"
    tokens = _tokens(spans, {region.span: (number, region) for number, region in regions})
    return (
        f'<article class="card sample{" seen" if pictures else ""}">{pictures}<div><h3>{escape(facts)}</h3>'
        f'<div class="tokens">{tokens}</div></div></article>'
    )


def _picture(pixels_HWC: np.ndarray, index: int, regions: Sequence[tuple[int, SpelledRegion]]) -> str:
    """One image with its numbered regions, in thousandths: the coordinates on the page are those of the tokens."""
    outlines = [
        Region(
            region.polygon,
            palette_color(number - 1),
            label=str(number),
            dashed=not region.supervised,
            faint=region.images[-1] != index,
        )
        for number, region in regions
    ]
    title = f"image {index + 1}"
    svg = figure(
        Image.fromarray(pixels_HWC),
        outlines,
        alt=title,
        units=(1000, 1000),
        pixelated=len(pixels_HWC) <= MAGNIFIED,
    )
    return f'<figure>{svg}<figcaption class="small">{title}</figcaption></figure>'


def _tokens(spans: Sequence[Span], regions: dict[int, tuple[int, SpelledRegion]]) -> str:
    """Spans as text.

    Args:
      spans: of one sample.
      regions: by the index of the span that opens it, each region with its number.
    """
    parts = []
    for index, span in enumerate(spans):
        styles = ["taught"] if span.supervised else []
        text = escape(span.text).replace("\n", '<span class="break">⏎</span>\n')
        if span.kind == "image":
            text = f"{text}: {span.tokens} slots"
        if span.kind != "text":
            styles.append(span.kind)
        title = f"{span.tokens} token{'s' if span.tokens > 1 else ''}, {'' if span.supervised else 'not '}supervised"
        parts.append(f'<span class="{" ".join(styles)}" title="{title}">{text}</span>')
        if index in regions:
            parts.append(_chip(*regions[index]))
    return "".join(parts)


def _chip(number: int, region: SpelledRegion) -> str:
    """The number of a region in the text, with what is wrong with it."""
    problem = ""
    if not region.corners:
        problem = " cannot be read"
    elif region.empty:
        problem = " surrounds nothing"
    if not region.images:
        problem += " without an image"
    return f'<span class="chip" style="background: {palette_color(number - 1)}">{number}{problem}</span>'
