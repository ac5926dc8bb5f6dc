"""Frame, style and script of the report page, as text; `page.py` fills the `@@marks@@`."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<link rel="icon" href="data:,">
<title>@@title@@</title>
<style>
@@style@@</style>
</head>
<body>
<main>
<header><h1>@@title@@</h1>
<p id="summary">@@summary@@</p></header>
<noscript><p class="hint">The charts need JavaScript; the tables do not.</p></noscript>
@@body@@
</main>
<script type="application/json" id="figures">@@figures@@</script>
<script>@@plotly@@</script>
<script>
@@script@@</script>
</body>
</html>
"""

STYLE = """\
:root { --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --page: #fff; --card: #f6f8fa;
  --mark: #ddf4ff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f0f3f6; --soft: #9198a1; --line: #3d444d; --page: #0d1117; --card: #151b23;
    --mark: #12263f; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 40px 0 12px; padding-bottom: 6px;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 20px 0 4px; overflow-wrap: anywhere; }
#summary { font-size: 1.1rem; color: var(--soft); margin: 0; max-width: 75ch;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: 6px 12px; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; white-space: nowrap; }
tr > :first-child { position: sticky; left: 0; background: var(--page); }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.policy > * { background: var(--mark); }
tr.policy th { font-weight: 700; }
.range { display: block; color: var(--soft); font-size: .8rem; }
.hint, .reasons { color: var(--soft); font-size: .85rem; }
.chart { height: 440px; }
.chart.tall { height: 560px; }
/* Plotly backs the dashed line under the pointer with a white one: it cannot see the page. */
.chart .spikeline:not([stroke-dasharray]) { display: none; }
button { font: inherit; font-size: .85rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: 5px 12px; cursor: pointer; }
button[aria-pressed=true] { background: var(--mark); border-color: #2f81f7; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0;
  font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85rem;
  overflow-wrap: anywhere; }
ul { padding-left: 20px; }
li { overflow-wrap: anywhere; }
@media (max-width: 600px) {
  main { padding: 16px 12px 48px; }
  h1 { font-size: 1.4rem; }
  .chart, .chart.tall { margin: 0 -8px; }
  .chart { height: 360px; }
  .chart.tall { height: 500px; }
  th, td { padding: 6px 8px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
"""

SCRIPT = """\
const figures = JSON.parse(document.getElementById("figures").textContent);
const config = { responsive: true, displaylogo: false,
  showSendToCloud: false, plotlyServerURL: "", // plotly offers to upload charts by default
  modeBarButtonsToRemove: ["lasso2d", "select2d"] };
const touch = matchMedia("(pointer: coarse)").matches;
for (const [id, figure] of Object.entries(figures)) {
  if (touch) figure.layout.dragmode = false; // a finger on a chart scrolls the page
  Plotly.newPlot(id, figure.data, figure.layout, config);
}
const button = document.getElementById("log-scale");
if (button) {
  button.addEventListener("click", () => {
    const log = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(log));
    Plotly.relayout("equity-chart", { "yaxis.type": log ? "log" : "linear" });
  });
}
"""
