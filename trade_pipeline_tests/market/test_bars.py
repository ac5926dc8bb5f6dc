from typing import Any

import polars as pl
import pytest

from trade_pipeline.market.bars import (
    BAR_SCHEMA,
    VIOLATION_SCHEMA,
    adjusted,
    empty_bars,
    explain,
    violations,
)

from .series import DAY, START, bars_at, crypto, minutes, ms, stock

GOOD = bars_at(minutes(0, 1, 2, 3, 4))


def with_value(column: str, value: Any, at: int = 2) -> pl.DataFrame:
    values = GOOD[column].to_list()
    values[at] = value
    return GOOD.with_columns(pl.Series(column, values, dtype=BAR_SCHEMA[column]))


def rules(bars: pl.DataFrame, year: int | None = 2018) -> list[tuple[int, str, str]]:
    found = violations(bars, crypto(), year)
    assert found.schema == pl.Schema(VIOLATION_SCHEMA)
    return found.select("row", "column", "rule").rows()


@pytest.mark.parametrize("bars", [GOOD, empty_bars(), GOOD.head(1)])
def test_good_bars_break_nothing(bars: pl.DataFrame) -> None:
    assert rules(bars) == []
    assert violations(bars, crypto(), None).is_empty()


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("open", None, "must not be null or NaN"),
        ("close", float("nan"), "must not be null or NaN"),
        ("source", None, "must not be null or NaN"),
        ("volume", None, "must not be null or NaN"),
        ("high", float("inf"), "high must be finite"),
        ("volume", float("inf"), "volume must be finite"),
        ("volume", -1.0, "volume must not be negative"),
        ("trades", -1, "trades must not be negative"),
    ],
)
def test_a_bad_value_is_named_once(column: str, value: Any, rule: str) -> None:
    assert rules(with_value(column, value)) == [(2, column, rule)]


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("low", 103.0, ["low must not be above open", "low must not be above close"]),
        ("low", 102.2, ["low must not be above open"]),
        ("close", 103.5, ["close must not be above high"]),
        ("open", 104.0, ["open must not be above high"]),
        ("close", 100.0, ["low must not be above close"]),
        ("low", 0.0, ["low must be positive"]),
        ("low", -1.0, ["low must be positive"]),
    ],
)
def test_prices_that_contradict_are_named(column: str, value: float, named: list[str]) -> None:
    assert [rule for _, _, rule in rules(with_value(column, value))] == named


def test_a_repeated_time_is_named_at_its_second_row() -> None:
    assert rules(bars_at(minutes(0, 1, 1, 2))) == [(2, "ts", "ts must be unique")]


def test_descending_times_are_named() -> None:
    rule = "ts must not be before the row above"
    assert rules(bars_at(minutes(2, 1, 0))) == [(1, "ts", rule), (2, "ts", rule)]


def test_a_null_time_is_named() -> None:
    assert rules(with_value("ts", None)) == [(2, "ts", "must not be null or NaN")]


def test_a_time_off_the_grid_is_named() -> None:
    bars = bars_at([START, START + 61_000])
    assert rules(bars) == [(1, "ts", "ts must lie on the 1m grid of calendar 24/7")]


def test_a_time_outside_the_partitions_year_is_named() -> None:
    bars = bars_at([START - 60_000, START])
    assert rules(bars) == [(0, "ts", "ts must lie in 2018")]
    assert rules(bars, year=None) == []


def test_a_daily_bar_on_a_holiday_or_within_a_day_is_named() -> None:
    bars = bars_at([ms(2012, 11, 21), ms(2012, 11, 22), ms(2012, 11, 23, 14, 30)])
    found = violations(bars, stock("AAPL"), 2012)
    assert found["row"].to_list() == [1, 2]
    assert found["rule"].unique().to_list() == ["ts must lie on the 1d grid of calendar XNYS"]


def test_a_factor_must_be_positive_and_there_for_all_rows_or_none() -> None:
    mixed = with_value("adj_factor", 1.0)
    assert [row for row, _, _ in rules(mixed)] == [0, 1, 3, 4]
    for factor in (0.0, -1.0, float("nan"), float("inf")):
        bad = bars_at(minutes(0, 1), adj_factor=[1.0, factor])
        assert rules(bad) == [(1, "adj_factor", "adj_factor must be positive and finite")]


def test_a_wrong_set_of_columns_is_named_without_rows() -> None:
    wrong = GOOD.drop("low").with_columns(pl.col("close").cast(pl.Float32), extra=1)
    found = violations(wrong, crypto(), 2018)
    assert found.select("row", "column", "rule").rows() == [
        (None, "extra", "column is not one of a bar"),
        (None, "low", "column must be present"),
        (None, "close", "must have dtype('Float64')"),
    ]
    reordered = violations(GOOD.select(*reversed(GOOD.columns)), crypto(), 2018)
    assert reordered["rule"].unique().to_list() == ["columns must stand in the canonical order"]


def test_the_environment_cannot_switch_validation_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from pandera.config import CONFIG

    monkeypatch.setattr(CONFIG, "validation_enabled", False)
    assert len(rules(with_value("volume", -1.0))) == 1


def test_violations_name_file_and_row_of_the_source_and_are_explained() -> None:
    bars = with_value("low", 103.0).with_columns(
        file=pl.lit("a.csv"), row=pl.int_range(pl.len()) + 2
    )
    found = violations(bars, crypto(), 2018)
    assert found.select("file", "row").unique().rows() == [("a.csv", 4)]
    assert explain(found, "venue.BTC-USD.1m", "a.csv", most=1) == (
        "series venue.BTC-USD.1m: 2 violations; a.csv, row 4 (2018-01-01 00:02:00 UTC): low must "
        "not be above open, found low 103.0 (open 102.0); and 1 more."
    )


def test_adjusting_scales_prices_only_and_only_once() -> None:
    bars = bars_at([START, START + DAY], adj_factor=[1.0, 0.5])
    once = adjusted(bars)
    assert once["close"].to_list() == [100.5, 101.5 * 0.5]
    assert once["volume"].equals(bars["volume"])
    assert once["adj_factor"].to_list() == [1.0, 1.0]
    assert adjusted(once).equals(once)
    assert adjusted(GOOD).equals(GOOD)
