"""The look of all reports: one column on a phone, cards in a grid on a desk, light or dark as the system is."""

# Colours of regions, in the order of their numbers. They also serve pictures that are drawn as pixels.
PALETTE = ("#d9480f", "#1971c2", "#2b8a3e", "#9c36b5", "#e67700", "#0b7285")

CSS = """
:root {
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d1b1a; --soft: #6b6560; --line: #e4dfd9; --wash: #f3efea;
  --predicted: #d9480f; --true: #1971c2; --good: #2b8a3e; --bad: #c92a2a;
  --s0: #868e96; --s1: #1971c2; --s2: #d9480f; --s3: #5f3dc4;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161514; --card: #201e1d; --ink: #ece8e3; --soft: #a19a93; --line: #37332f; --wash: #2a2725;
    --predicted: #ff8a4c; --true: #5cb3ff; --good: #69db7c; --bad: #ff8787;
    --s0: #adb5bd; --s1: #5cb3ff; --s2: #ff8a4c; --s3: #b197fc;
  }
}

/* Text. */
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: ui-sans-serif, system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.1rem 5rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.6rem); line-height: 1.12; letter-spacing: -.02em; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 3.2rem 0 .2rem; }
h3 { font-size: .95rem; margin: 0; }
p { margin: .25rem 0 1rem; max-width: 74ch; }
ul { padding-left: 1.1rem; margin: .3rem 0; } li { overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); } .small { font-size: .84rem; } .bad { color: var(--bad); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.2rem 0 0; font-size: .9rem; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .25em; }
a:hover { text-decoration-color: currentColor; }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--wash);
  border-radius: 4px; padding: .05em .3em; overflow-wrap: anywhere; }
footer { margin-top: 4rem; border-top: 1px solid var(--line); padding-top: 1rem; }

/* Tables. */
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { text-align: left; font-weight: 600; padding: 1.2rem 0 .3rem; }
th, td { padding: .45rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-size: .8rem; font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; }
.left-1 tr > :nth-child(1), .left-2 tr > :nth-child(-n+2), .left-3 tr > :nth-child(-n+3) { text-align: left; }
tr.total td { font-weight: 700; border-top: 2px solid var(--line); }

/* Cards. */
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.card { margin: 0; overflow: hidden; display: flex; flex-direction: column; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px; }
.card .body { padding: .7rem .85rem .85rem; }
.card p { margin: .15rem 0; overflow-wrap: anywhere; }

/* Charts. */
.chart { padding: .8rem .9rem .5rem; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 11px; font-family: inherit; }
.chart .rule { stroke: var(--line); } .bar-plain { fill: var(--true); } .bar-marked { fill: var(--bad); }

/* Pictures and the regions drawn on them. */
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; background: var(--wash); }
svg.pixelated image { image-rendering: pixelated; }
.region { fill: none; stroke-width: 2.5; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.region.dashed { stroke-dasharray: 6 4; } .region.faint { stroke-opacity: .5; stroke-width: 1.5; }
.halo { fill: none; stroke: #fff; stroke-opacity: .75; stroke-width: 5; vector-effect: non-scaling-stroke; }
.label { font-weight: 700; paint-order: stroke; stroke: #fff; }

@media print {
  body { font-size: 12px; } main { max-width: none; padding: 0; } table { font-size: 9px; }
  th { font-size: 8px; } th, td { padding: 3px; } .card { break-inside: avoid; } h2 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
