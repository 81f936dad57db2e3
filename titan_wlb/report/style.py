"""The page's style sheet: light, dark and on paper. Colours follow Okabe and Ito, for colour-blind readers, too."""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2126; --soft: #68707a; --rule: #dfe3e8; --panel: #f5f7f9;
  --cells: #eef1f4; --compute: #3a7ca5; --starved: #b4b9c0; --other: #d5d9de; --phase: #c3cad2; --document: #7ab3d4;
  --run0: #7b8591; --run1: #0072b2; --run2: #d55e00; --run3: #009e73; --run4: #cc79a7; --run5: #a07800;
  --shade0: #1f4e79; --shade1: #7fb8da; --shade2: #3a7ca5; --shade3: #b5d6e8; --shade4: #2b638f; --shade5: #9cc8e1; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e4e7eb; --soft: #98a1ac; --rule: #2d333b;
  --panel: #1c2026; --cells: #22272e; --compute: #4c93bf; --starved: #6d747d; --other: #474e57; --phase: #4d555f;
  --document: #4c93bf; --run0: #9aa4b0; --run1: #56b4e9; --run2: #e8812f; --run3: #2fc295; --run4: #d991b9;
  --run5: #d9b23a; --shade0: #2a6297; --shade1: #8cc3e4; --shade2: #4a8fbc; --shade3: #b9d9ea; --shade4: #3675a8;
  --shade5: #a5cfe6; } }
@media print { :root { --paper: #ffffff; --ink: #000000; --soft: #555555; } body { font-size: 11px; }
  figure, table, .tiles { break-inside: avoid; } h2 { break-after: avoid; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 28px 30px 48px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
h1 { font-size: 25px; font-weight: 600; margin: 0 0 2px; letter-spacing: -0.01em; }
h2 { font-size: 18px; font-weight: 600; margin: 40px 0 4px; }
h3 { font-size: 14px; font-weight: 600; margin: 16px 0 2px; }
p { margin: 4px 0; max-width: 84ch; }
.soft, figcaption { color: var(--soft); font-size: 13.5px; }
.lead { font-size: 16.5px; }
figure { margin: 12px 0 4px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 28px; }
@media (max-width: 760px) { .two { grid-template-columns: 1fr; } body { padding: 18px 14px; } }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(124px, 1fr)); gap: 12px; margin: 18px 0 12px; }
.tile { background: var(--panel); border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 21px; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; margin: 10px 0; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 12px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; vertical-align: bottom; }
td.inner { padding-left: 18px !important; color: var(--soft); }
td.ratio { color: var(--soft); padding-left: 0; text-align: left; }
.wide { overflow-x: auto; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); margin: 8px 0; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 6px; vertical-align: -1px; }
.ramp { display: inline-block; width: 170px; height: 11px; border-radius: 2px; margin: 0 8px; vertical-align: -1px;
  background: linear-gradient(90deg, rgb(0 114 178), rgb(0 114 178 / 0) 50%, rgb(213 94 0 / 0) 50%, rgb(213 94 0)),
  var(--cells); }
text { fill: var(--ink); font-size: 13px; font-variant-numeric: tabular-nums; }
text.small { fill: var(--soft); font-size: 12px; } .two text.small { font-size: 12.5px; }
text.label { font-size: 14px; }
text.on { fill: #ffffff; font-size: 12.5px; pointer-events: none; }
text.on-starved, text.on-other, text.on-pipeline, text.on-shade1, text.on-shade3, text.on-shade5 { fill: #14202b; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
.ideal { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 5 4; opacity: 0.65; }
.era { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.dashed { stroke-width: 1.2; stroke-dasharray: 4 3; opacity: 0.75; }
.spot { fill-opacity: 0.55; stroke: none; } .pixels { image-rendering: pixelated; } .cells { fill: var(--cells); }
.document { fill: var(--document); stroke: var(--paper); stroke-width: 0.7; } .phase { fill: var(--phase); }
.back { fill-opacity: 0.72; }
.at-compute { fill: var(--compute); } .at-pipeline { fill: #e69f00; } .at-cp, .at-cp_waiting { fill: #cc79a7; }
.at-cp_transfer { fill: #e3b5d0; } .at-fsdp, .at-fsdp_waiting { fill: #d55e00; } .at-fsdp_transfer { fill: #f0a875; }
.at-data { fill: #009e73; } .at-starved { fill: var(--starved); } .at-other { fill: var(--other); }
text.on-cp_transfer, text.on-fsdp_transfer { fill: #14202b; }
""" + "".join(
    f".run{i} {{ fill: var(--run{i}); }} .curve.run{i} {{ fill: none; stroke: var(--run{i}); }} "
    f".curve.run{i}.dot {{ fill: var(--run{i}); }} .shade{i} {{ fill: var(--shade{i}); }}\n"
    for i in range(6)
)
