"""How the page looks: on wide and narrow screens, light and dark, and in print. Needs nothing from elsewhere.

Text has a contrast of at least 4.5 to what is behind it, bars and their outlines of at least 3, in both schemes.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1a1f24; --soft: #57606a; --paper: #fff; --raised: #f6f8fa; --line: #d8dee4;
  --kept: #1769aa; --taken: #c2410c; --came: #e3e8ee; --edge: #7d8894; --link: #0b5cad;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e6eaef; --soft: #a3adb8; --paper: #0f1317; --raised: #171c22; --line: #2c343d;
    --kept: #58a6e8; --taken: #f08a4b; --came: #28313b; --edge: #74808d; --link: #7cbcf5;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 66rem; padding: 1.75rem 1.25rem 5rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h1 small { display: block; font-size: .85rem; font-weight: 600; color: var(--soft); margin-bottom: .2rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
a { color: var(--link); }
code { font: .86em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere;
  unicode-bidi: isolate; }
.lead { font-size: 1.125rem; }
.soft, caption span, dt { color: var(--soft); }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.2rem 0;
  padding: 0; list-style: none; }
.tiles li { background: var(--raised); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .85rem; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .875rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0 0 1.2rem; }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: 0; list-style: none; font-size: .9rem; }

.scroll { overflow-x: auto; margin: 0 0 1.4rem; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
caption { text-align: start; padding-bottom: .45rem; font-size: .95rem; }
caption b, caption span { display: block; max-width: min(46rem, 100vw - 2rem); }
caption span { font-size: .875rem; }
th, td { text-align: start; padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 400; }
thead th, thead td { color: var(--soft); font-size: .8rem; vertical-align: bottom; border-bottom-color: var(--edge); }
tbody th[scope=row] { min-width: 7rem; overflow-wrap: anywhere; }
tbody th[scope=rowgroup] { font-weight: 600; padding-top: 1rem; }
th.n, td.n { text-align: right; white-space: nowrap; }
thead th.n { white-space: normal; }
.chart thead th { white-space: nowrap; }
td small, th small { color: var(--soft); font-size: .92em; }
td small { white-space: nowrap; }
.said th[scope=row] { min-width: 12rem; }
.keys td:last-child { min-width: 12rem; }
.benchmarks th[scope=row] { min-width: 9rem; }
.benchmarks td:last-child { min-width: 11rem; }

.bar { display: block; position: relative; min-width: 5rem; height: .8rem; margin-top: .24rem; }
.bar i { position: absolute; inset: 0 auto 0 0; min-width: 1px; border-radius: 1px; }
.bar .kept { background: var(--kept); }
.bar .taken { background: var(--taken); }
.bar .came { background: var(--came); border: 1px solid var(--edge); }
.bar .kept + .kept, .bar .came + .kept { inset-block: .15rem; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 1px; vertical-align: -.06rem; }
.key.kept { background: var(--kept); } .key.taken { background: var(--taken); }
.key.came { background: var(--came); border: 1px solid var(--edge); }
.chart th[scope=row] { width: 1%; min-width: 0; white-space: nowrap; overflow-wrap: normal; padding-right: 1.2rem; }
.chart td:nth-child(2) { width: 60%; }

.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 2.5rem; }
.pair > * { min-width: 0; }
.samples { padding: 0; margin: 0 0 1rem; list-style: none; font-size: .9rem; }
.samples li { padding: .35rem 0; border-bottom: 1px solid var(--line); }
.samples code { color: var(--soft); }
.samples p { margin: 0; max-width: none; overflow-wrap: anywhere; }

@media (min-width: 40rem) {
  .samples li { display: grid; grid-template-columns: 17rem 1fr; gap: 1.2rem; align-items: baseline; }
  .samples p { min-width: 0; }
  .keys th[scope=row] { min-width: 17rem; }
}
@media (max-width: 40rem) {
  body { padding: 1.1rem 1rem 3rem; }
  h1 { font-size: 1.45rem; }
  h2 { margin-top: 2.2rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
  table { font-size: .84rem; }
  th, td { padding-right: .55rem; }
  .said th[scope=row], .keys th[scope=row] { min-width: 8.4rem; }
  .chart th[scope=row] { white-space: normal; padding-right: .55rem; }
  .bar { min-width: 2.4rem; }
}
@media print {
  @page { margin: 15mm 13mm; }
  :root { color-scheme: light; }
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2 { margin-top: 1.8rem; }
  h2, h3, thead, tbody th[scope=rowgroup] { break-after: avoid; }
  .scroll, .pair, tr, .tiles li, .samples li { break-inside: avoid; }
  .scroll { overflow: visible; }
  .pair { grid-template-columns: 1fr 1fr; }
}
"""
