"""Metrics against empyrical on real prices, against hand-worked cases, and where undefined."""

import gzip
import json
import math
from datetime import UTC, datetime
from importlib import resources

import empyrical
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.evaluation.metrics import (
    MS_PER_DAY,
    day_returns,
    metrics,
    probabilistic_sharpe,
    sharpe,
    sharpe_interval,
    sortino,
)
from trade_pipeline.evaluation.ratios import distribution

SYMBOLS = ("AAPL", "IBM", "MSFT", "GOOG", "FB")


def describe(equity, close_ts=None, bars_per_year=365.0, days_per_year=365.0, nets=(), **others):
    """Metrics of a curve that is always fully invested and never trades, daily bars by default."""
    equity = np.asarray(equity, dtype=float)
    bars = max(equity.size - 1, 0)
    if close_ts is None:
        close_ts = np.arange(equity.size, dtype=np.int64) * MS_PER_DAY
    arguments = {"exposure": np.ones(bars), "turnover_notional": np.zeros(bars)} | others
    return metrics(
        equity,
        close_ts,
        bars_per_year,
        days_per_year,
        trade_nets=np.array(nets, float),
        **arguments,
    )


@pytest.fixture(scope="module")
def stocks():
    packed = (resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz").read_bytes()
    table = pl.read_csv(gzip.decompress(packed))
    return {
        symbol: table.filter(pl.col("Ticker") == symbol)["Adj Close"].to_numpy()
        for symbol in SYMBOLS
    }


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_metrics_equal_empyrical_on_real_daily_prices(stocks, symbol):
    equity = stocks[symbol] / stocks[symbol][0] * 1e5
    returns = equity[1:] / equity[:-1] - 1
    found = describe(equity, bars_per_year=252.0, days_per_year=252.0, risk_free=0.0)["values"]
    expected = {
        "sharpe": empyrical.sharpe_ratio(returns),
        "sharpe_bar": empyrical.sharpe_ratio(returns),
        "sortino": empyrical.sortino_ratio(returns),
        "volatility": empyrical.annual_volatility(returns),
        "cagr": empyrical.annual_return(returns),
        "total_return": empyrical.cum_returns_final(returns),
        "max_drawdown": empyrical.max_drawdown(returns),
        "calmar": empyrical.calmar_ratio(returns),
        "var_5": empyrical.value_at_risk(returns),
        "cvar_5": empyrical.conditional_value_at_risk(returns),
        "omega": empyrical.omega_ratio(returns),
        "tail_ratio": empyrical.tail_ratio(returns),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert found["sharpe_low"] < found["sharpe"] < found["sharpe_high"]


def test_a_risk_free_rate_is_taken_off_as_empyrical_does(stocks):
    equity = stocks["IBM"]
    returns = equity[1:] / equity[:-1] - 1
    daily = 1.03 ** (1 / 252) - 1
    found = describe(equity, bars_per_year=252.0, days_per_year=252.0, risk_free=0.03)["values"]
    assert found["sharpe"] == pytest.approx(empyrical.sharpe_ratio(returns, daily), rel=1e-9)
    assert found["sortino"] == pytest.approx(empyrical.sortino_ratio(returns, daily), rel=1e-9)


def test_a_curve_worked_by_hand():
    # Returns +10 %, -10 %, +20 %.
    equity = [100.0, 110.0, 99.0, 118.8]
    found = describe(
        equity,
        nets=[10.0, -11.0, 19.8],
        exposure=np.array([1.0, 0.0, 0.5]),
        turnover_notional=np.array([100.0, 110.0, 49.5]),
        fees_paid=1.5,
    )["values"]
    mean = 0.2 / 3
    spread = math.sqrt((0.1**2 + 0.1**2 + 0.2**2 - 3 * mean**2) / 2)
    assert found["sharpe"] == pytest.approx(mean / spread * math.sqrt(365))
    assert found["sortino"] == pytest.approx(mean / math.sqrt(0.01 / 3) * math.sqrt(365))
    assert found["total_return"] == pytest.approx(0.188)
    assert found["cagr"] == pytest.approx(1.188 ** (365 / 3) - 1)
    assert found["cagr_calendar"] == pytest.approx(found["cagr"])
    assert found["max_drawdown"] == pytest.approx(-0.1)
    assert found["calmar"] == pytest.approx(found["cagr"] / 0.1)
    assert found["omega"] == pytest.approx(0.3 / 0.1)
    assert found["exposure"] == pytest.approx(0.5)
    assert found["time_in_market"] == pytest.approx(2 / 3)
    assert found["turnover"] == pytest.approx((1 + 1 + 0.5) / 3 * 365)
    assert found["trades"] == 3
    assert found["hit_rate"] == pytest.approx(2 / 3)
    assert found["profit_factor"] == pytest.approx(29.8 / 11)
    assert found["average_trade"] == pytest.approx(18.8 / 3)
    assert found["sqn"] == pytest.approx(
        math.sqrt(3) * (18.8 / 3) / np.std([10.0, -11.0, 19.8], ddof=1)
    )
    assert found["fees_paid"] == 1.5
    assert found["gross_result"] == pytest.approx(18.8 + 1.5)
    assert found["fees_share"] == found["costs_share"] == pytest.approx(1.5 / 20.3)
    assert found["slippage_share"] == found["financing_share"] == 0.0
    assert found["hit_rate_day"] == found["hit_rate_bar"] == pytest.approx(2 / 3)
    assert found["longest_drawdown_days"] == 2.0
    # By day and by bar are the same here: one bar a day.
    for name in ("sharpe", "sortino", "volatility", "var_5", "cvar_5", "omega", "tail_ratio"):
        assert found[name] == found[f"{name}_bar"]
    for name in ("cagr", "max_drawdown", "calmar"):
        assert found[name] == found[f"{name}_day"]
    centred = [0.1 - mean, -0.1 - mean, 0.2 - mean]
    deviation = math.sqrt(sum(one**2 for one in centred) / 3)
    assert found["skew"] == pytest.approx(sum(one**3 for one in centred) / 3 / deviation**3)
    assert found["kurtosis"] == pytest.approx(sum(one**4 for one in centred) / 3 / deviation**4)


def test_the_first_value_counts_in_the_drawdown():
    assert describe([100.0, 80.0, 90.0])["values"]["max_drawdown"] == pytest.approx(-0.2)


def test_the_headline_sharpe_uses_day_ends_and_sharpe_bar_uses_bars():
    # Two bars a day: the bars swing, the days grow almost evenly.
    equity = np.array([100.0, 120, 101, 121, 102.5, 122, 103, 123, 104.1])
    close_ts = np.arange(9, dtype=np.int64) * MS_PER_DAY // 2
    found = describe(equity, close_ts, bars_per_year=730.0)
    days = equity[2::2] / equity[:-2:2] - 1
    bars = equity[1:] / equity[:-1] - 1
    assert found["values"]["sharpe"] == pytest.approx(sharpe(days, 365.0).value)
    assert found["values"]["sharpe_bar"] == pytest.approx(sharpe(bars, 730.0).value)
    assert found["values"]["sharpe"] > 10 * found["values"]["sharpe_bar"]
    assert found["values"]["days"] == 4 and found["values"]["bars"] == 8
    assert found["periods_per_year"] == {"bar": 730.0, "day": 365.0}


def test_a_bar_that_closes_at_midnight_belongs_to_the_day_it_ends():
    hour = MS_PER_DAY // 24
    close_ts = np.array([22, 23, 24, 25, 47], dtype=np.int64) * hour
    equity = np.array([100.0, 105, 110, 100, 121])
    assert day_returns(equity, close_ts) == pytest.approx([0.1, 0.1])


def test_minute_bars_held_over_a_real_month_have_day_and_bar_sharpe_apart(shared_data):
    table = pl.read_csv(shared_data / "crypto_1m" / "ftx_btc_perp_1m_20211231_20220201.csv.gz")
    close = table["close"].to_numpy().astype(float)
    start = int(datetime(2021, 12, 31, 23, 1, tzinfo=UTC).timestamp() * 1000)
    close_ts = start + 60_000 * np.arange(close.size, dtype=np.int64)
    found = describe(close, close_ts, bars_per_year=525_600.0)
    days = found["values"]["days"]
    assert days == 33
    assert found["values"]["sharpe"] == pytest.approx(
        empyrical.sharpe_ratio(day_returns(close, close_ts), annualization=365), rel=1e-9
    )
    bars = close[1:] / close[:-1] - 1
    assert found["values"]["sharpe_bar"] == pytest.approx(
        empyrical.sharpe_ratio(bars, annualization=525_600), rel=1e-9
    )
    assert any("33 days" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("equity", "days"),
    [
        ([100.0, 101, 102], 0.0),
        ([100.0, 90, 101], 2.0),
        ([100.0, 90, 100, 100, 100, 99, 98, 97], 3.0),
        ([100.0, 90, 91, 92, 99, 101, 102, 101, 103], 5.0),
        ([100.0, 99.0], 1.0),
    ],
)
def test_the_longest_drawdown_lasts_from_a_high_to_the_next_or_to_the_end(equity, days):
    assert describe(equity)["values"]["longest_drawdown_days"] == days


@pytest.mark.parametrize("count", [2, 19_999, 20_000, 100_001])
@pytest.mark.parametrize("kind", ["noise", "mostly zero", "two values", "rising", "unlucky"])
def test_quantiles_of_many_returns_are_those_of_numpy_to_the_last_bit(count, kind):
    random = np.random.default_rng(count)
    returns = random.normal(0, 0.01, count)
    if kind == "mostly zero":
        returns[random.random(count) < 0.97] = 0.0
    if kind == "two values":
        returns = random.choice([-0.01, 0.01], count, p=[0.05, 0.95])
    if kind == "rising":
        returns = np.sort(returns)
    if kind == "unlucky":  # every return that a sample at even steps would see is extreme
        returns[:: max(1, count // 1_000)] = -1.0
    found = distribution(returns, 365.0)
    low, high = np.percentile(returns, [5, 95])
    assert found["var_5"].value == pytest.approx(low, rel=1e-14)
    assert found["cvar_5"].value == pytest.approx(returns[returns <= low].mean(), rel=1e-12)
    if low:
        assert found["tail_ratio"].value == pytest.approx(abs(high / low), rel=1e-13)
    else:
        assert found["tail_ratio"].reason == "the 5 % quantile of returns is zero"


def test_an_account_that_earns_only_interest_has_no_sharpe_ratio():
    # The spread of its returns is the rounding of equity, however small the interest of a minute.
    equity = 1e5 * np.cumprod(np.append(1.0, np.full(100 * 1440, 1 + 0.04 / 525_600)))
    close_ts = 60_000 * np.arange(equity.size, dtype=np.int64)
    found = describe(equity, close_ts, bars_per_year=525_600.0, risk_free=0.03)
    for name in ("sharpe", "sharpe_bar", "sharpe_low", "psr", "skew", "kurtosis"):
        assert found["values"][name] is None and "not vary" in found["undefined"][name]
    assert found["values"]["volatility"] == found["values"]["volatility_bar"] == 0.0
    assert all_defined_or_explained(found)


def test_returns_that_are_all_zero_have_no_hit_rate():
    found = describe([100.0] * 20)
    assert found["undefined"]["hit_rate_day"] == "no return but zero"
    assert found["values"]["max_drawdown_day_low"] == found["values"]["cagr_day_high"] == 0.0
    assert found["values"]["longest_drawdown_days"] == 0.0


def test_too_few_days_leave_the_intervals_of_growth_and_drawdown_undefined():
    found = describe([100.0, 101.0, 99.0, 103.0])
    for name in ("cagr_day", "max_drawdown_day", "sharpe"):
        for end in ("low", "high"):
            assert found["values"][f"{name}_{end}"] is None
            assert "at least 10 are needed" in found["undefined"][f"{name}_{end}"]


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 1e-250, 1e-9, 99.0, 100.0, 101.0, 1e12]), max_size=40),
    st.sampled_from([60_000, MS_PER_DAY // 3, 40 * MS_PER_DAY]),
    st.sampled_from([0.0, 0.03]),
)
def test_whatever_happens_a_figure_is_finite_or_explained(levels, step, risk_free):
    equity = np.array([100.0, *levels])
    close_ts = step * np.arange(equity.size, dtype=np.int64)
    found = describe(equity, close_ts, 365 * MS_PER_DAY / step, risk_free=risk_free)
    assert all_defined_or_explained(found)


def all_defined_or_explained(found) -> bool:
    text = json.dumps(found, allow_nan=False)
    nulls = {name for name, value in found["values"].items() if value is None}
    return bool(text) and nulls == set(found["undefined"]) and all(found["undefined"].values())


@pytest.mark.parametrize(
    ("equity", "undefined"),
    [
        ([100.0], {"sharpe", "total_return", "cagr", "max_drawdown", "exposure", "turnover"}),
        ([100.0, 101.0], {"sharpe", "sharpe_bar", "sortino", "volatility", "calmar", "omega"}),
        ([100.0] * 80, {"sharpe", "sharpe_low", "sortino", "calmar", "omega", "tail_ratio", "psr"}),
        ([100.0, 50.0, 0.0, 0.0, 0.0], {"sharpe_low", "profit_factor"}),
        ([100.0, 0.0], {"sharpe", "exposure"}),
        ([100.0, -20.0, 5.0], {"sharpe", "exposure"}),
        ([100.0, 101.0, 102.0, 103.0], {"calmar", "omega", "sortino"}),
    ],
    ids=["empty", "one bar", "constant", "ruin", "ruin at once", "below zero", "never falls"],
)
def test_an_undefined_value_is_null_with_a_reason(equity, undefined):
    found = describe(equity)
    assert all_defined_or_explained(found)
    assert undefined <= set(found["undefined"])


def test_ruin_ends_the_count_and_is_said():
    found = describe([100.0, 50.0, 0.0, 0.0], exposure=np.array([1.0, 1.0, np.nan, np.inf])[:3])
    values = found["values"]
    assert values["total_return"] == values["cagr"] == values["max_drawdown"] == -1.0
    assert values["bars"] == 2
    assert values["exposure"] == 1.0
    assert "ruined after 2 of 3 bars" in found["warnings"][0]


def test_no_trades_leaves_trade_figures_undefined_but_counts_zero():
    found = describe([100.0, 101.0, 99.0])
    assert found["values"]["trades"] == 0
    for name in ("hit_rate", "profit_factor", "average_trade", "sqn"):
        assert found["undefined"][name] == "no closed trades"


def test_a_minute_that_doubles_has_no_annual_growth():
    found = describe([100.0, 200.0], np.array([0, 60_000]), bars_per_year=525_600.0)
    assert all_defined_or_explained(found)
    assert "too short" in found["undefined"]["cagr"]
    assert "too short" in found["undefined"]["calmar"]


def test_rounding_noise_is_no_spread():
    returns = np.full(100, 0.01) + np.tile([1e-17, -1e-17], 50)
    assert sharpe(returns, 252.0).reason == "returns do not vary"
    assert sortino(returns, 252.0).reason == "no return falls short"


def test_the_interval_repeats_for_a_seed_and_covers_the_ratio():
    returns = np.random.default_rng(7).normal(0.001, 0.01, 300)
    once, again = sharpe_interval(returns, 365.0, seed=3), sharpe_interval(returns, 365.0, seed=3)
    other = sharpe_interval(returns, 365.0, seed=4)
    assert once == again != other
    low, high = (measure.value for measure in once)
    assert low < sharpe(returns, 365.0).value < high
    # One standard error of an annual Sharpe ratio over 300 days is about sqrt(365 / 300).
    assert 3.0 < high - low < 6.0


def test_the_probabilistic_sharpe_of_a_symmetric_series_worked_by_hand():
    returns = np.array([0.03, -0.01] * 50)
    ratio = 0.01 / (0.02 * math.sqrt(100 / 99))
    # Two equally likely values: no skew and a kurtosis of one, so the variance term is one.
    expected = 0.5 * (1 + math.erf(ratio * math.sqrt(99) / math.sqrt(2)))
    assert probabilistic_sharpe(returns, 365.0).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"equity": []}, "E_0 first"),
        ({"equity": [0.0, 1.0]}, "start above zero"),
        ({"equity": [100.0, np.nan, 101.0]}, "equity is nan at row 1"),
        ({"equity": [100.0, 101.0], "close_ts": np.array([5, 5])}, "times must increase"),
        ({"equity": [100.0, 101.0], "exposure": np.ones(2)}, "exposure has shape"),
        ({"equity": [100.0, 101.0], "exposure": np.array([np.inf])}, "exposure is inf at row 0"),
    ],
)
def test_unusable_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        describe(**changes)
