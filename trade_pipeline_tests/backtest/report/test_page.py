"""The report page: what it says, that it is one file, and that a browser shows it."""

import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest

from trade_pipeline.backtest.report.page import Curve, ReportInput, render, summary
from trade_pipeline.evaluation.metrics import metrics
from trade_pipeline_tests.backtest.report.example import INSTRUMENT, full_report
from trade_pipeline_tests.backtest.report.reading import data_in, figures_in, own_text

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


@pytest.fixture(scope="module")
def full():
    return full_report(bars=6_000, trades=120)


@pytest.fixture(scope="module")
def full_page(full):
    return render(full)


def test_equal_input_gives_equal_bytes(full, full_page):
    assert render(full_report(bars=6_000, trades=120)) == full_page


def test_every_section_has_its_id(page):
    for id_ in ("leaderboard", "equity", "prices", "trades", "metrics", "provenance", "notes"):
        assert page.count(f'<section id="{id_}">') == 1
    assert list(figures_in(page)) == ["equity-chart", "price-chart-0", "result-chart"]
    for id_ in figures_in(page):
        assert page.count(f'<div id="{id_}"') == 1


def test_everything_given_has_a_section_that_the_contents_link_to(full_page):
    sections = re.findall(r'<section id="([a-z]+)">', full_page)
    assert sections == [
        "leaderboard", "equity", "months", "rolling", "prices", "trades", "results",
        "sensitivity", "metrics", "learning", "provenance", "notes",
    ]  # fmt: skip
    assert re.findall(r'<a href="#([a-z]+)">', full_page) == sections
    assert list(figures_in(full_page)) == [
        "equity-chart", "rolling-chart", "price-chart-0", "result-chart", "excursion-chart",
        "learning-chart",
    ]  # fmt: skip
    ids = re.findall(r'\sid="([^"]+)"', own_text(full_page))
    assert len(ids) == len(set(ids))


def test_the_configuration_is_folded_and_whole(full, full_page):
    folded = re.search(r"<details>.*?</details>", full_page, re.DOTALL).group(0)
    assert full.configuration in folded


def test_exposure_and_regimes_stand_under_equity_and_behind_it_and_prices(full_page):
    figure = figures_in(full_page)["equity-chart"]
    names = [trace["name"] for trace in figure["data"]]
    assert names[:3] == ["regime 0 (calmest)", "regime 1", "regime 2 (wildest)"]
    held = figure["data"][names.index("exposure")]
    assert held["yaxis"] == "y3"
    assert set(np.unique(held["y"])) <= {0.0, 0.5}
    assert "Exposure is the mean of each 3 bars." in full_page
    assert figure["layout"]["yaxis"]["overlaying"] == "y4"
    prices = figures_in(full_page)["price-chart-0"]
    assert [trace["name"] for trace in prices["data"]][:4] == [*names[:3], "Price"]
    assert prices["layout"]["yaxis"]["overlaying"] == prices["data"][0]["yaxis"] == "y2"


def test_bars_around_trades_are_kept_as_they_are_once_candles_are_many_bars(full, full_page):
    ts, *prices = full.prices[INSTRUMENT]
    assert "Each candle is 2 bars." in full_page
    kept = data_in(full_page)["windows"]["price-chart-0"]
    rows = np.searchsorted(ts, kept["ts"])
    assert np.array_equal(ts[rows], kept["ts"])
    for name, whole in zip(("open", "high", "low", "close"), prices, strict=True):
        assert np.array_equal(kept[name], whole[rows])
    assert {*full.trips["entry_row"]} | {*full.trips["exit_row"]} <= {*rows.tolist()}
    assert (np.flatnonzero(np.diff(rows) != 1) + 1).tolist() == kept["starts"][1:].tolist()


def test_candles_of_one_bar_need_no_windows(report, page):
    assert "windows" not in data_in(page)
    assert "Each candle is" not in page[: page.index("<script")]


def test_the_list_holds_every_trade_with_its_chart(full, full_page):
    trades = data_in(full_page)["trades"]
    columns = {one["key"]: one for one in trades["columns"]}
    assert trades["rows"] == full.trips.height == 120
    assert np.array_equal(columns["net"]["values"], full.trips["net"].to_numpy())
    assert trades["charts"] == [[INSTRUMENT, "price-chart-0"]]


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
    row = re.search(r"<summary>Calmar</summary>.*?</tr>", page).group(0)
    assert row.endswith('<td class="number">–</td></tr>')
    assert "flat: no Calmar: equity never fell below its highest value." in page
    assert not re.search(r">(nan|None|inf)\b", page[: page.index("<script")])


def test_every_name_is_escaped(report, full):
    hostile = replace(
        full,
        curves=report.curves,
        leaderboard=report.leaderboard,
        prices=report.prices,
        trips=report.trips.with_columns(entry_reason=pl.lit(HOSTILE), regime=pl.lit(HOSTILE)),
        sensitivity=full.sensitivity.with_columns(name=pl.lit(HOSTILE), strategy=pl.lit(HOSTILE)),
        learning={HOSTILE: full.learning["base.f0.s0"]},
        configuration=HOSTILE,
    )
    hostile = replace(
        hostile,
        title=HOSTILE,
        curves=[replace(each, name=each.name + HOSTILE) for each in report.curves],
        leaderboard=report.leaderboard.with_columns(name=pl.lit(HOSTILE)).rename(
            {"total_return": HOSTILE}
        ),
        prices={HOSTILE: report.prices["sample.AAPL.1d"]},
        trips=hostile.trips.with_columns(instrument=pl.lit(HOSTILE), exit_reason=pl.lit(HOSTILE)),
        metrics={HOSTILE: report.metrics["base"] | {"warnings": [HOSTILE]}},
        provenance={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )
    page = own_text(render(hostile))
    assert "<script>alert" not in page
    # Figures, data, arrays, plotly and the page's own script; nothing else closes a script.
    assert page.count("</script>") == 5
    shown = [
        text
        for figure in figures_in(render(hostile)).values()
        for trace in figure["data"]
        for text in (trace["name"], *trace.get("text", ()), *trace.get("customdata", ()))
    ]
    assert not any("<" in text for text in shown if isinstance(text, str))


def test_plotly_knows_every_property_of_the_figures(full_page):
    for figure in figures_in(full_page).values():
        go.Figure(figure)  # raises on an unknown or misspelt property


def test_daily_bars_show_days_everywhere_and_minutes_their_time(report, full_page):
    late = timedelta(hours=21)  # when the session closes that a stop was touched in
    page = render(
        replace(report, trips=pl.DataFrame([trip(3, "long", 5.0, exit_time=START + late)]))
    )
    axes = [figure["layout"]["xaxis"] for figure in figures_in(page).values()]
    dated = [one["hoverformat"] for one in axes if "hoverformat" in one]
    assert dated and set(dated) == {"%Y-%m-%d"}
    assert data_in(page)["trades"]["wholeDays"]
    table = page.split('id="trades-table"')[1].split("</table>")[0]
    assert f"{START:%Y-%m-%d}</td>" in table
    assert "21:00" not in table
    axes = [figure["layout"]["xaxis"] for figure in figures_in(full_page).values()]
    assert "%Y-%m-%d %H:%M" in {one.get("hoverformat") for one in axes}
    assert not data_in(full_page)["trades"]["wholeDays"]


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
    assert len(page) < 8_000_000
    assert "Each candle is 20 bars." in page
    assert "Markers show the 1,000 trades of 2,500" in page
    assert max(len(trace.get("text", ())) for trace in figures["price-chart-0"]["data"]) == 1_000


def test_half_a_million_bars_and_ten_thousand_trades_stay_under_eight_megabytes():
    large = full_report(bars=500_000, trades=10_000, curves=12)
    started = time.thread_time()
    page = render(large)
    assert time.thread_time() - started < 1.5
    assert len(page.encode()) < 8_000_000
    assert data_in(page)["windows"]["price-chart-0"]["ts"].size > 20_000


def test_an_empty_report_is_still_a_page(report):
    empty = ReportInput("Nothing", [], pl.DataFrame(), {}, pl.DataFrame(), {}, {})
    page = render(empty)
    assert "No equity curve was given." in page
    assert "<section" not in page


def test_what_is_not_given_has_no_place():
    bare = full_report(bars=400, trades=5)
    page = render(replace(bare, months=pl.DataFrame(), rolling=pl.DataFrame(), exposure=None))
    assert not {"rolling-chart"} & set(figures_in(page))
    assert "exposure" not in [t["name"] for t in figures_in(page)["equity-chart"]["data"]]
    assert '<section id="months">' not in page


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("exposure", (np.array([0, 1]), np.array([0.5])), "exposure: shapes are"),
        ("regimes", (np.array([0, 1]), np.array([1.0, np.nan])), "regimes: values is nan at row 1"),
        ("months", pl.DataFrame({"year": [2024]}), "months have no column month, return"),
        ("rolling", pl.DataFrame({"time": [0]}), "rolling have no column sharpe, volatility"),
        ("sensitivity", pl.DataFrame({"name": ["x"]}), "sensitivity have no column strategy"),
        ("learning", {"x": pl.DataFrame({"loss": [0.1]})}, "learning of 'x' have no column frames"),
    ],
)
def test_what_cannot_be_shown_is_named(report, field, value, message):
    with pytest.raises(ValueError, match=message):
        render(replace(report, **{field: value}))


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
