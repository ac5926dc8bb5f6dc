"""The frame of a page: one html file that needs nothing else.

The file holds plotly.js, style and script once and asks the network for nothing (its own security
policy forbids it). Equal input gives equal bytes: no clock, no random ids. It knows nothing of
backtests. Start at `page`.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from plotly.offline import get_plotlyjs

from trade_pipeline.backtest.report.chart_parts import Figure
from trade_pipeline.backtest.report.packing import Packer

FRAME = """\
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
<button type="button" id="theme" aria-pressed="false" hidden>Dark</button>
<p id="summary">@@summary@@</p>
@@contents@@</header>
<noscript><p class="hint">The charts need JavaScript; the tables do not.</p></noscript>
@@body@@
</main>
<script type="application/json" id="figures">@@figures@@</script>
<script type="application/json" id="data">@@data@@</script>
<script type="application/json" id="arrays">@@arrays@@</script>
<script>@@plotly@@</script>
<script>
@@script@@</script>
</body>
</html>
"""


class Section(NamedTuple):
    """A part of a page with a heading; one without a body is left out."""

    id: str
    title: str
    """Plain text."""
    body_html: str


def page(
    title: str,
    summary: str,
    sections: Sequence[Section],
    figures: Mapping[str, Figure],
    data: Mapping[str, Any] | None = None,
) -> str:
    """The page as one html text.

    Args:
        title: plain text, as the summary.
        summary: under the title.
        sections: in their order.
        figures: id of a `chart` element to plotly's figure, whose arrays are numpy's.
        data: what the page's script reads besides: values with a JSON, and arrays.
    """
    packer = Packer()
    shown = [section for section in sections if section.body_html]
    replacements = {
        "title": escape(title),
        "summary": escape(summary),
        "contents": _contents(shown),
        "body": "\n".join(
            f'<section id="{section.id}"><h2>{escape(section.title)}</h2>\n'
            f"{section.body_html}\n</section>"
            for section in shown
        ),
        "figures": _json(figures, packer),
        "data": _json(data or {}, packer),
        "arrays": _json(packer.arrays, packer),
        "style": _asset("report.css"),
        "script": _asset("trades.js") + _asset("report.js"),
        "plotly": get_plotlyjs(),
    }
    # Split on the marks rather than replace one after another: no value is searched for marks.
    pieces = FRAME.split("@@")
    pieces[1::2] = [replacements[name] for name in pieces[1::2]]
    return "".join(pieces)


def chart(id_: str, description: str, tall: bool = False) -> str:
    """The place of the figure called `id_`; the plain text says what it shows."""
    kind = "chart tall" if tall else "chart"
    return f'<div id="{id_}" class="{kind}" role="img" aria-label="{escape(description)}"></div>'


def log_button(chart_id: str, id_: str) -> str:
    """A button that switches the first y axis of a chart to a logarithmic scale and back."""
    return (
        f'<button type="button" id="{id_}" class="log" data-chart="{chart_id}" '
        'aria-pressed="false">Log scale</button>\n'
    )


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 2:
        return ""
    links = "".join(f'<a href="#{one.id}">{escape(one.title)}</a>' for one in sections)
    return f'<nav aria-label="Contents">{links}</nav>\n'


def _json(value: Any, packer: Packer) -> str:
    """JSON for a script element: a "<" inside it could end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=packer.default)
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (files("trade_pipeline.backtest.report") / "assets" / name).read_text(encoding="utf-8")
