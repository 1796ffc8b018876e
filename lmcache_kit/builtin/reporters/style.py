"""How the page looks: light and dark, wide and narrow."""

from __future__ import annotations

from lmcache_kit.builtin.reporters.lines import COLOURS

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #5d6778; --line: #d8dde6; --page: #fff; --soft: #f5f7fa;
  --s0: #2f6fde; --s1: #f0912b; --s2: #7a5bc7; --s3: #2a9d6f; --s4: #c8427c; --s5: #7d8794;
  --s6: #a67c00; --s7: #16a3b8; --good: #1a7f47; --bad: #c0322b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --dim: #98a3b5; --line: #343c4a; --page: #14181f;
  --soft: #1c222c; --s0: #6b9df2; --s1: #f5ad5c; --s2: #a68fe0; --s3: #57c596; --s4: #e779a8;
  --s5: #a3adba; --s6: #d6b24a; --s7: #5ccbdc; --good: #4cc07f; --bad: #f0736c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 76rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } .dim { color: var(--dim); }
.status { font-weight: 600; } .passed, .met { color: var(--good); } .failed, .missed, .MISSED { color: var(--bad); }
.scroll { overflow-x: auto; } .note + .scroll { margin-top: 1.4rem; } .note { font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; white-space: nowrap; } td.n { text-align: right; white-space: nowrap; }
th.n { text-align: right; } td:first-child { white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); }
tbody tr:hover { background: var(--soft); }
figure { margin: 0; } figcaption { color: var(--dim); margin-bottom: .3rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 2rem; }
.chart { display: block; overflow: visible; } .chart text { fill: var(--ink); font-size: 12px; }
.chart .value { fill: var(--dim); }
.grid { stroke: var(--line); } .plot path { fill: none; stroke-width: 1.6; stroke-linecap: round;
  stroke-linejoin: round; vector-effect: non-scaling-stroke; }
@COLOURS@
details { border-bottom: 1px solid var(--line); padding: .35rem 0; } summary { cursor: pointer; }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .8rem; } th, td { padding: .35rem .45rem; } }
details table { margin: .4rem 0 .8rem; width: auto; } pre { white-space: pre-wrap; color: var(--bad); }
""".replace(
    "@COLOURS@",
    "\n".join(f".s{i} {{ fill: var(--s{i}); }} .plot .l{i} {{ stroke: var(--s{i}); }}" for i in range(COLOURS)),
)
