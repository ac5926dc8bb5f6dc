"""Indicators on longer bars: what they are made of, and when they are seen."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.features.causality import prefix_violations
from trade_pipeline.features.registry import FeatureSet, resolve
from trade_pipeline.features.table import feature_table
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.features import FeatureSetSettings

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def set_of(*entries: dict[str, object], timeframe: str | None = "1m") -> FeatureSet:
    content = {"indicators": entries, "timeframe": timeframe}
    return resolve(FeatureSetSettings.model_validate(content), "test.yaml")


RSI = {"name": "rsi", "params": {"period": 2}}
RANGE = {"name": "stochastic", "params": {"period": 2, "k": 1, "d": 1}, "timeframe": "5m"}
STEP = {"name": "returns", "params": {"horizons": [1]}, "timeframe": "1h"}


def walk(rows: int, start_ms: int = 0, close_after: int = MINUTE_MS) -> pl.DataFrame:
    """Minute bars of a random walk from `start_ms` on."""
    generator = np.random.default_rng(3)
    ts = start_ms + np.arange(rows) * MINUTE_MS
    close = 100 * np.exp(np.cumsum(generator.normal(0, 1e-3, rows)))
    opened = np.concatenate([[100.0], close[:-1]])
    return pl.DataFrame(
        {
            "ts": pl.Series(ts).cast(pl.Datetime("ms", "UTC")),
            "close_ts": pl.Series(ts + close_after).cast(pl.Datetime("ms", "UTC")),
            "open": opened,
            "high": np.maximum(opened, close) + 0.01,
            "low": np.minimum(opened, close) - 0.01,
            "close": close,
            "volume": generator.exponential(1.0, rows),
        }
    )


def seen(bars: pl.DataFrame, value: Callable[[int], float], bar_ms: int) -> list[float]:
    """The plain way: at each row, `value(k)` of the newest whole bar k that has closed."""
    ts, close_ts = (bars[name].dt.epoch("ms").to_list() for name in ("ts", "close_ts"))
    first = -(-ts[0] // bar_ms)
    found = []
    for known in close_ts:
        newest = known // bar_ms - 1
        found.append(value(newest) if newest >= first else float("nan"))
    return found


def test_an_hours_return_is_seen_when_its_last_minute_has_closed() -> None:
    bars = walk(800, start_ms=20 * MINUTE_MS)
    ts = bars["ts"].dt.epoch("ms").to_numpy()

    def growth(hour: int) -> float:
        closes = [
            bars["close"].to_numpy()[ts < end][-1] for end in (hour * HOUR_MS, (hour + 1) * HOUR_MS)
        ]
        return closes[1] / closes[0] - 1 if hour > 1 else float("nan")

    table = feature_table([bars], set_of(STEP))
    assert table.columns == ["ts", "return_1_1h"]
    lookback = set_of(STEP).lookback
    assert lookback == 4 * 60
    expected = seen(bars, growth, HOUR_MS)[lookback:]
    np.testing.assert_array_equal(table["return_1_1h"], np.float32(expected))
    # The minute from 12:59 to 13:00 is the first that sees the hour from 12:00.
    changes = np.flatnonzero(np.diff(table["return_1_1h"])) + 1
    assert {one.minute for one in table["ts"].gather(changes)} == {59}


def test_range_and_volume_are_those_of_all_bars_of_the_longer_one() -> None:
    bars = walk(200)
    feature_set = set_of(
        RANGE, {"name": "volume_zscore", "params": {"period": 2}, "timeframe": "5m"}
    )
    table = feature_table([bars], feature_set)
    high, low, close, volume = (
        bars[name].to_numpy().reshape(-1, 5) for name in ("high", "low", "close", "volume")
    )
    top, bottom = high.max(axis=1), low.min(axis=1)
    place = [
        (close[k, -1] - min(bottom[k - 1 : k + 1]))
        / (np.ptp([*top[k - 1 : k + 1], *bottom[k - 1 : k + 1]]))
        for k in range(1, 40)
    ]
    sums = volume.sum(axis=1)
    for row in range(table.height):
        newest = (row + feature_set.lookback + 1) // 5 - 1
        assert table["stochastic_k_2_1_1_5m"][row] == pytest.approx(
            100 * place[newest - 1], rel=1e-5
        )
        assert np.sign(table["volume_zscore_2_5m"][row]) == np.sign(sums[newest] - sums[newest - 1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cut=st.integers(1, 700), start=st.integers(0, 130))
def test_longer_bars_are_never_seen_before_they_close(cut: int, start: int) -> None:
    bars = walk(700, start_ms=start * MINUTE_MS)
    feature_set = set_of(RSI, {**RSI, "timeframe": "5m"}, STEP)
    found = prefix_violations(lambda frame: feature_table([frame], feature_set), bars, [cut])
    assert found.is_empty(), found


@pytest.mark.parametrize("start", [0, 1, 59, 60, 61])
def test_values_rest_on_no_bar_before_the_lookback(start: int) -> None:
    bars = walk(900)
    feature_set = set_of(STEP, RANGE)
    whole = feature_table([bars], feature_set)
    for row in range(start, bars.height - feature_set.lookback, 61):
        alone = feature_table([bars.slice(row, feature_set.lookback + 1)], feature_set)
        assert alone.height == 1
        assert alone.row(0) == whole.row(row)


def test_sessions_with_few_bars_a_week_have_weekly_values_after_the_lookback(
    apple: pl.DataFrame,
) -> None:
    sessions = apple.with_columns(close_ts=pl.col("ts") + pl.duration(hours=21))
    weekly = set_of({"name": "rsi", "timeframe": "1w"}, timeframe="1d")
    table = feature_table([sessions], weekly)
    assert table.height == sessions.height - weekly.lookback
    # A week is seen when the next one's first session closes: Monday, or Tuesday after a holiday.
    changes = np.flatnonzero(np.diff(table["rsi_14_1w"])) + 1
    assert set(table["ts"].gather(changes).dt.weekday()) <= {1, 2, 3}
    for row in range(0, table.height, 397):
        alone = feature_table([sessions.slice(row, weekly.lookback + 1)], weekly)
        assert alone["rsi_14_1w"][0] == pytest.approx(table["rsi_14_1w"][row], abs=1e-3)


@pytest.mark.parametrize(
    ("entries", "timeframe", "words"),
    [
        ([STEP], None, "say also which timeframe the set's own bars have"),
        ([STEP], "1h", "which must be longer than the set's 1h"),
        (
            [{"name": "relative_strength", "params": {"reference": "a.B.1m"}, "timeframe": "1h"}],
            "1m",
            "reads other series",
        ),
    ],
)
def test_timeframes_that_do_not_fit_are_refused(
    entries: list[dict[str, object]], timeframe: str | None, words: str
) -> None:
    with pytest.raises((SettingsError, ValueError), match=words):
        set_of(*entries, timeframe=timeframe)


def test_code_of_a_set_without_timeframes_is_as_it_was() -> None:
    assert set_of(RSI, timeframe=None).code == {
        "indicators": [{"name": "rsi", "params": {"period": 2}}]
    }
    longer = set_of(RSI, STEP)
    assert longer.code["timeframe"] == "1m"
    assert longer.code["indicators"][1]["timeframe"] == "1h"
    assert "features.higher_timeframe" in longer.implementations
