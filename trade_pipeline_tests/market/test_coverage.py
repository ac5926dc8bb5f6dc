import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.market.bars import adjusted, empty_bars
from trade_pipeline.market.coverage import (
    DAY_SCHEMA,
    Coverage,
    Slice,
    coverage,
    grid,
    joined,
    parse_manifest,
)
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.series import CoverageThresholds

from .series import DAY, MINUTE, START, bars_at, crypto, minutes, ms, stock

PER_DAY = 24
HOUR = 60 * MINUTE
LENIENT = {"max_unknown_fraction": 0.5, "max_unknown_bars": 30}


def without(missing: set[int], days: int = 1) -> pl.DataFrame:
    """Minute bars of whole days, without some minutes."""
    return bars_at(minutes(*(m for m in range(1440 * days) if m not in missing)))


def test_a_whole_day_is_one_slice() -> None:
    found = coverage(without(set()), [], crypto())
    assert found.days.schema == pl.Schema(DAY_SCHEMA)
    assert found.days.row(0)[1:] == (1440, 1440, 0, 0, 0, True, None)
    assert found.slices == (Slice(START, START + 1439 * MINUTE + 1, 1, 1440),)


def test_no_bars_give_no_days_and_no_slices() -> None:
    found = coverage(empty_bars(), [], crypto())
    assert found.days.is_empty() and found.slices == ()
    assert found.days.schema == pl.Schema(DAY_SCHEMA)


def test_days_outside_the_stored_bars_are_not_covered() -> None:
    bars = bars_at(minutes(1440 + 5))
    assert coverage(bars, [(0, START * 2)], crypto()).days.height == 1


@pytest.mark.parametrize(("run", "slices"), [(5, 1), (6, 2)])
def test_a_run_longer_than_the_limit_splits_a_slice(run: int, slices: int) -> None:
    found = coverage(without(set(range(700, 700 + run))), [], crypto())
    assert found.days["good"].to_list() == [True]
    assert len(found.slices) == slices
    assert found.slices[0].start_ms == START
    assert sum(one.rows for one in found.slices) == (1440 if slices == 1 else 1440 - run)
    assert [one.days for one in found.slices] == [1] * slices


def test_a_run_over_midnight_splits_too_and_each_part_counts_its_days() -> None:
    found = coverage(without(set(range(1437, 1443)), days=2), [], crypto())
    assert [one.days for one in found.slices] == [1, 1]


def test_a_quiet_run_splits_nothing() -> None:
    found = coverage(without(set(range(700, 1000))), [(START, START + DAY)], crypto())
    assert found.days.row(0)[1:] == (1440, 1140, 300, 0, 0, True, None)
    assert len(found.slices) == 1


def test_a_bar_is_quiet_only_if_all_of_it_is_confirmed() -> None:
    confirmed = [(START + 699 * MINUTE + 1, START + 702 * MINUTE - 1)]
    found = coverage(without(set(range(699, 703))), confirmed, crypto())
    assert found.days.select("quiet", "unknown").row(0) == (1, 3)


@pytest.mark.parametrize(
    ("missing", "thresholds", "reason"),
    [
        (28, {}, None),
        (29, {}, "29 of 1440 bars are unknown, more than 0.02 of the day"),
        (30, LENIENT, None),
        (31, LENIENT, "31 of 1440 bars are unknown, more than 30"),
    ],
)
def test_a_day_with_too_many_unknown_bars_is_excluded_with_the_reason(
    missing: int, thresholds: dict[str, float], reason: str | None
) -> None:
    holes = set(range(0, missing * 2, 2))
    found = coverage(without({h + 10 for h in holes}), [], crypto(coverage=thresholds))
    assert found.days.select("good", "reason").row(0) == (reason is None, reason)
    assert len(found.slices) == (reason is None)


def test_a_bad_day_ends_a_slice_and_short_slices_are_dropped() -> None:
    bars = without(set(range(1440, 2000)), days=4)
    spans = [(one.days, one.rows) for one in coverage(bars, [], crypto()).slices]
    assert spans == [(1, 1440), (2, 2880)]
    least_two = crypto(coverage={"min_slice_days": 2})
    assert [one.days for one in coverage(bars, [], least_two).slices] == [2]


def test_a_slice_starts_and_ends_at_traded_bars() -> None:
    found = coverage(without({0, 1, 2, 1439}), [(START, START + DAY)], crypto())
    assert found.slices == (Slice(START + 3 * MINUTE, START + 1438 * MINUTE + 1, 1, 1436),)


def test_duplicates_are_counted_and_bars_off_the_grid_refused() -> None:
    assert coverage(bars_at(minutes(0, 1, 1, 1, 2)), [], crypto()).days["duplicates"][0] == 2
    with pytest.raises(ValueError, match="2018-01-01 00:00:01 UTC is not on the 1m grid"):
        coverage(bars_at([START, START + 1000]), [], crypto())
    with pytest.raises(ValueError, match="must be sorted"):
        coverage(bars_at(minutes(1, 0)), [], crypto())


@settings(max_examples=60, deadline=None)
@given(
    missing=st.sets(st.integers(0, PER_DAY * 4 - 1), max_size=30),
    quiet=st.lists(st.tuples(st.integers(0, 95), st.integers(0, 12)), max_size=3),
    most_run=st.integers(0, 3),
    most_bars=st.integers(0, 8),
    least_days=st.integers(1, 2),
)
def test_slices_equal_those_of_a_slow_walk_over_the_bars(
    missing: set[int],
    quiet: list[tuple[int, int]],
    most_run: int,
    most_bars: int,
    least_days: int,
) -> None:
    traded = sorted(set(range(PER_DAY * 4)) - missing)
    thresholds = {
        "max_unknown_fraction": 1.0,
        "max_unknown_bars": most_bars,
        "max_unknown_run": most_run,
        "min_slice_days": least_days,
    }
    series = crypto(timeframe="1h", coverage=thresholds)
    confirmed = [(START + a * HOUR, START + (a + n) * HOUR) for a, n in quiet]
    found = coverage(bars_at([START + h * HOUR for h in traded]), confirmed, series)

    def state(hour: int) -> str:
        if hour in traded:
            return "t"
        return "q" if any(a <= hour < a + n for a, n in quiet) else "u"

    span = range(traded[0] // PER_DAY * PER_DAY, (traded[-1] // PER_DAY + 1) * PER_DAY)
    states = {hour: state(hour) for hour in span}
    bad_days = {
        hour // PER_DAY
        for hour in span
        if sum(states[h] == "u" for h in span if h // PER_DAY == hour // PER_DAY) > most_bars
    }

    def broken(hour: int) -> bool:
        if hour // PER_DAY in bad_days:
            return True
        first = last = hour
        while states.get(first) == "u":
            first -= 1
        while states.get(last) == "u":
            last += 1
        return states[hour] == "u" and last - first - 1 > most_run

    slices: list[list[int]] = [[]]
    for hour in span:
        if broken(hour):
            slices.append([])
        else:
            slices[-1].append(hour)
    expected = []
    for one in slices:
        seen = [hour for hour in one if states[hour] == "t"]
        if seen and len({h // PER_DAY for h in range(seen[0], seen[-1] + 1)}) >= least_days:
            expected.append((seen[0], seen[-1]))
    assert [
        ((one.start_ms - START) // HOUR, (one.end_ms - 1 - START) // HOUR) for one in found.slices
    ] == expected
    assert found.days["good"].to_list() == [
        day not in bad_days for day in range(span[0] // PER_DAY, span[-1] // PER_DAY + 1)
    ]


def test_the_grid_is_flat_at_the_previous_close_where_nothing_traded() -> None:
    bars = without({3, 4, 8})
    confirmed = [(START + 3 * MINUTE, START + 4 * MINUTE)]
    (one,) = coverage(bars, confirmed, crypto()).slices
    found = grid(bars, one, confirmed, crypto())
    assert found.columns == [
        "ts", "close_ts", "open", "high", "low", "close", "volume", "adj_factor", "state",
    ]  # fmt: skip
    assert found.height == one.rows == 1440
    assert found["state"][2:6].to_list() == ["traded", "quiet", "unknown", "traded"]
    for price in ("open", "high", "low", "close"):
        assert found[price][3:5].to_list() == [bars["close"][2]] * 2
    assert found["volume"][3:5].to_list() == [0.0, 0.0]
    assert (found["close_ts"] - found["ts"]).unique().dt.total_minutes().to_list() == [1]
    traded = found.filter(pl.col("state") == "traded").select(bars.columns[:6])
    assert traded.equals(bars.select(bars.columns[:6]))


def test_the_grid_of_adjusted_bars_is_the_adjusted_grid() -> None:
    bars = bars_at(minutes(0, 1, 3), adj_factor=[1.0, 0.5, 0.25])
    one = Slice(START, START + 3 * MINUTE + 1, 1, 4)
    found = adjusted(grid(bars, one, [], crypto()))
    assert found.equals(grid(adjusted(bars), one, [], crypto()))
    assert found["open"][2] == found["close"][1]


def test_a_grid_refuses_a_slice_of_other_bars() -> None:
    with pytest.raises(ValueError, match="rebuild the manifest"):
        grid(bars_at(minutes(1, 2)), Slice(START, START + 2 * MINUTE + 1, 1, 3), [], crypto())
    with pytest.raises(ValueError, match="rebuild the manifest"):
        grid(bars_at(minutes(0, 1, 1)), Slice(START, START + MINUTE + 1, 1, 2), [], crypto())
    with pytest.raises(ValueError, match="rebuild the manifest"):
        grid(empty_bars(), Slice(START, START + 1, 1, 1), [], crypto())


def test_a_missing_session_breaks_a_daily_slice_but_a_weekend_does_not() -> None:
    sessions = [ms(2012, 11, day) for day in (15, 16, 19, 21, 23)]  # no 20th; 22nd is a holiday
    found = coverage(bars_at(sessions), [], stock("AAPL"))
    assert [(one.days, one.rows) for one in found.slices] == [(3, 3), (2, 2)]
    assert found.days.filter(~pl.col("good"))["reason"].to_list() == [
        "1 of 1 bars are unknown, more than 0.02 of the day"
    ]


def document(found: Coverage, thresholds: CoverageThresholds) -> dict[str, object]:
    return found.to_document("venue.BTC-USD.1m", thresholds, {"2019": "b" * 64, "2018": "a" * 64})


def test_a_manifest_survives_json_and_is_deterministic() -> None:
    series = crypto()
    found = coverage(without(set(range(1440, 2000)), days=3), [], series)
    first = document(found, series.coverage)
    again = document(coverage(without(set(range(1440, 2000)), days=3), [], series), series.coverage)
    assert json.dumps(first) == json.dumps(again)
    manifest = parse_manifest(json.loads(json.dumps(first)))
    assert manifest.slices == found.slices
    assert all(isinstance(one, Slice) for one in manifest.slices)
    assert manifest.thresholds == series.coverage
    assert manifest.series == "venue.BTC-USD.1m"
    assert list(manifest.partition_hashes) == ["2018", "2019"]
    assert (manifest.days, manifest.good_days, manifest.unknown) == (3, 2, 560)
    (excluded,) = manifest.excluded_days
    assert str(excluded.day) == "2018-01-02"
    assert excluded.reason.startswith("560 of 1440 bars are unknown")
    assert manifest.model_dump(mode="json") == first


def test_a_wrong_manifest_is_refused_by_name() -> None:
    series = crypto()
    good = document(coverage(without(set()), [], series), series.coverage)
    with pytest.raises(SettingsError, match=r"m\.json: key 'slices\.0\.rows' is missing"):
        parse_manifest({**good, "slices": [{"start_ms": 1, "end_ms": 2, "days": 1}]}, "m.json")
    with pytest.raises(SettingsError, match=r"m\.json: unknown key 'extra'"):
        parse_manifest({**good, "extra": 1}, "m.json")


def test_intervals_are_joined_where_they_touch() -> None:
    assert joined([(5, 7), (0, 2), (2, 3), (6, 6), (1, 2)]) == ((0, 3), (5, 7))
