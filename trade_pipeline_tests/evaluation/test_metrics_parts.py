"""Figures of parts of a curve: years and months, moving windows, regimes."""

import json
import math
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.evaluation.by_regime import by_regime
from trade_pipeline.evaluation.growth import MS_PER_DAY, day_returns
from trade_pipeline.evaluation.periods import by_month, by_year, heat_map, rolling
from trade_pipeline.evaluation.ratios import sharpe

HOUR = MS_PER_DAY // 24


def at(*day):
    return int(datetime(*day, tzinfo=UTC).timestamp() * 1000)


def hours(start, count):
    return start + HOUR * np.arange(count + 1, dtype=np.int64)


def walk(count, seed=0):
    moves = np.random.default_rng(seed).normal(0, 0.01, count)
    return 100 * np.cumprod(np.append(1.0, 1 + moves))


def test_months_of_hourly_bars_worked_out_one_by_one():
    equity, ts = walk(24 * 70), hours(at(2021, 12, 20), 24 * 70)
    months = by_month(equity, ts, 365.0, risk_free=0.02)
    found = [(row["year"], row["month"]) for row in months.iter_rows(named=True)]
    assert found == [(2021, 12), (2022, 1), (2022, 2)]
    edges = [0, 12 * 24, 43 * 24, 70 * 24]  # 12 days of December, 31 of January, 27 of February
    for row, a, b in zip(months.iter_rows(named=True), edges[:-1], edges[1:], strict=True):
        part = equity[a : b + 1]
        assert row["days"] == (b - a) // 24
        assert row["return"] == pytest.approx(part[-1] / part[0] - 1)
        assert row["sharpe"] == pytest.approx(
            sharpe(day_returns(part, ts[a : b + 1]), 365.0, 0.02).value
        )
        assert row["max_drawdown"] == pytest.approx(
            min(part[i] / part[: i + 1].max() - 1 for i in range(len(part)))
        )
        assert row["reason"] is None
    years = by_year(equity, ts, 365.0)
    assert years["year"].to_list() == [2021, 2022]
    assert years["days"].to_list() == [12, 58]


@given(
    st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=60),
    st.integers(0, 400),
    st.integers(1, 40),
)
def test_growth_of_months_and_of_years_multiplies_to_that_of_the_curve(moves, first, step):
    equity = 100 * np.cumprod(np.append(1.0, 1 + np.array(moves)))
    days = first + step * np.arange(equity.size, dtype=np.int64)
    ts = at(2019, 1, 1) + days * MS_PER_DAY
    for table in (by_month(equity, ts, 365.0), by_year(equity, ts, 365.0)):
        assert np.prod(table["return"].to_numpy() + 1) == pytest.approx(equity[-1] / equity[0])
        assert table["days"].sum() == len(moves)
        assert table.drop("days", "reason").unique().height == table.height


def test_a_bar_at_midnight_on_new_years_day_belongs_to_the_old_year():
    ts = np.array([at(2021, 12, 31), at(2022, 1, 1), at(2022, 1, 2)])
    assert by_year(np.array([100.0, 110.0, 99.0]), ts, 365.0)["return"].to_list() == pytest.approx(
        [0.1, -0.1]
    )


def test_one_day_in_a_month_has_a_return_but_no_sharpe_ratio_and_says_why():
    ts = np.array([at(2021, 12, 31), at(2022, 1, 1), at(2022, 1, 2)])
    row = by_month(np.array([100.0, 110.0, 99.0]), ts, 365.0).row(0, named=True)
    assert row["return"] == pytest.approx(0.1)
    assert row["sharpe"] is None and row["volatility"] is None
    assert row["reason"] == "sharpe and volatility: 1 returns; at least two are needed"


def test_months_after_ruin_are_absent_and_the_month_of_ruin_loses_all():
    equity = np.concatenate([np.full(40, 100.0), [50.0, -3.0], np.full(60, 70.0)])
    ts = at(2022, 1, 1) + MS_PER_DAY * np.arange(equity.size, dtype=np.int64)
    months = by_month(equity, ts, 365.0)
    assert months["month"].to_list() == [1, 2]
    assert months["return"].to_list() == [0.0, -1.0]
    assert rolling(equity, ts, 10, 365.0).height == 41


def test_a_heat_map_has_a_row_a_year_and_null_where_there_is_no_bar():
    equity, ts = walk(24 * 70), hours(at(2021, 12, 20), 24 * 70)
    months = by_month(equity, ts, 365.0)
    table = heat_map(months)
    assert table.columns == ["year", *(str(month) for month in range(1, 13))]
    assert table["year"].to_list() == [2021, 2022]
    assert table["12"].to_list() == [months["return"][0], None]
    assert table.row(1)[1:4] == (months["return"][1], months["return"][2], None)


def test_a_curve_without_bars_has_empty_tables():
    one, ts = np.array([100.0]), np.array([at(2022, 1, 1)])
    for table in (by_month(one, ts, 365.0), by_year(one, ts, 365.0), rolling(one, ts, 5, 365.0)):
        assert table.is_empty()
    assert heat_map(by_month(one, ts, 365.0)).is_empty()


def test_a_window_is_null_with_a_reason_until_it_is_full_and_where_nothing_varies():
    equity = np.concatenate([np.full(6, 100.0), walk(5)])
    found = rolling(equity, at(2022, 1, 1) + MS_PER_DAY * np.arange(11), 4, 365.0)
    assert found["reason"][0:3].to_list() == ["fewer than 4 days so far"] * 3
    assert found["days"].to_list() == [1, 2, 3, *[4] * 7]
    assert found["return"].null_count() == 3
    assert found["reason"][3] == "sharpe: returns do not vary"
    assert found["sharpe"][3] is None and found["volatility"][3] == 0.0
    assert found["reason"][-1] is None and found["sharpe"][-1] is not None
    with pytest.raises(ValueError, match="window is 1 days; at least two"):
        rolling(equity, at(2022, 1, 1) + MS_PER_DAY * np.arange(11), 1, 365.0)


def no_number_but_finite(table: pl.DataFrame) -> bool:
    floats = table.select(pl.selectors.float())
    return bool(floats.select(pl.all().is_finite().all()).to_numpy().all())


@given(
    st.lists(st.sampled_from([0.0, 1e-9, 100.0, 101.0, 1e9]), min_size=1, max_size=40),
    st.integers(2, 6),
)
def test_tables_hold_no_infinity_and_explain_each_null(levels, window):
    equity = np.append(100.0, levels)
    ts = at(2021, 11, 1) + 3 * MS_PER_DAY * np.arange(equity.size, dtype=np.int64)
    for table in (
        by_month(equity, ts, 365.0),
        by_year(equity, ts, 365.0),
        rolling(equity, ts, window, 365.0),
    ):
        assert no_number_but_finite(table)
        gaps = table.filter(
            pl.any_horizontal(pl.col("return", "sharpe", "volatility", "max_drawdown").is_null())
        )
        assert gaps["reason"].null_count() == 0


def regimes(equity, labels, exposure=None, **others):
    equity = np.asarray(equity, float)
    held = np.ones(equity.size - 1) if exposure is None else np.asarray(exposure, float)
    return by_regime(equity, np.asarray(labels, np.int8), held, 365.0, **others)


def test_regimes_worked_by_hand():
    found = regimes([100, 110, 99, 108.9, 119.79], [0, 1, 0, -1], exposure=[1, 0.5, 0, 0.2])
    assert list(found) == ["none", "0", "1"]
    calm = found["0"]["values"]
    assert calm["return"] == pytest.approx(0.21)
    assert calm["exposure"] == 0.5
    assert calm["share_of_time"] == 0.5 and calm["bars"] == 2
    assert found["0"]["undefined"] == {"sharpe": "returns do not vary"}
    wild = found["1"]
    assert wild["values"]["return"] == pytest.approx(-0.1)
    assert wild["undefined"] == {"sharpe": "1 returns; at least two are needed"}
    assert found["none"]["values"]["return"] == pytest.approx(0.1)


def test_the_sharpe_ratio_of_a_regime_is_that_of_its_bars():
    equity = walk(200)
    labels = np.random.default_rng(1).integers(0, 2, 200)
    returns = equity[1:] / equity[:-1] - 1
    found = regimes(equity, labels, risk_free=0.05)
    for label in (0, 1):
        excess = returns[labels == label] - (1.05 ** (1 / 365) - 1)
        expected = excess.mean() / excess.std(ddof=1) * math.sqrt(365)
        assert found[str(label)]["values"]["sharpe"] == pytest.approx(expected)


@given(
    st.lists(
        st.tuples(st.floats(-1.5, 1.0), st.integers(-1, 3), st.floats(0, 3)),
        min_size=1,
        max_size=50,
    )
)
def test_regimes_share_out_all_growth_and_time_even_where_the_account_is_ruined(steps):
    moves, labels, exposure = (np.array(column) for column in zip(*steps, strict=True))
    equity = 100 * np.cumprod(np.append(1.0, 1 + moves))
    found = regimes(equity, labels, exposure)
    json.dumps(found, allow_nan=False)
    bad = np.flatnonzero(equity <= 0)
    end = 0.0 if bad.size else equity[-1] / 100
    values = [one["values"] for one in found.values()]
    assert math.prod(one["return"] + 1 for one in values) == pytest.approx(end, abs=1e-12)
    assert sum(one["share_of_time"] for one in values) == pytest.approx(1.0)
    assert sum(one["bars"] for one in values) == (bad[0] if bad.size else len(steps))
    for one in found.values():
        assert {name for name, v in one["values"].items() if v is None} == set(one["undefined"])


def test_a_regime_of_nothing_but_the_bar_of_ruin_has_no_exposure():
    found = regimes([100, 50, 0, 70], [0, 1, 1])
    assert found["1"]["undefined"]["exposure"] == "ruined in its bar"
    assert found["1"]["values"]["return"] == -1.0


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(3,\), but equity has 3 values"):
        regimes([100, 101, 102], [0, 1, 1])
