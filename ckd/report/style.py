"""The page's style sheet: light and dark, wide and narrow.

Series colours follow Okabe and Ito's palette, darkened on white and lightened on black so that each has a contrast of
at least 3 to its background; nobody has to tell red from green, and markers and dashes differ too.
"""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f7f9; --ink: #1b1f24; --soft: #59636e; --rule: #d5dae0; --grid: #e8ebef;
  --link: #0b5cad; --red: #a40e0e; --red-paper: #fdeeee; --amber: #7a4d00; --amber-paper: #fff6e0;
  --c0: #0072b2; --c1: #d04e00; --c2: #00795c; --c3: #a2457f; --c4: #8a6a00; --c5: #2e8bc9; --c6: #4a4f57;
  --b0: #e8f1f9; --b1: #d3e5f4; --b2: #bcd8ee; --b3: #a3c9e7; --b4: #89b9df;
  --b5: #6fa9d7; --b6: #5799ce; --b7: #3f88c5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --raised: #1c2229; --ink: #e6e9ed; --soft: #9ea8b3; --rule: #3a434d; --grid: #2a313a;
    --link: #7cc0ff; --red: #ffb3ab; --red-paper: #43110f; --amber: #ffd88a; --amber-paper: #3a2c08;
    --c0: #5ab4ec; --c1: #ff8f4d; --c2: #35c9a0; --c3: #e79cc6; --c4: #e5c334; --c5: #a8d8ff; --c6: #c3c9d1;
    --b0: #1b2e40; --b1: #203a53; --b2: #264766; --b3: #2c5479; --b4: #32628d;
    --b5: #3970a0; --b6: #3e7bae; --b7: #4585bc;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main, header, nav { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
main { padding-bottom: 60px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 44px 0 6px; padding-top: 14px; border-top: 2px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 26px 0 6px; }
h4 { font-size: .95rem; margin: 16px 0 4px; }
p { margin: 6px 0; }
a { color: var(--link); }
.lead, .note, figcaption small { color: var(--soft); }
.note { font-size: .9rem; }
nav ul { list-style: none; margin: 12px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 16px; }
code, pre { font: .86em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--raised); border: 1px solid var(--rule); border-radius: 6px; padding: 8px 10px;
  margin: 8px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.stamp, .problem { display: flex; gap: 10px; align-items: flex-start; border-radius: 6px; padding: 8px 12px;
  margin: 10px 0; overflow-wrap: anywhere; }
.stamp { border: 2px solid var(--red); color: var(--red); background: var(--red-paper); font-weight: 600; }
.problem { border: 1px dashed var(--amber); color: var(--amber); background: var(--amber-paper); }
.stamp svg, .problem svg { flex: none; width: 20px; height: 20px; margin-top: 1px; }
.scroll { overflow-x: auto; margin: 10px 0; border: 1px solid var(--rule); border-radius: 6px; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
.title { font-weight: 600; font-size: .95rem; line-height: 1.3; margin: 18px 0 -4px; }
th, td { padding: 5px 10px; text-align: left; border-top: 1px solid var(--grid); vertical-align: top; }
thead th { border-top: 0; border-bottom: 1px solid var(--rule); vertical-align: bottom; background: var(--raised);
  line-height: 1.25; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--paper); white-space: nowrap; }
td { white-space: nowrap; }
td.w, th.w { white-space: normal; min-width: 13rem; }
.n { text-align: right; white-space: nowrap; }
thead th:not(:first-child) { white-space: nowrap; }
td.paper { color: var(--soft); font-style: italic; background: var(--raised); }
.badge { display: inline-block; font-size: .72rem; font-weight: 500; font-style: italic; border: 1px solid var(--soft);
  border-radius: 3px; padding: 0 4px; color: var(--soft); }
.figures { display: grid; gap: 18px 22px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  margin: 14px 0; }
figure { margin: 0; min-width: 0; }
figcaption small { font-weight: 400; }
figcaption { font-weight: 600; font-size: .92rem; line-height: 1.3; margin-bottom: 2px; }
figure > svg { display: block; width: 100%; height: auto; max-width: 560px; }
figure details { font-size: .88rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; padding: 0; margin: 4px 0;
  font-size: .84rem; }
.legend li { display: flex; align-items: center; gap: 6px; line-height: 1.3; }
.legend svg { flex: none; }
details { margin: 6px 0; }
summary { cursor: pointer; color: var(--link); padding: 2px 0; overflow-wrap: anywhere; }
details.run { border: 1px solid var(--rule); border-radius: 6px; padding: 4px 12px; }
details.run > summary { color: var(--ink); font-weight: 500; }
details.run > summary small { color: var(--soft); font-weight: 400; }
details.run[open] { padding-bottom: 12px; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 0 24px; margin: 6px 0;
  font-size: .86rem; }
dl div { display: flex; gap: 10px; justify-content: space-between; border-top: 1px solid var(--grid); padding: 2px 0; }
dt { color: var(--soft); flex: none; max-width: 55%; overflow-wrap: anywhere; }
dd { margin: 0; text-align: right; min-width: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
svg text { fill: var(--ink); font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
svg .tick, svg .name { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg .tick { fill: var(--soft); font-size: 10.5px; }
svg .label { fill: var(--soft); font-size: 11px; }
.axis { stroke: var(--soft); stroke-width: 1; }
.grid { stroke: var(--grid); stroke-width: 1; }
.mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 1 3; }
.reference { stroke: var(--ink); stroke-width: 1.3; stroke-dasharray: 8 4; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); }
.s4 { --c: var(--c4); } .s5 { --c: var(--c5); } .s6 { --c: var(--c6); }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--c); stroke: var(--paper); stroke-width: .8; }
.bubble { fill: var(--c); fill-opacity: .18; stroke: var(--c); stroke-width: 1; }
.bar { fill: var(--c); }
.whisker { stroke: var(--c); stroke-width: 1.4; }
.on .dot { fill: var(--paper); stroke: none; }
.on .whisker { stroke: var(--ink); }
.paper .dot { fill: var(--paper); stroke: var(--c); stroke-width: 1.6; }
.paper .line { stroke-width: 1.3; }
.paper .bar { fill-opacity: .28; stroke: var(--c); stroke-width: 1; stroke-dasharray: 3 2; }
.box { stroke: var(--soft); stroke-width: .7; }
.b0 { fill: var(--b0); } .b1 { fill: var(--b1); } .b2 { fill: var(--b2); } .b3 { fill: var(--b3); }
.b4 { fill: var(--b4); } .b5 { fill: var(--b5); } .b6 { fill: var(--b6); } .b7 { fill: var(--b7); }
.rule { stroke: var(--soft); stroke-width: 1; }
.median { stroke: var(--ink); stroke-width: 2; }
polyline.stage { fill: none; stroke: var(--c1); stroke-width: 2; }
circle.stage { fill: var(--c1); stroke: var(--paper); stroke-width: 1; }
@media (max-width: 640px) {
  tbody th { white-space: normal; }
  main, header, nav { padding-left: 12px; padding-right: 12px; }
  th, td { padding: 4px 7px; }
  tbody th, th.w { max-width: 42vw; min-width: 5.5rem; }
  dl { grid-template-columns: 1fr; }
}
@media print { details > *:not(summary) { display: block; } .scroll { overflow: visible; } }
"""
