"""The trade list says what each trade was, in columns that the tables can fill."""

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from trade_pipeline.backtest.report.trade_list import MOST_LISTED, PAGE_ROWS, listed, trade_list

START = datetime(2024, 1, 1, tzinfo=UTC)
OPEN = {"exit_time": None, "exit_price": None, "exit_reason": None, "net": None, "exit_row": None}
HOSTILE = '</script><script>alert("x")</script>'


def trips(*changes):
    rows = [
        {
            "instrument": "sample.AAPL.1d",
            "side": "long",
            "quantity": 10.0,
            "entry_row": 5,
            "entry_time": START,
            "entry_price": 100.0,
            "entry_reason": "order",
            "exit_row": 9,
            "exit_time": START + timedelta(days=4),
            "exit_price": 103.0,
            "exit_reason": "take",
            "fee": 1.5,
            "net": 28.5,
            "mfe": 4.0,
            "mae": 2.0,
            "regime": 1,
        }
        | change
        for change in changes
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def cells(html):
    rows = re.search("<tbody>(.*)</tbody>", html, re.DOTALL).group(1).split("\n")
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_what_is_measured_of_a_trade_is_in_parts_of_what_was_bought():
    row = listed(trips({})).row(0, named=True)
    assert row["return"] == 28.5 / 1_000.0
    assert (row["mfe_share"], row["mae_share"], row["bars"]) == (0.04, 0.02, 4)
    assert row["regime"] == "1"


def test_trades_are_numbered_in_the_order_of_their_entry():
    found = listed(trips({"entry_time": START + timedelta(days=1), "net": 1.0}, {"net": 2.0}))
    assert found.select("number", "net").rows() == [(1, 2.0), (2, 1.0)]


def test_a_trade_still_open_and_one_without_regime_say_so():
    html, _ = trade_list(listed(trips(OPEN | {"regime": -1}, {})), {})
    header = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', html)
    first = dict(zip(header, cells(html)[0], strict=True))
    assert first["Exit (UTC)"] == first["Net"] == first["Return"] == first["Exit reason"] == "–"
    assert first["Regime"] == "none"


def test_a_trade_still_open_says_what_it_earned_so_far_and_how_long_it_is_held():
    held = OPEN | {"realised": 12.5, "unrealised": -3.25, "bars": 7}
    html, _ = trade_list(listed(trips({"net": 1.0}, held)), {})
    header = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', html)
    closed, still_open = (dict(zip(header, row, strict=True)) for row in cells(html))
    names = ("Net", "Realised so far", "Unrealised", "Bars held")
    assert [still_open[name] for name in names] == ["–", "12.50", "−3.25", "7"]
    assert [closed[name] for name in names] == ["1.00", "–", "–", "4"]


def test_columns_without_any_value_are_left_out():
    bare = trips({}).drop("quantity", "fee", "mfe", "mae", "regime", "entry_row")
    assert set(listed(bare).columns) == {
        "number", "instrument", "side", "entry_time", "entry_price", "exit_time", "exit_price",
        "net", "entry_reason", "exit_reason",
    }  # fmt: skip
    nothing = listed(trips({"fee": None, "mae": None}))
    assert not {"fee", "mae_share"} & set(nothing.columns)


def test_numbers_show_as_many_places_as_their_size_needs():
    html, data = trade_list(
        listed(trips({"quantity": 0.0123456, "entry_price": 1.23456789, "fee": 0.00123456})), {}
    )
    shown = cells(html)[0]
    assert "1.23457" in shown and "0.01235" in shown and "0.00123" in shown
    places = {one["key"]: one["places"] for one in data["columns"]}
    assert (places["entry_price"], places["quantity"], places["fee"]) == (5, 5, 5)


def test_days_show_no_time_of_day_and_minutes_do():
    days, data = trade_list(listed(trips({})), {})
    assert ">2024-01-01<" in days and data["wholeDays"]
    minutes, data = trade_list(listed(trips({"exit_time": START + timedelta(minutes=90)})), {})
    assert ">2024-01-01 01:30<" in minutes and not data["wholeDays"]


def test_daily_bars_show_no_time_of_day_though_a_session_closes_in_the_afternoon():
    closes = trips({"exit_time": START + timedelta(hours=21)})
    html, data = trade_list(listed(closes), {}, daily=True)
    assert data["wholeDays"] and "21:00" not in html


def test_a_result_that_rounds_to_nothing_keeps_a_digit_and_its_sign():
    html, _ = trade_list(listed(trips({}, {"net": -0.00042}, {"net": 0.0})), {})
    header = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', html)
    shown = [dict(zip(header, row, strict=True)) for row in cells(html)]
    assert [row["Net"] for row in shown] == ["28.50", "−0.0004", "0.00"]
    assert [row["Return"] for row in shown] == ["2.85 %", "−0.00004 %", "0.00 %"]


def test_one_instrument_needs_no_column_of_its_own_but_stays_in_the_data():
    several = [{}, {"instrument": "sample.MSFT.1d"}]
    shown = [
        {one["key"]: one["shown"] for one in trade_list(listed(trips(*some)), {})[1]["columns"]}
        for some in (several[:1], several)
    ]
    assert [one["instrument"] for one in shown] == [False, True]


def test_texts_are_kept_once_and_numbers_whole():
    _, data = trade_list(listed(trips({}, {"exit_reason": "stop"}, OPEN)), {"sample.AAPL.1d": "x"})
    columns = {one["key"]: one for one in data["columns"]}
    assert columns["exit_reason"]["names"] == ["take", "stop"]
    assert columns["exit_reason"]["codes"].tolist() == [1, 2, 0]
    assert columns["net"]["values"][:2].tolist() == [28.5, 28.5]
    assert np.isnan(columns["net"]["values"][2])
    assert data["charts"] == [["sample.AAPL.1d", "x"]]


def test_the_first_page_is_html_and_the_rest_is_for_the_script():
    html, data = trade_list(listed(trips(*({"net": float(n)} for n in range(120)))), {})
    assert len(cells(html)) == PAGE_ROWS
    assert data["rows"] == 120
    assert "<noscript>" in html and "50 of 120 trades" in html


def test_only_the_trades_that_matter_most_are_listed_and_the_page_says_so():
    nets = np.arange(MOST_LISTED + 3, dtype=float) - 2.0  # the smallest are -1, 0 and 1
    times = pl.Series(np.arange(nets.size) * 60_000).cast(pl.Datetime("ms", "UTC"))
    many = pl.concat([trips({})] * nets.size).with_columns(
        net=pl.Series(nets), entry_time=times, exit_time=times
    )
    html, data = trade_list(listed(many), {})
    assert data["rows"] == MOST_LISTED
    kept = next(one["values"] for one in data["columns"] if one["key"] == "net")
    assert set(nets) - set(kept) == {-1.0, 0.0, 1.0}
    assert "10,000 trades of 10,003" in html


@pytest.mark.parametrize("column", ["instrument", "entry_reason", "exit_reason", "side"])
def test_hostile_names_stay_text(column):
    html, _ = trade_list(listed(trips({column: HOSTILE}, {})), {})
    assert "<script" not in html
    assert "&lt;/script&gt;&lt;script&gt;alert(&quot;x&quot;)" in html
