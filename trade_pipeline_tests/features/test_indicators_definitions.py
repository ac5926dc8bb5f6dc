"""Indicators against slow loops over their definitions, and cases worked by hand."""

import numpy as np
import polars as pl
import pytest

from trade_pipeline.features.table import feature_table
from trade_pipeline_tests.features.test_indicators import IBM, MSFT, SETS, columns, use

ROWS = range(260, 3_270, 97)


def test_returns_equal_their_definition(apple: pl.DataFrame) -> None:
    close = apple["close"].to_numpy()
    simple, log = columns(apple, SETS["returns"]), columns(apple, SETS["log returns"])
    for row in ROWS:
        assert simple["return_5"][row] == pytest.approx(close[row] / close[row - 5] - 1)
        assert log["log_return_20"][row] == pytest.approx(np.log(close[row] / close[row - 20]))


def test_windows_of_one_series_equal_their_definitions(apple: pl.DataFrame) -> None:
    high, low, close, volume = (
        apple[name].to_list() for name in ("high", "low", "close", "volume")
    )
    got = {
        name: values
        for one in ("volume_zscore", "realised_volatility", "vwap_distance", "wide bollinger")
        for name, values in columns(apple, SETS[one]).items()
    }
    for row in ROWS:
        window = range(row - 19, row + 1)
        volumes = np.array([volume[at] for at in window])
        zscore = (volume[row] - volumes.mean()) / volumes.std()
        squares = [np.log(close[at] / close[at - 1]) ** 2 for at in window]
        money = sum((high[at] + low[at] + close[at]) / 3 * volume[at] for at in window)
        fifty = np.array(close[row - 49 : row + 1])
        expected = {
            "volume_zscore_20": zscore,
            "realised_volatility_20": np.sqrt(np.mean(squares)),
            "vwap_distance_20": close[row] / (money / sum(volumes)) - 1,
            "bollinger_position_50_2.5": (close[row] - fifty.mean()) / (2.5 * fifty.std()),
            "bollinger_bandwidth_50_2.5": 5 * fifty.std() / fifty.mean(),
        }
        assert {name: values[row] for name, values in got.items()} == pytest.approx(expected)


def test_volume_that_never_changes_has_zscore_zero(still: pl.DataFrame) -> None:
    # Twenty times 0.1 do not sum to 2: without a tolerance this gives 1 or -1.
    bars = still.with_columns(volume=pl.lit(0.1))
    assert set(feature_table([bars], SETS["volume_zscore"])["volume_zscore_20"]) == {0.0}


@pytest.mark.parametrize("name", ["volume_zscore", "vwap_distance"])
def test_a_volume_spike_leaves_no_trace_once_out_of_the_window(
    thin: pl.DataFrame, name: str
) -> None:
    calm = thin.with_columns(volume=pl.when(pl.col("volume") == 1e9).then(1.0).otherwise("volume"))
    spiked, normal = (columns(bars, SETS[name])[f"{name}_20"] for bars in (thin, calm))
    assert spiked[200] != normal[200]
    np.testing.assert_array_equal(spiked[220:], normal[220:])


def test_where_nothing_traded_the_vwap_distance_is_zero(apple: pl.DataFrame) -> None:
    quiet = apple.head(300).with_columns(
        volume=pl.when(pl.int_range(pl.len()).is_between(100, 199)).then(0.0).otherwise("volume")
    )
    distance = columns(quiet, SETS["vwap_distance"])["vwap_distance_20"]
    assert set(np.flatnonzero(distance[19:] == 0) + 19) == set(range(119, 200))


def test_relative_strength_is_what_the_reference_did_not_do(apple_beside: pl.DataFrame) -> None:
    own, other = (apple_beside[name].to_list() for name in ("close", f"close@{MSFT}"))
    got = columns(apple_beside, SETS["relative_strength"])[f"relative_strength_20_{MSFT}"]
    for row in ROWS:
        expected = np.log(own[row] / own[row - 20]) - np.log(other[row] / other[row - 20])
        assert got[row] == pytest.approx(expected)
    itself = apple_beside.with_columns(pl.col("close").alias(f"close@{MSFT}"))
    against_itself = columns(itself, SETS["relative_strength"])[f"relative_strength_20_{MSFT}"]
    assert set(against_itself[20:]) == {0.0}


def test_rolling_correlation_equals_numpys(apple_beside: pl.DataFrame) -> None:
    own, other = (
        np.diff(np.log(apple_beside[name].to_numpy())) for name in ("close", f"close@{MSFT}")
    )
    (got,) = columns(apple_beside, SETS["rolling_correlation"]).values()
    for row in ROWS:
        expected = np.corrcoef(own[row - 30 : row], other[row - 30 : row])[0, 1]
        assert got[row] == pytest.approx(expected)


def test_correlation_is_one_with_itself_minus_one_with_its_inverse_and_zero_with_rest(
    apple_beside: pl.DataFrame,
) -> None:
    close, name = pl.col("close"), f"close@{MSFT}"
    for reference, expected in ((close, 1.0), (1e4 / close, -1.0), (pl.lit(7.0), 0.0)):
        bars = apple_beside.with_columns(reference.alias(name))
        (got,) = columns(bars, SETS["rolling_correlation"]).values()
        np.testing.assert_allclose(got[30:], expected, rtol=0, atol=1e-12)


def test_growth_at_a_constant_rate_does_not_vary(apple_beside: pl.DataFrame) -> None:
    # Its log returns differ in their last bits, which correlate with anything.
    steady = apple_beside.with_columns(close=1.001 ** pl.int_range(pl.len()))
    (got,) = columns(steady, SETS["rolling_correlation"]).values()
    assert set(got[30:]) == {0.0}


def distance(returns: np.ndarray, period: int, row: int, ridge: float) -> float:
    """Turbulence of a row of [T, N] returns, as the paper has it, over the number of series."""
    before = returns[row - period : row]
    covariance = np.cov(before, rowvar=False)
    covariance += ridge * np.diag(np.diag(covariance))
    away = returns[row] - before.mean(axis=0)
    return float(away @ np.linalg.inv(covariance) @ away) / returns.shape[1]


def test_turbulence_equals_the_papers_distance(apple_beside: pl.DataFrame) -> None:
    names = ("close", f"close@{MSFT}", f"close@{IBM}")
    returns = np.diff(np.log(apple_beside.select(names).to_numpy()), axis=0)
    (got,) = columns(apple_beside, SETS["turbulence"]).values()
    for row in ROWS:
        assert got[row] == pytest.approx(distance(returns, 60, row - 1, 1e-6), rel=1e-9)
        # The ridge is small enough not to matter here.
        assert got[row] == pytest.approx(distance(returns, 60, row - 1, 0.0), rel=1e-4)
    assert 0.5 < np.median(got[61:]) < 1.0 < got[61:].mean() < 3.0


def closes(returns: list[float]) -> np.ndarray:
    return np.exp(np.cumsum([0.0, *returns]))


def test_turbulence_worked_by_hand() -> None:
    # Variance (ddof 1) of each is 4/3 x 1e-4, covariance 0, means 0; today both move by 0.02.
    own, other = [0.01, -0.01, 0.01, -0.01, 0.02], [0.01, 0.01, -0.01, -0.01, 0.02]
    bars = pl.DataFrame({"close": closes(own), f"close@{MSFT}": closes(other)})
    (got,) = columns(bars, use("turbulence", series=[MSFT], period=4)).values()
    assert np.isnan(got[:5]).all()
    # (0.0004 + 0.0004) / (4/3 x 1e-4) / 2
    assert got[5] == pytest.approx(3.0, rel=1e-5)


def test_turbulence_stays_finite_where_series_move_as_one_or_not_at_all(
    apple_beside: pl.DataFrame,
) -> None:
    alone = apple_beside.with_columns(pl.lit(5.0).alias(f"close@{MSFT}"))
    twice = apple_beside.with_columns(pl.col("close").alias(f"close@{MSFT}"))
    feature_set = use("turbulence", series=[MSFT], period=60)
    (of_alone,), (of_twice,) = (columns(one, feature_set).values() for one in (alone, twice))
    returns = np.diff(np.log(apple_beside["close"].to_numpy()))
    for row in ROWS:
        before = returns[row - 61 : row - 1]
        square = (returns[row - 1] - before.mean()) ** 2 / before.var(ddof=1)
        # A series at rest adds nothing, the same one again nothing new.
        assert of_alone[row] == pytest.approx(square / 2, rel=1e-5)
        assert of_twice[row] == pytest.approx(square / 2, rel=1e-5)


def test_windows_longer_than_what_is_summed_at_a_time_and_chunks_make_no_difference() -> None:
    rows, period = 70_000, 700
    generator = np.random.default_rng(0)
    own, other = np.exp(np.cumsum(generator.normal(0, 1e-3, (2, rows)), axis=1))
    bars = pl.DataFrame({"close": own, f"close@{MSFT}": other})
    returns = np.diff(np.log(bars.to_numpy()), axis=0)
    (turbulence,) = columns(bars, use("turbulence", series=[MSFT], period=period)).values()
    (volatility,) = columns(bars, use("realised_volatility", period=period)).values()
    for row in (701, 1_212, 1_213, 66_236, 66_237, 66_238, 69_999):
        assert turbulence[row] == pytest.approx(distance(returns, period, row - 1, 1e-6), rel=1e-9)
        window = returns[row - period : row, 0]
        assert volatility[row] == pytest.approx(np.sqrt(np.mean(window**2)))
