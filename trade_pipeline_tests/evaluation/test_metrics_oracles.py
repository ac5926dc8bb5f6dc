"""Every figure that empyrical and quantstats define as we do, on real prices; and where not."""

import math

import empyrical
import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from trade_pipeline.evaluation.growth import day_ends
from trade_pipeline.evaluation.metrics import day_returns, metrics
from trade_pipeline.evaluation.periods import by_month, by_year, heat_map, rolling
from trade_pipeline.evaluation.relative import relative
from trade_pipeline_tests.evaluation.real_prices import Prices, minutes, stock

with matplotlib.rc_context():  # importing it changes how every later picture looks
    import quantstats.stats as quantstats

SYMBOLS = ("AAPL", "MSFT")
P = 252


def figures(prices: Prices, bars_per_year=P, days_per_year=P, risk_free=0.0):
    bars = prices.close.size - 1
    return metrics(
        prices.close,
        prices.close_ts,
        bars_per_year,
        days_per_year,
        np.ones(bars),
        np.zeros(bars),
        np.empty(0),
        risk_free=risk_free,
    )["values"]


@pytest.fixture(scope="module", params=SYMBOLS)
def prices(request):
    return stock(request.param)


@pytest.mark.parametrize("risk_free", [0.0, 0.03])
def test_figures_of_days_equal_quantstats_and_empyrical(prices, risk_free):
    found, r = figures(prices, risk_free=risk_free), prices.returns
    daily = (1 + risk_free) ** (1 / P) - 1
    expected = {
        "sharpe": quantstats.sharpe(r, rf=risk_free, periods=P),
        "sortino": quantstats.sortino(r, rf=risk_free, periods=P),
        "cagr": quantstats.cagr(r, periods=P),
        "max_drawdown": quantstats.max_drawdown(r),
        "calmar": quantstats.calmar(r, periods=P),
        "volatility": quantstats.volatility(r, periods=P),
        "cvar_5": quantstats.conditional_value_at_risk(r, method="historical"),
        "omega": quantstats.omega(r, rf=risk_free, periods=P),
        "tail_ratio": quantstats.tail_ratio(r),
        "hit_rate_day": quantstats.win_rate(r),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    expected = {
        "sharpe_bar": empyrical.sharpe_ratio(r, daily),
        "sortino_bar": empyrical.sortino_ratio(r, daily),
        "volatility_bar": empyrical.annual_volatility(r),
        "cagr_day": empyrical.annual_return(r),
        "total_return": empyrical.cum_returns_final(r),
        "max_drawdown_day": empyrical.max_drawdown(r),
        "calmar_day": empyrical.calmar_ratio(r),
        "var_5": empyrical.value_at_risk(r),
        "var_5_bar": empyrical.value_at_risk(r),
        "cvar_5_bar": empyrical.conditional_value_at_risk(r),
        "omega_bar": empyrical.omega_ratio(r, daily),
        "tail_ratio_bar": empyrical.tail_ratio(r),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_omega_at_zero_is_the_profit_factor_of_days_of_quantstats(prices):
    assert figures(prices)["omega"] == pytest.approx(
        quantstats.profit_factor(prices.returns), rel=1e-9
    )


def test_figures_of_real_minutes_equal_both_by_bar_and_by_day(shared_data):
    prices = minutes(shared_data)
    year = 525_600
    found = figures(prices, bars_per_year=year, days_per_year=365)
    bars = pd.Series(
        prices.close[1:] / prices.close[:-1] - 1, pd.to_datetime(prices.close_ts[1:], unit="ms")
    )
    _, numbers = day_ends(prices.close_ts)
    days = pd.Series(
        day_returns(prices.close, prices.close_ts), index=pd.to_datetime(numbers, unit="D")
    )
    expected = {
        "sharpe": quantstats.sharpe(days, periods=365),
        "sortino": empyrical.sortino_ratio(days, annualization=365),
        "volatility": quantstats.volatility(days, periods=365),
        "var_5": empyrical.value_at_risk(days),
        "cvar_5": quantstats.conditional_value_at_risk(days, method="historical"),
        "tail_ratio": quantstats.tail_ratio(days),
        "max_drawdown_day": quantstats.max_drawdown(days),
        "cagr_day": quantstats.cagr(days, periods=365),
        "sharpe_bar": quantstats.sharpe(bars, periods=year),
        "sortino_bar": quantstats.sortino(bars, periods=year),
        "volatility_bar": quantstats.volatility(bars, periods=year),
        "var_5_bar": empyrical.value_at_risk(bars),
        "cvar_5_bar": empyrical.conditional_value_at_risk(bars),
        "omega_bar": empyrical.omega_ratio(bars, annualization=year),
        "tail_ratio_bar": empyrical.tail_ratio(bars),
        "hit_rate_bar": quantstats.win_rate(bars),
        "max_drawdown": empyrical.max_drawdown(bars),
        "cagr": empyrical.annual_return(bars, annualization=year),
        "calmar": empyrical.calmar_ratio(bars, annualization=year),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_rolling_figures_equal_both(prices):
    window = 60
    found = rolling(prices.close, prices.close_ts, window, P)
    r = prices.returns
    assert found.height == r.size
    known = found.tail(r.size - window + 1)
    for name, expected in {
        "sharpe": quantstats.rolling_sharpe(r, rolling_period=window, periods_per_year=P),
        "volatility": quantstats.rolling_volatility(r, rolling_period=window, periods_per_year=P),
    }.items():
        assert found[name].null_count() == window - 1
        assert known[name].to_numpy() == pytest.approx(expected.dropna().to_numpy(), rel=1e-6)
    assert known["max_drawdown"].to_numpy() == pytest.approx(
        empyrical.roll_max_drawdown(r, window).to_numpy(), rel=1e-9
    )
    assert known["sharpe"].to_numpy() == pytest.approx(
        empyrical.roll_sharpe_ratio(r, window).to_numpy(), rel=1e-9
    )
    assert (found["time"].dt.epoch("ms").to_numpy() == prices.close_ts[1:]).all()


def test_years_and_months_equal_both(prices):
    r = prices.returns
    months = by_month(prices.close, prices.close_ts, P)
    monthly = empyrical.aggregate_returns(r, "monthly")
    assert list(zip(months["year"], months["month"], strict=True)) == list(monthly.index)
    assert months["return"].to_numpy() == pytest.approx(monthly.to_numpy(), rel=1e-9)
    assert months["days"].sum() == r.size
    table = heat_map(months)
    theirs = quantstats.monthly_returns(r, eoy=False)
    assert [str(year) for year in table["year"]] == list(theirs.index)
    # quantstats calls a month without a bar 0; ours is null.
    assert table.drop("year").fill_null(0.0).to_numpy() == pytest.approx(
        theirs.to_numpy(), rel=1e-9
    )
    assert table["1"][0] is None and table["2"][0] is None  # the series begins in March

    years = by_year(prices.close, prices.close_ts, P)
    yearly = empyrical.aggregate_returns(r, "yearly")
    assert years["return"].to_numpy() == pytest.approx(yearly.to_numpy(), rel=1e-9)
    groups = r.groupby(r.index.year)
    assert years["sharpe"].to_numpy() == pytest.approx(
        groups.apply(lambda one: quantstats.sharpe(one, periods=P)).to_numpy(), rel=1e-9
    )
    assert years["max_drawdown"].to_numpy() == pytest.approx(
        groups.apply(empyrical.max_drawdown).to_numpy(), rel=1e-9
    )


@pytest.mark.parametrize("risk_free", [0.0, 0.02])
def test_figures_beside_another_curve_equal_both(risk_free):
    ours, other = stock("AAPL"), stock("MSFT")
    found = relative(ours.close, ours.close_ts, other.close, other.close_ts, P, risk_free)
    values = {name: measure.value for name, measure in found.items()}
    r, b = ours.returns, other.returns
    daily = (1 + risk_free) ** (1 / P) - 1
    alpha, beta = empyrical.alpha_beta(r, b, risk_free=daily)
    expected = {
        "alpha": alpha,
        "beta": beta,
        "correlation": r.corr(b),
        "tracking_error": empyrical.annual_volatility(r - b),
        "information_ratio": empyrical.excess_sharpe(r, b) * math.sqrt(P),
        "up_capture": empyrical.up_capture(r, b),
        "down_capture": empyrical.down_capture(r, b),
    }
    assert values == pytest.approx(expected, rel=1e-9)
    assert values["information_ratio"] == pytest.approx(
        quantstats.information_ratio(r, b) * math.sqrt(P), rel=1e-9
    )
    assert values["beta"] == pytest.approx(quantstats.greeks(r, b, periods=P)["beta"], rel=1e-9)


def test_each_difference_to_quantstats_is_what_the_documentation_says(prices):
    """docs/metrics.md lists these: here theirs follows from ours, or ours from the same data."""
    found, r = figures(prices), prices.returns
    n, mean, spread = r.size, r.mean(), r.std()

    assert quantstats.value_at_risk(r) == pytest.approx(norm.ppf(0.05, mean, spread))
    assert found["var_5"] == pytest.approx(np.quantile(r, 0.05))
    assert abs(found["var_5"] / quantstats.value_at_risk(r) - 1) > 0.01
    assert quantstats.conditional_value_at_risk(r) == pytest.approx(
        mean - spread * norm.pdf(norm.ppf(0.05)) / 0.05
    )

    skew, excess = found["skew"], found["kurtosis"] - 3
    assert quantstats.skew(r) == pytest.approx(skew * math.sqrt(n * (n - 1)) / (n - 2))
    corrected = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * excess + 6)
    assert quantstats.kurtosis(r) == pytest.approx(corrected)
    ratio = found["sharpe"] / math.sqrt(P)
    variance = 1 - quantstats.skew(r) * ratio + (quantstats.kurtosis(r) + 2) / 4 * ratio**2
    theirs = quantstats.probabilistic_sharpe_ratio(r, periods=P)
    assert theirs == pytest.approx(norm.cdf(ratio * math.sqrt((n - 1) / variance)))
    assert found["psr"] == pytest.approx(theirs, abs=1e-3)

    other = stock("IBM")
    b = other.returns
    beside = relative(prices.close, prices.close_ts, other.close, other.close_ts, P)
    linear = quantstats.greeks(r, b, periods=P)["alpha"]
    assert beside["alpha"].value == pytest.approx((1 + linear / P) ** P - 1)
    assert quantstats.information_ratio(r, b) * math.sqrt(P) == pytest.approx(
        beside["information_ratio"].value
    )


def test_where_the_others_say_infinite_nan_or_zero_ours_has_no_value_and_a_reason():
    rising = Prices(100.0 * 1.001 ** np.arange(30), 86_400_000 * np.arange(1, 31, dtype=np.int64))
    bars = 29
    found = metrics(*rising, P, P, np.ones(bars), np.zeros(bars), np.empty(0))
    r = rising.returns
    assert not math.isfinite(quantstats.sortino(r)) or quantstats.sortino(r) == 0
    assert not math.isfinite(empyrical.sortino_ratio(r))
    assert quantstats.profit_factor(r) == math.inf
    assert math.isnan(empyrical.calmar_ratio(r))
    assert abs(quantstats.sharpe(r)) > 1e6  # the spread of their returns is rounding
    for name in ("sharpe", "sortino", "omega", "calmar"):
        assert found["values"][name] is None and found["undefined"][name]
