"""Tables of figures: months with their years, and the parts beside the metrics."""

import re
from datetime import UTC, datetime

import polars as pl
import pytest

from trade_pipeline.backtest.report.metric_tables import (
    metric_tables,
    months_table,
    sensitivity_table,
)
from trade_pipeline.backtest.report.tables import cell, plain_label
from trade_pipeline.evaluation.periods import MONTH_SCHEMA

HOSTILE = '</script><script>alert("x")</script>'


def rows_of(html, id_):
    """The texts of a table's rows."""
    body = re.search(rf'id="{id_}".*?<tbody>(.*?)</tbody>', html, re.DOTALL).group(1)
    texts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("\n")]
    return [[re.sub("<[^>]*>", "", text) for text in row] for row in texts]


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
