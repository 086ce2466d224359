"""The look of report.html: one column on a phone, cards in a grid on a desk, light or dark as the reader has it."""

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
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: ui-sans-serif, system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.1rem 5rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.6rem); line-height: 1.12; letter-spacing: -.02em; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 3.2rem 0 .2rem; }
h3 { font-size: .95rem; margin: 0; }
p { margin: .25rem 0 1rem; max-width: 68ch; }
.soft, figcaption, caption { color: var(--soft); }
.small { font-size: .84rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1.2rem 0 0; font-size: .9rem; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .25em; }
a:hover { text-decoration-color: currentColor; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: .8rem; margin: 1.8rem 0 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.75rem; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .55rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { font-size: .8rem; font-weight: 600; color: var(--soft); }
td.best { font-weight: 700; }
td .up { color: var(--good); } td .down { color: var(--bad); }
td small { display: block; font-size: .74rem; color: var(--soft); }
.bar { display: block; height: 3px; margin-top: .3rem; border-radius: 2px; background: var(--wash); }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--predicted); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.card { margin: 0; overflow: hidden; display: flex; flex-direction: column; }
.card .body { padding: .7rem .85rem .85rem; }
.card p { margin: .15rem 0; }
.card svg, .bubble svg { display: block; width: 100%; height: auto; background: var(--wash); }
.chart { padding: .8rem .9rem .5rem; }
.chart svg { background: none; }
.chart text { fill: var(--soft); font-size: 11px; font-family: inherit; }
.chart .rule { stroke: var(--line); }
.shape { fill: none; stroke-width: 2.5; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.shape.p { stroke: var(--predicted); } .shape.t { stroke: var(--true); stroke-dasharray: 5 4; }
.key { display: inline-flex; align-items: center; gap: .4rem; margin-right: 1rem; }
.key::before { content: ""; width: 18px; border-top: 3px solid var(--predicted); }
.key.t::before { border-top: 3px dashed var(--true); }
.mark { font-size: .78rem; font-weight: 600; } .mark.yes { color: var(--good); } .mark.no { color: var(--bad); }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--wash);
  border-radius: 4px; padding: .05em .3em; overflow-wrap: anywhere; }
.chat { display: flex; flex-direction: column; gap: .6rem; max-width: 640px; margin: 0 0 2.2rem; }
.bubble { border-radius: 14px; padding: .6rem .85rem; max-width: 86%; overflow-wrap: anywhere; }
.bubble.user { align-self: flex-end; background: var(--wash); }
.bubble.model { align-self: flex-start; background: var(--card); border: 1px solid var(--line); }
.bubble .pictures { display: flex; gap: .5rem; margin-bottom: .4rem; flex-wrap: wrap; }
.bubble .pictures figure { margin: 0; width: 150px; }
.bubble svg { border-radius: 8px; }
.bubble .one { width: 220px; max-width: 100%; margin-top: .45rem; }
footer { margin-top: 4rem; border-top: 1px solid var(--line); padding-top: 1rem; }
@media print { .card, .bubble, .tile { break-inside: avoid; } }
"""
