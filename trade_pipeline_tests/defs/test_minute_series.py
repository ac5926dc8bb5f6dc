"""Real minute bars, from exchange files to a backtest: 45,031 of FTX, four days of Coinbase."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from trade_pipeline.market.stored import read_manifest
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import COLUMNS, materialize, write_yaml

FTX, COINBASE = "ftx.BTC-PERP.1m", "coinbase.BTC-USD.1m"
NAME, TRIAL = "btc_minute_ppo", "base.f0.s0"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPERIMENT = {
    "series": [FTX],
    "features": "minute",
    "from": "2022-01-01",
    "to": "2022-02-01",
    "splits": {"kind": "calendar", "validation_from": "2022-01-22", "test_from": "2022-01-27"},
    "environment": {
        "window": 32,
        "episode_bars": 240,
        "costs": {
            "fee": {"kind": "flat", "bps": 5},
            "slippage": {"kind": "fixed", "bps": 2},
        },
        "actions": {"kind": "brackets", "stops": [None, 0.01], "takes": [None, 0.02]},
    },
    "algorithm": {
        "kind": "ppo",
        "total_frames": 4096,
        "environments": 32,
        "rollout_steps": 32,
        "batch_size": 256,
        "network": {"kind": "mlp", "hidden": [32]},
    },
    "seeds": [0],
}


def series(key: str, path: Path, volume_unit: str, first_year: int, **source: object) -> object:
    return {
        "key": key,
        "source": {"kind": "file", "path": str(path), **source},
        "timeframe": "1m",
        "calendar": "24/7",
        "first_year": first_year,
        "volume_unit": volume_unit,
    }


@pytest.fixture
def minutes(empty: Deployment, shared_data: Path) -> Deployment:
    """The project of a user with two minute series, the repository's minute features."""
    configs = empty.places.configs
    ftx = series(
        FTX,
        shared_data / "crypto_1m" / "ftx_btc_perp_1m_20211231_20220201.csv.gz",
        "quote",
        2021,
        columns={**COLUMNS, "ts": "timestamp"},
    )
    coinbase = series(
        COINBASE,
        shared_data / "lean_crypto" / "coinbase_minute_btcusd_*.zip",
        "base",
        2016,
        header=False,
        columns={name: position for position, name in enumerate(COLUMNS)},
        time_unit="ms_of_day",
        date_in_name=r"(\d{8})",
    )
    write_yaml(configs / "series.yaml", {"series": [ftx, coinbase]})
    shutil.copy(CONFIGS / "features" / "minute.yaml", configs / "features")
    shutil.rmtree(configs / "experiments")
    write_yaml(configs / "experiments" / f"{NAME}.yaml", EXPERIMENT)
    return empty


def made(
    deployment: Deployment, *select: str, first: str | None = None, last: str | None = None
) -> dict[str | None, Mapping[str, dg.MetadataValue]]:
    """Materialize and return the metadata by partition."""
    result = materialize(deployment.places, deployment.instance, *select, first=first, last=last)
    assert result.success
    events = [event.materialization for event in result.get_asset_materialization_events()]
    return {event.partition: event.metadata for event in events}


def test_a_month_of_minutes_from_the_exchanges_file_to_a_backtest(minutes: Deployment) -> None:
    store = minutes.places.store
    imported = made(minutes, "ohlcv", first=f"{FTX}|2021", last=f"{FTX}|2022")
    counts = {key: metadata["dagster/row_count"].value for key, metadata in imported.items()}
    assert counts == {f"{FTX}|2021": 59, f"{FTX}|2022": 44_972}
    assert sum(read_frame(layout.ohlcv(store, FTX, year)).height for year in (2021, 2022)) == 45_031

    (covered,) = made(minutes, "manifest", first=FTX).values()
    assert covered["dagster/row_count"].value == 45_031
    assert (covered["slices"].value, covered["slice_bars"].value) == (1, 31 * 1440)
    (month,) = read_manifest(store, FTX).slices
    assert (month.days, month.rows) == (31, 31 * 1440)

    (described,) = made(minutes, "features/minute", first=FTX).values()
    lookback = described["lookback"].value
    assert isinstance(lookback, int)
    table = read_frame(layout.features(store, "minute", FTX))
    assert table.height == described["dagster/row_count"].value == 31 * 1440 - lookback
    assert table.select(pl.exclude("ts").is_finite().all()).row(0) == (True,) * (table.width - 1)

    (dataset,) = made(minutes, f"{NAME}/dataset").values()
    assert dataset["dagster/row_count"].value == table.height
    assert (dataset["slices"].value, dataset["folds"].value) == (1, 1)

    made(minutes, f"{NAME}/policy", first=TRIAL)
    (done,) = made(minutes, f"{NAME}/backtest", first=TRIAL).values()
    location = bundles.current(layout.experiment_bundle(store, NAME, "backtest", TRIAL))
    equity = pl.read_parquet(location.path / "equity.parquet")
    assert done["dagster/row_count"].value == equity.height
    # 27 to 31 January: the first decision has seen a window, the last one is before the last bar.
    assert equity.height == 5 * 1440 - (32 - 1)
    metrics = read_json(location.child("metrics.json"))
    assert metrics["periods_per_year"] == {"bar": 365.0 * 1440, "day": 365.0}


def test_two_exchanges_are_imported_in_one_run(minutes: Deployment) -> None:
    imported = made(minutes, "ohlcv", first=f"{FTX}|2016", last=f"{COINBASE}|2022")
    counts = {
        key: metadata["dagster/row_count"].value
        for key, metadata in imported.items()
        if metadata["dagster/row_count"].value
    }
    assert counts == {
        f"{FTX}|2021": 59,
        f"{FTX}|2022": 44_972,
        f"{COINBASE}|2016": 1419 + 1400 + 1397,
        f"{COINBASE}|2018": 1007,
    }

    covered = made(minutes, "manifest", first=FTX, last=COINBASE)
    assert {key: metadata["slices"].value for key, metadata in covered.items()} == {
        FTX: 1,
        COINBASE: 1,
    }
    manifest = read_json(layout.manifest(minutes.places.store, COINBASE))
    (excluded,) = [one for one in manifest["excluded_days"] if one["day"] == "2018-04-04"]
    assert (excluded["expected"], excluded["traded"], excluded["unknown"]) == (1440, 1007, 433)
