"""From a loopback venue's answers to a backtest, through real ccxt and real Dagster."""

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from trade_pipeline.market.stored import read_bars, read_manifest
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.fakes.kraken import Clock, FakeKraken
from trade_pipeline_tests.fakes.market import MadeMarket
from trade_pipeline_tests.small_project import EXPERIMENT, materialize, write_yaml

MINUTES, QUARTERS = "kraken.BTC-USD.1m", "kraken.BTC-USD.15m"
HOUR_MS = 3_600_000
NOW_MS = time.time_ns() // 1_000_000
START_MS = (NOW_MS // HOUR_MS - 40) * HOUR_MS
HALT = (START_MS + 9 * HOUR_MS, START_MS + 12 * HOUR_MS)
MARKET = MadeMarket(
    seed=5,
    start_ms=START_MS,
    end_ms=NOW_MS,
    trades_per_minute=3.0,
    halts=[HALT],
    busy_seconds={START_MS + 5 * HOUR_MS: 1_500},
)


@pytest.fixture
def venue() -> Iterator[FakeKraken]:
    """Forty hours of BTC/USD up to now: three trades a minute, a halt of three hours."""
    with FakeKraken(MARKET, Clock(NOW_MS)) as fake:
        yield fake
        assert not fake.unexpected
        assert not fake.unused


def day(days_ago: int) -> str:
    return f"{datetime.fromtimestamp(NOW_MS / 1000, UTC) - timedelta(days=days_ago):%Y-%m-%d}"


@pytest.fixture
def project(empty: Deployment, venue: FakeKraken) -> Deployment:
    """One-minute bars of the venue, quarters of an hour derived from them, an experiment."""
    common = {
        "first_year": datetime.fromtimestamp(START_MS / 1000, UTC).year,
        "volume_unit": "base",
    }
    source = {
        "kind": "kraken",
        "symbol": "BTC/USD",
        "base_url": venue.url,
        "calls_per_minute": 1e6,
    }
    derived = {"kind": "derived", "derived_from": MINUTES}
    configs = empty.places.configs
    series = [
        {"key": MINUTES, "source": source, "timeframe": "1m", **common},
        {"key": QUARTERS, "source": derived, "timeframe": "15m", **common},
    ]
    write_yaml(configs / "series.yaml", {"series": series})
    shutil.rmtree(configs / "experiments")
    experiment = {
        **EXPERIMENT,
        "series": [MINUTES],
        "from": day(3),
        "to": day(-1),
        "splits": {"kind": "fraction", "train": 0.6, "validation": 0.2, "test": 0.2},
        "seeds": [0],
    }
    write_yaml(configs / "experiments" / "minutes.yaml", experiment)
    return empty


def made(
    project: Deployment, *select: str, first: str | None = None, last: str | None = None
) -> None:
    result = materialize(project.places, project.instance, *select, first=first, last=last)
    assert result.success


def test_a_loopback_venue_becomes_a_backtested_policy(
    project: Deployment, venue: FakeKraken
) -> None:
    first, last = (datetime.fromtimestamp(ms / 1000, UTC).year for ms in (START_MS, NOW_MS))
    venue.fail("Trades", "truncated json", times=1, after=2)
    venue.fail("OHLC", "throttled", times=1)
    made(project, "ohlcv", first=f"{MINUTES}|{first}", last=f"{QUARTERS}|{last}")

    store = project.places.store
    truth = MARKET.bars(60_000, START_MS, NOW_MS // 60_000 * 60_000)
    stored = read_bars(store, MINUTES)
    assert stored.bars["ts"].to_list() == truth["ts"].to_list()
    assert stored.bars["close"].to_list() == truth["close"].to_list()
    assert set(stored.bars["source"]) == {"trades", "rest"}
    ((_, confirmed),) = [one for one in stored.confirmed if one[0] <= START_MS]
    assert confirmed >= NOW_MS - 120_000

    quarters = read_bars(store, QUARTERS).bars
    halted = quarters["ts"].dt.epoch("ms").is_between(*HALT, closed="left")
    assert quarters.height >= 4 * 36
    assert not halted.any(), "nothing traded, so there is no bar"

    made(project, "manifest", "features/tiny", first=MINUTES, last=QUARTERS)
    manifest = read_manifest(store, MINUTES)
    assert manifest.unknown <= 24 * 60, "only the day's minutes before the market began"
    assert manifest.quiet >= 180
    made(project, "minutes/dataset")
    made(project, "minutes/policy", "minutes/backtest", first="base.f0.s0")
    backtest = bundles.current(layout.experiment_bundle(store, "minutes", "backtest", "base.f0.s0"))
    assert read_json(backtest.child("metrics.json"))["periods_per_year"]["bar"] == 365.0 * 1440

    asked = len(venue.requests)
    made(project, "ohlcv", first=f"{MINUTES}|{last}")
    assert len(venue.requests) - asked <= 3, "what is confirmed is not asked for again"
