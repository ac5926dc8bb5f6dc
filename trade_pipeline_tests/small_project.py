"""A project small enough for tests: two made-up daily series in CSV files, one tiny experiment.

`ALPHA` trades every day of 2020 to 2022; `BETA` starts in March 2021. Both are 24/7.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.settings.base import yaml_text
from trade_pipeline.settings.project import Places

ALPHA, BETA = "made.ALPHA.1d", "made.BETA.1d"
FIRST_DAY = date(2020, 1, 1)
DAYS = 1000
BETA_STARTS = 430
COLUMNS = {name: name for name in ("ts", "open", "high", "low", "close", "volume")}


def bars(seed: int, days: int = DAYS, first: date = FIRST_DAY) -> pl.DataFrame:
    """A seeded random walk as a CSV of daily bars would have it."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, days)))
    opened = np.concatenate([[100.0], close[:-1]])
    spread = 1 + np.abs(rng.normal(0, 0.005, days))
    return pl.DataFrame(
        {
            "ts": [f"{first + timedelta(days=n)}T00:00:00" for n in range(days)],
            "open": opened,
            "high": np.maximum(opened, close) * spread,
            "low": np.minimum(opened, close) / spread,
            "close": close,
            "volume": rng.uniform(10, 1000, days).round(2),
        }
    )


def series_entry(key: str, file: str, first_year: int) -> dict[str, object]:
    """An entry of series.yaml for a CSV of `bars`."""
    return {
        "key": key,
        "source": {"kind": "file", "path": f"data/{file}", "columns": COLUMNS},
        "timeframe": "1d",
        "calendar": "24/7",
        "first_year": first_year,
        "volume_unit": "base",
    }


FEATURES = {
    "indicators": [
        {"name": "returns", "params": {"horizons": [1, 5]}},
        {"name": "sma_ratio", "params": {"period": 10}},
    ]
}

EXPERIMENT: dict[str, object] = {
    "series": [ALPHA],
    "features": "tiny",
    "from": "2020-01-01",
    "to": "2022-09-01",
    "splits": {
        "kind": "walk_forward",
        "folds": 2,
        "train_days": 400,
        "validation_days": 80,
        "test_days": 120,
    },
    "environment": {
        "window": 4,
        "episode_bars": 60,
        "actions": {
            "kind": "brackets",
            "sizes": [0.5, 1.0],
            "stops": [None, 0.05],
            "takes": [None, 0.1],
        },
    },
    "algorithm": {
        "kind": "ppo",
        "total_frames": 1024,
        "environments": 8,
        "rollout_steps": 32,
        "batch_size": 128,
        "network": {"kind": "mlp", "hidden": [16]},
    },
    "seeds": [0, 1],
    "baselines": [{"kind": "flat"}, {"kind": "buy_and_hold"}],
}

PAIR: dict[str, object] = {
    **EXPERIMENT,
    "series": [ALPHA, BETA],
    "from": "2021-03-06",
    "splits": {"kind": "fraction", "train": 0.6, "validation": 0.2, "test": 0.2},
    "environment": {"window": 4, "episode_bars": 60, "actions": {"kind": "weights"}},
    "seeds": [0],
    "baselines": [{"kind": "equal_weight"}],
}


def write_project(root: Path) -> Places:
    """Write data and configs under a folder; the store is beside them."""
    data = root / "data"
    data.mkdir(parents=True)
    bars(1).write_csv(data / "alpha.csv")
    bars(2).tail(DAYS - BETA_STARTS).write_csv(data / "beta.csv")
    configs = root / "configs"
    series = [series_entry(ALPHA, "alpha.csv", 2020), series_entry(BETA, "beta.csv", 2021)]
    write_yaml(configs / "series.yaml", {"series": series})
    write_yaml(configs / "features" / "tiny.yaml", FEATURES)
    write_yaml(configs / "compute" / "local.yaml", {"kind": "local"})
    write_yaml(configs / "experiments" / "alone.yaml", EXPERIMENT)
    write_yaml(configs / "experiments" / "pair.yaml", PAIR)
    return Places(configs=configs, store=root / "store")


def write_yaml(path: Path, content: object) -> None:
    """Write a settings file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml_text(content), encoding="utf-8")


def materialize(
    places: Places,
    instance: dg.DagsterInstance,
    *select: str,
    first: str | None = None,
    last: str | None = None,
) -> dg.ExecuteInProcessResult:
    """Materialize assets with their checks, as the command line would; never raises.

    `first` alone is a partition; with `last` it begins a single-run range.
    """
    definitions = build_definitions(places)
    tags = {}
    if last is not None:
        tags = {
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        }
    chosen = dg.AssetSelection.assets(*(dg.AssetKey(one.split("/")) for one in select))
    return dg.materialize(
        [*definitions.assets, *definitions.asset_checks],
        selection=chosen,
        instance=instance,
        resources=definitions.resources,
        partition_key=first if last is None else None,
        tags=tags,
        raise_on_error=False,
    )


def years(places: Places) -> tuple[str, str]:
    """First and last year partition of a project of today."""
    return "2020", str(datetime.now(UTC).year)


def import_bars(places: Places, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """`ohlcv` of both series and all years, as one range."""
    first, last = years(places)
    return materialize(places, instance, "ohlcv", first=f"{ALPHA}|{first}", last=f"{BETA}|{last}")


def import_all(places: Places, instance: dg.DagsterInstance) -> None:
    """Bars, manifests, features and datasets of both series."""
    for outcome in (
        import_bars(places, instance),
        materialize(places, instance, "manifest", "features/tiny", first=ALPHA, last=BETA),
        materialize(places, instance, "alone/dataset", "pair/dataset"),
    ):
        assert outcome.success


def train_all(places: Places, instance: dg.DagsterInstance) -> None:
    """Policies, backtests and reports of both experiments, and what comes last."""
    trials = {"alone": [f"base.f{f}.s{s}" for f in (0, 1) for s in (0, 1)], "pair": ["base.f0.s0"]}
    for name, keys in trials.items():
        for key in keys:
            assert materialize(
                places, instance, f"{name}/policy", f"{name}/backtest", first=key
            ).success
    reports = [f"{name}/{kind}" for name in trials for kind in ("report", "promoted")]
    last = (*reports, "leaderboard", "storage_use")
    assert materialize(places, instance, *last).success
