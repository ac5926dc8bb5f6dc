"""The schedules: which timeframes are asked how often, and what a tick starts."""

from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Any

import dagster as dg
import pytest
from dagster._utils.schedules import cron_string_iterator

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.defs.schedules import CRONS
from trade_pipeline.settings.series import TIMEFRAME_MS
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA, series_entry, write_yaml

REACH_BARS = 720  # of Kraken's OHLC


def tick(deployment: Deployment, name: str, *time: int) -> list[dg.RunRequest]:
    definitions = build_definitions(deployment.places)
    with dg.build_schedule_context(
        instance=deployment.instance,
        scheduled_execution_time=datetime(*time, tzinfo=UTC),
        repository_def=definitions.get_repository_def(),
    ) as context:
        found = definitions.resolve_schedule_def(name).evaluate_tick(context)
    return list(found.run_requests or [])


def partitions(requests: list[dg.RunRequest]) -> list[str | None]:
    return [request.partition_key for request in requests]


def entry(key: str, timeframe: str, source: dict[str, Any] | None = None) -> dict[str, object]:
    changes = {"timeframe": timeframe} | ({"source": source} if source else {})
    return {**series_entry(key, "alpha.csv", 2020), **changes}


@pytest.fixture
def many(empty: Deployment) -> Deployment:
    """Series of several timeframes and sources."""
    sample = {"kind": "bokeh_sample", "ticker": "AAPL"}
    kraken = {"kind": "kraken", "symbol": "BTC/USD"}
    series = [
        entry(ALPHA, "1d"),
        entry("sample.AAPL.1d", "1d", sample),
        entry("kraken.BTC-USD.1m", "1m", kraken),
        entry("kraken.BTC-USD.4h", "4h", {"kind": "derived", "derived_from": "kraken.BTC-USD.1m"}),
        entry("kraken.ETH-USD.1m", "1m", {**kraken, "symbol": "ETH/USD"}),
        entry("kraken.ETH-USD.1h", "1h", {**kraken, "symbol": "ETH/USD"}),
    ]
    write_yaml(empty.places.configs / "series.yaml", {"series": series})
    for file in (empty.places.configs / "experiments").glob("*.yaml"):
        file.unlink()
    return empty


@pytest.mark.parametrize("timeframe", TIMEFRAME_MS)
def test_no_two_ticks_are_further_apart_than_half_of_what_kraken_still_gives(
    timeframe: str,
) -> None:
    start = datetime(2024, 3, 1, tzinfo=UTC).timestamp()
    ticks = cron_string_iterator(start, CRONS[timeframe], "UTC")
    gaps = [(b - a).total_seconds() * 1000 for a, b in pairwise(islice(ticks, 100))]
    assert max(gaps) <= TIMEFRAME_MS[timeframe] * REACH_BARS / 2


def test_there_is_a_schedule_for_each_timeframe_that_can_bring_bars(many: Deployment) -> None:
    every = {one.name: one for one in build_definitions(many.places).schedules or []}
    schedules = {name: one for name, one in every.items() if name.startswith("refresh_")}
    assert set(schedules) == {"refresh_1m", "refresh_1h", "refresh_1d"}
    for schedule in schedules.values():
        assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert "kraken.ETH-USD.1m" in (schedules["refresh_1m"].description or "")
    assert "sample" not in (schedules["refresh_1d"].description or "")


def test_a_tick_is_a_run_a_series_of_this_year(many: Deployment) -> None:
    requests = tick(many, "refresh_1m", 2024, 3, 4, 6, 5)
    assert partitions(requests) == ["kraken.BTC-USD.1m|2024", "kraken.ETH-USD.1m|2024"]
    later = tick(many, "refresh_1m", 2024, 3, 4, 12, 5)
    keys = [request.run_key for request in [*requests, *later]]
    assert len(set(keys)) == 4, "each tick's runs are its own"


def test_in_the_first_days_of_a_year_the_last_one_is_asked_for_too(many: Deployment) -> None:
    both = [f"{ALPHA}|2023", f"{ALPHA}|2024"]
    assert partitions(tick(many, "refresh_1d", 2023, 12, 31, 6, 15)) == both[:1]
    for day in (1, 2, 3):
        assert partitions(tick(many, "refresh_1d", 2024, 1, day, 6, 15)) == both
    assert partitions(tick(many, "refresh_1d", 2024, 1, 4, 6, 15)) == both[1:]
    # 2019 is before its first year, and no partition.
    assert partitions(tick(many, "refresh_1d", 2020, 1, 1, 6, 15)) == [f"{ALPHA}|2020"]


def test_a_series_that_has_not_begun_is_left_alone(empty: Deployment) -> None:
    assert partitions(tick(empty, "refresh_1d", 2020, 6, 1, 6, 15)) == [f"{ALPHA}|2020"]
    assert tick(empty, "refresh_1d", 2019, 6, 1, 6, 15) == []


def test_one_venue_that_fails_stops_no_other(empty: Deployment) -> None:
    (empty.root / "data" / "alpha.csv").unlink()
    done = {}
    for request in tick(empty, "refresh_1d", 2022, 3, 4, 6, 15):
        job = build_definitions(empty.places).resolve_job_def("refresh_bars")
        result = job.execute_in_process(
            instance=empty.instance,
            partition_key=request.partition_key,
            tags=request.tags,
            raise_on_error=False,
        )
        done[request.partition_key] = result.success
    assert done == {f"{ALPHA}|2022": False, f"{BETA}|2022": True}
    found = empty.instance.get_materialized_partitions(dg.AssetKey("ohlcv"))
    assert found == {f"{BETA}|2022"}
