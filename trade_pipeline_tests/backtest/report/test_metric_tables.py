"""Tables of figures: months with their years, and the parts beside the metrics."""

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from trade_pipeline.backtest.report.figures import cell, difference, plain_label
from trade_pipeline.backtest.report.metric_tables import (
    metric_tables,
    months_table,
    sensitivity_table,
)
from trade_pipeline.evaluation.meanings import INTERVAL, MEANINGS, meaning
from trade_pipeline.evaluation.metrics import metrics
from trade_pipeline.evaluation.periods import MONTH_SCHEMA
from trade_pipeline.evaluation.relative import relative

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
ELSEWHERE = {"deflated_sharpe", "equity", "largest_share"}  # of all trials; of capacity

HOSTILE = '</script><script>alert("x")</script>'


def rows_of(html, id_):
    """The texts of a table's rows."""
    body = re.search(rf'id="{id_}".*?<tbody>(.*?)</tbody>', html, re.DOTALL).group(1)
    texts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("\n")]
    named = [[re.sub("</summary>.*?</details>", "", text) for text in row] for row in texts]
    return [[re.sub("<[^>]*>", "", text) for text in row] for row in named]


def months(*returns):
    rows = [{"year": year, "month": month, "return": one} for year, month, one in returns]
    return pl.DataFrame(rows, {name: MONTH_SCHEMA[name] for name in ("year", "month", "return")})


def test_a_year_is_its_months_one_after_the_other():
    html = months_table(months((2023, 12, 0.5), (2024, 1, 0.1), (2024, 3, -0.2)))
    assert rows_of(html, "months-table") == [
        ["2023", *["–"] * 11, "50.0 %", "50.0 %"],
        ["2024", "10.0 %", "–", "−20.0 %", *["–"] * 9, "−12.0 %"],
    ]


def test_the_colour_of_a_month_is_its_sign_and_how_large_it_is():
    html = months_table(months((2024, 1, 0.2), (2024, 2, -0.1)))
    assert 'class="heat gain" style="--heat:0.60"' in html
    assert 'class="heat loss" style="--heat:0.30"' in html


def test_a_year_with_a_month_unknown_has_no_total():
    html = months_table(months((2024, 1, 0.2), (2024, 2, None)))
    assert rows_of(html, "months-table")[0][-1] == "–"


def test_a_year_in_which_nothing_moved_is_no_division_by_zero():
    assert rows_of(months_table(months((2024, 1, 0.0))), "months-table")[0][1] == "0.0 %"


PART = {"values": {"return": 0.1, "sharpe": 2.0, "bars": 100}, "undefined": {}}


def test_the_parts_beside_the_metrics_have_tables_of_their_own():
    at = int(datetime(2024, 1, 2, 3, 4, tzinfo=UTC).timestamp() * 1000)
    found = {
        "values": {"sharpe": 1.0},
        "market": {"values": {"beta": None}, "undefined": {"beta": "nothing varies"}},
        "capacity": {
            "values": {"equity": 1e6},
            "undefined": {},
            "binding": {"close_ts": at, "instrument": "A & B"},
        },
        "regimes": {"none": PART, "0": PART},
    }
    html = metric_tables({"base": found, "flat": {"values": {"sharpe": None}, "undefined": {}}})
    assert rows_of(html, "metrics-table") == [["Sharpe (days)", "1.00", "–"]]
    assert rows_of(html, "market-table") == [["Beta", "–"]]
    assert "base: no Beta: nothing varies." in html
    assert rows_of(html, "capacity-table") == [["Equity", "1,000,000.00"]]
    assert "the bar of A &amp; B that closes 2024-01-02 03:04 binds" in html
    assert rows_of(html, "regimes-table") == [
        ["base", "none", "10.0 %", "2.00", "100"],
        ["base", "0", "10.0 %", "2.00", "100"],
    ]
    assert "Sharpe (bars)" in html


def test_metrics_alone_have_one_table():
    html = metric_tables({"base": {"values": {"sharpe": 1.0}, "undefined": {}}})
    assert html.count("<table") == 1


def test_other_costs_are_a_row_a_case():
    html = sensitivity_table(
        pl.DataFrame(
            {
                "name": ["as configured", "costs x2"],
                "strategy": ["base", "base"],
                "sharpe": [1.5, None],
                "trades": [12, 12],
            }
        )
    )
    assert rows_of(html, "sensitivity-table") == [
        ["base", "as configured", "1.50", "12"],
        ["base", "costs x2", "–", "12"],
    ]


def test_hostile_names_stay_text_in_every_table():
    found = {
        "values": {HOSTILE: 1.0},
        "undefined": {HOSTILE: HOSTILE},
        "warnings": [HOSTILE],
        "market": {"values": {HOSTILE: 1.0}, "undefined": {HOSTILE: HOSTILE}},
        "capacity": {
            "values": {HOSTILE: 1.0},
            "undefined": {},
            "binding": {"close_ts": 0, "instrument": HOSTILE},
        },
        "regimes": {HOSTILE: {"values": {HOSTILE: 1.0}, "undefined": {HOSTILE: HOSTILE}}},
    }
    pages = [
        metric_tables({HOSTILE: found}),
        sensitivity_table(pl.DataFrame({"name": [HOSTILE], "strategy": [HOSTILE], HOSTILE: [1.0]})),
        months_table(months((2024, 1, 0.1)).with_columns(reason=pl.lit(HOSTILE))),
    ]
    assert not any("<script" in page for page in pages)
    assert all("&lt;script&gt;" in page for page in pages)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cagr_day_low", "Annual growth (days), 95 % from"),
        ("max_drawdown_day_high", "Largest drawdown (days), 95 % to"),
        ("volatility_bar", "Volatility (bars)"),
        ("calmar", "Calmar"),
        ("bars", "Bars"),
    ],
)
def test_figures_have_names_people_know(name, words):
    assert plain_label(name) == words


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_drawdown", -0.1234, "−12.3 %"),
        ("trades", 1234, "1,234"),
        ("sharpe", 0.0123456, "0.0123"),
        ("sharpe", float("nan"), "–"),
        ("name", "<b>", "&lt;b&gt;"),
    ],
)
def test_values_carry_the_unit_of_their_figure(name, value, text):
    assert cell(name, value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("sharpe", -0.0, "0.00"),
        ("sharpe", -0.00123456, "−0.00123"),
        ("total_return", 0.0004, "0.04 %"),
        ("total_return", -0.000012, "−0.001 %"),
        ("total_return", -0.0, "0.0 %"),
        ("longest_drawdown_days", 634.04, "634 days"),
        ("longest_drawdown_days", 0.135, "3.2 h"),
        ("longest_drawdown_days", 0, "0 days"),
    ],
)
def test_nothing_that_is_not_zero_is_shown_as_zero_and_times_read_well(name, value, text):
    assert cell(name, value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("total_return", 0.012, "+1.20 pp"),
        ("max_drawdown", -0.031, "−3.10 pp"),
        ("exposure", -0.0000123, "−0.001 pp"),
        ("sharpe", 0.25, "+0.25"),
        ("trades", -3, "−3"),
        ("sharpe", 0.0, "0.00"),
        ("sharpe", None, "–"),
    ],
)
def test_a_difference_has_a_sign_and_that_of_percentages_is_in_points(name, value, text):
    assert difference(name, value) == text


def test_figures_of_daily_bars_stand_once_and_of_other_bars_twice():
    base = {"sharpe": 1.0, "sharpe_bar": 1.0, "cagr": 0.1, "cagr_day": 0.1, "hit_rate": 0.5}
    base |= {"hit_rate_day": 0.5, "hit_rate_bar": 0.5, "omega": None, "omega_bar": None}
    undefined = {"omega": "no loss", "omega_bar": "no loss"}
    other = base | {"sharpe": 2.0, "sharpe_bar": 2.0}
    columns = {
        name: {"values": values, "undefined": undefined}
        for name, values in (("a", base), ("b", other))
    }
    html = metric_tables(columns)
    shown = [row[0] for row in rows_of(html, "metrics-table")]
    assert shown == ["Sharpe (days)", "Annual growth", "Hit rate", "Hit rate (days)", "Omega"]
    assert "a: no Omega: no loss." in html
    assert "are left out" in html
    columns["b"]["values"] = other | {"sharpe_bar": 2.1, "hit_rate_bar": None}
    html = metric_tables(columns)
    shown = [row[0] for row in rows_of(html, "metrics-table")]
    assert {"Sharpe (bars)", "Hit rate (bars)"} <= set(shown)
    assert "Annual growth (days)" not in shown


def test_a_figure_says_what_it_is_in_words_that_need_no_mouse():
    html = metric_tables({"base": {"values": {"sqn": 1.0, "bars": 5}, "undefined": {}}})
    names = re.findall('<th scope="row">(.*?)</th>', html)
    assert names[0].startswith(
        '<details class="meaning"><summary>System quality number</summary><span>Mean result of'
    )
    assert names[1] == "Bars"


def test_every_figure_that_is_computed_has_a_meaning_or_speaks_for_itself():
    equity = 100 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, 90)))
    ts = np.arange(90) * 86_400_000
    found = metrics(equity, ts, 365.0, 365.0, np.ones(89), np.ones(89), np.array([1.0, -1.0]))
    beside = relative(equity, ts, equity[::-1].copy(), ts, 365.0)
    without = {name for name in (*found["values"], *beside) if meaning(name) is None}
    assert without == {"total_return", "fees_paid", "bars", "days"}
    assert all(name in found["values"] or name in beside or name in ELSEWHERE for name in MEANINGS)


def test_the_words_of_the_docs_are_those_of_the_reports():
    text = DOCS.read_text(encoding="utf-8").partition("## In words")[2].partition("\n## ")[0]
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| `")]
    assert {row[1].strip(" `"): row[2].strip() for row in rows} == {
        **MEANINGS,
        "x_low`, `x_high": INTERVAL,
    }
