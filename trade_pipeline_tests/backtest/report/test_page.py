"""The report page: what it says, that it is one file, and that a browser shows it."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest

from trade_pipeline.backtest.report.page import Curve, ReportInput, render, summary
from trade_pipeline.evaluation.metrics import metrics

DAY_MS = 86_400_000
START = datetime(2024, 1, 1, tzinfo=UTC)
START_MS = int(START.timestamp() * 1000)
HOSTILE = '</script><script>alert("x")</script>'


def curve(name, kind, drift, size=400):
    ts = START_MS + np.arange(size, dtype=np.int64) * DAY_MS
    noise = np.random.default_rng(sum(map(ord, name))).normal(drift, 0.01, size)
    return Curve(name, kind, ts, 1e5 * np.exp(np.cumsum(noise)))


def trip(day, side, net, **changes):
    entered, left = START + timedelta(days=day), START + timedelta(days=day + 5)
    return {
        "instrument": "sample.AAPL.1d",
        "side": side,
        "entry_time": entered,
        "entry_price": 100.0,
        "exit_time": left,
        "exit_price": 101.0,
        "net": net,
        "entry_reason": "order",
        "exit_reason": "stop",
    } | changes


def figures_of(equity):
    bars = equity.size - 1
    ts = np.arange(equity.size, dtype=np.int64) * DAY_MS
    return metrics(equity, ts, 365, 365, np.ones(bars), np.zeros(bars), np.empty(0))


@pytest.fixture(scope="module")
def report():
    curves = [
        curve("base.f0.s0", "trial", 0.001),
        curve("base.f0.s1", "trial", 0.0),
        curve("base", "policy", 0.001),
        curve("buy_and_hold", "baseline", 0.0005),
    ]
    close = curve("price", "trial", 0.0).equity / 1000
    prices = (curves[0].ts, close, close * 1.01, close * 0.99, close)
    open_end = {"exit_time": None, "exit_price": None, "exit_reason": None}
    trips = [
        trip(3, "long", 5.0),
        trip(40, "short", -7.5),
        trip(90, "short", 2.0),
        trip(200, "long", None, **open_end),
    ]
    board = pl.DataFrame(
        {
            "experiment": ["demo", "demo"],
            "name": ["base", "buy_and_hold"],
            "kind": ["policy", "baseline"],
            "seeds": [2, None],
            "sharpe": [1.234, -0.5],
            "sharpe_min": [0.5, None],
            "sharpe_max": [1.9, None],
            "sharpe_low": [-1.0, None],
            "sharpe_high": [3.0, None],
            "total_return": [0.1234, None],
        }
    )
    return ReportInput(
        title="Demo",
        curves=curves,
        leaderboard=board,
        prices={"sample.AAPL.1d": prices},
        trips=pl.DataFrame(trips, infer_schema_length=None),
        metrics={"base": figures_of(curves[2].equity), "flat": figures_of(np.full(30, 1e5))},
        provenance={"dataset": "3f" * 16, "commit": "abc"},
        notes=["Costs are in."],
    )


@pytest.fixture(scope="module")
def page(report):
    return render(report)


def figures_in(page):
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL).group(1))


def own_text(page):
    """The page without plotly's script, which is full of words."""
    start = page.index("/**\n* plotly.js v")
    return page[:start] + page[page.index("</script>", start) :]


def test_equal_input_gives_equal_bytes(report, page):
    assert render(report) == page


def test_every_section_has_its_id(page):
    for id_ in ("leaderboard", "equity", "prices", "metrics", "provenance", "notes"):
        assert page.count(f'<section id="{id_}">') == 1
    assert list(figures_in(page)) == ["equity-chart", "price-chart-0"]
    for id_ in figures_in(page):
        assert page.count(f'<div id="{id_}"') == 1


def test_the_page_is_one_file_that_loads_nothing(page):
    text = own_text(page)
    assert page.count("* plotly.js v") == 1
    assert not re.search(r"https?://|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")", text)
    assert not re.search(r"<(script|img|iframe)[^>]*\ssrc=", text)
    assert "default-src 'none'" in text
    assert "showSendToCloud: false" in text


def test_the_page_fits_phones_and_dark_mode(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "prefers-color-scheme: dark" in page


def test_the_summary_is_one_sentence_with_the_figures(report):
    text = summary(report)
    assert text.startswith("From 2024-01-01 to 2025-02-03 base returned ")
    assert "buy_and_hold returned " in text
    assert text.count(". ") == 0 and text.endswith(".")
    alone = replace(report, curves=[], metrics={})
    assert summary(alone) == "No equity curve was given."


def test_a_policy_row_shows_its_seeds_range_and_interval(page):
    row = re.search(r'<tr class="policy">.*?</tr>', page).group(0)
    assert row.startswith('<tr class="policy"><th scope="row">base</th>')
    assert '1.23 <span class="range">seeds 0.50 to 1.90</span>' in row
    assert '<span class="range">95 % −1.00 to 3.00</span>' in row
    assert "12.3 %" in row


def test_an_undefined_figure_is_a_dash_with_its_reason_below(page):
    row = re.search(r'<th scope="row">Calmar</th>.*?</tr>', page).group(0)
    assert row.endswith('<td class="number">–</td></tr>')
    assert "flat: no Calmar: equity never fell below its highest value." in page
    assert not re.search(r">(nan|None|inf)\b", page[: page.index("<script")])


def test_every_name_is_escaped(report):
    hostile = replace(
        report,
        title=HOSTILE,
        curves=[replace(each, name=each.name + HOSTILE) for each in report.curves],
        leaderboard=report.leaderboard.with_columns(name=pl.lit(HOSTILE)).rename(
            {"total_return": HOSTILE}
        ),
        prices={HOSTILE: report.prices["sample.AAPL.1d"]},
        trips=report.trips.with_columns(instrument=pl.lit(HOSTILE), exit_reason=pl.lit(HOSTILE)),
        metrics={HOSTILE: report.metrics["base"] | {"warnings": [HOSTILE]}},
        provenance={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )
    page = own_text(render(hostile))
    assert "<script>alert" not in page
    # Data, plotly and the page's own script; nothing else closes a script.
    assert page.count("</script>") == 3
    names = [trace["name"] for trace in figures_in(render(hostile))["equity-chart"]["data"]]
    assert not any("<" in name for name in names)


def test_plotly_knows_every_property_of_the_figures(page):
    for figure in figures_in(page).values():
        go.Figure(figure)  # raises on an unknown or misspelt property


def test_entries_and_exits_are_marked(page):
    traces = {t["name"]: t for t in figures_in(page)["price-chart-0"]["data"]}
    counts = {name: len(trace["text"]) for name, trace in traces.items() if "text" in trace}
    assert counts == {"Long entry": 2, "Short entry": 2, "Exit, gain": 2, "Exit, loss": 1}
    assert traces["Exit, loss"]["customdata"] == ["-7.50"]


def test_long_curves_many_bars_and_many_trades_stay_modest(report):
    size = 60_000
    long_curves = [curve(f"base.f0.s{seed}", "trial", 0.0, size) for seed in range(40)]
    close = long_curves[0].equity
    trips = pl.DataFrame([trip(number % 300, "long", float(number)) for number in range(2_500)])
    page = render(
        replace(
            report,
            curves=long_curves,
            prices={"sample.AAPL.1d": (long_curves[0].ts, *[close] * 4)},
            trips=trips,
        )
    )
    figures = figures_in(page)
    assert len(page) < 4_900_000 + 9_000_000
    assert "Each candle is 20 bars." in page
    assert "Markers show the 2,000 trades of 2,500" in page
    assert max(len(trace.get("text", ())) for trace in figures["price-chart-0"]["data"]) == 2_000


def test_an_empty_report_is_still_a_page(report):
    empty = ReportInput("Nothing", [], pl.DataFrame(), {}, pl.DataFrame(), {}, {})
    page = render(empty)
    assert "No equity curve was given." in page
    assert "<section" not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"equity": np.array([1.0])}, r"curve 'x': shapes are"),
        ({"equity": np.array([1.0, np.nan])}, r"equity is nan at row 1"),
        ({"name": "base"}, "two curves are called 'base'"),
    ],
)
def test_an_unusable_curve_is_named(report, change, message):
    wrong = replace(Curve("x", "trial", np.array([0, 1]), np.array([1.0, 2.0])), **change)
    with pytest.raises(ValueError, match=message):
        render(replace(report, curves=[*report.curves, wrong]))


def test_no_trades_need_no_columns(report):
    page = render(replace(report, trips=pl.DataFrame()))
    assert [trace["name"] for trace in figures_in(page)["price-chart-0"]["data"]] == ["Price"]


def test_missing_trip_columns_are_named(report):
    with pytest.raises(ValueError, match="trips have no column net"):
        render(replace(report, trips=report.trips.drop("net")))


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_draws_the_charts_without_asking_the_network(browser, page, tmp_path, width):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    requests, problems = [], []
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark")
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda said: problems.append(said.text))
    tab.goto(file.as_uri())
    tab.wait_for_selector("#price-chart-0 .main-svg")
    assert tab.locator("#equity-chart .scatterlayer .trace").count() == 6
    tab.click("#log-scale")
    kind = "document.getElementById('equity-chart')._fullLayout.yaxis.type"
    assert tab.evaluate(kind) == "log"
    assert tab.get_attribute("#log-scale", "aria-pressed") == "true"
    tab.click("#log-scale")
    assert tab.evaluate(kind) == "linear"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []
