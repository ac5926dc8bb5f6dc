"""A project of daily series for the benchmark case `backfill`, and how it is materialized.

Start at `write_project`; then `backfill` for one run a range, or `single_runs` for one a partition.
"""

import time
import warnings
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import yaml

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.settings.project import Places

FIRST_YEAR = 2010

warnings.filterwarnings("ignore", category=dg.BetaWarning)


def write_project(root: Path, series: int, years: int) -> Places:
    """So many daily series over so many years, one CSV each, and the shipped daily features."""
    data, configs = root / "data", root / "configs"
    for folder in (data, configs / "features", configs / "experiments", configs / "compute"):
        folder.mkdir(parents=True)
    first = date(FIRST_YEAR, 1, 1)
    days = (date(FIRST_YEAR + years, 1, 1) - first).days
    entries = []
    for number in range(series):
        rng = np.random.default_rng(number)
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, days)))
        opened = np.concatenate([[100.0], close[:-1]])
        pl.DataFrame(
            {
                "ts": [f"{first + timedelta(days=n)}" for n in range(days)],
                "open": opened,
                "high": np.maximum(opened, close) * 1.01,
                "low": np.minimum(opened, close) / 1.01,
                "close": close,
                "volume": rng.uniform(10, 1000, days).round(2),
            }
        ).write_csv(data / f"{number}.csv")
        columns = {name: name for name in ("ts", "open", "high", "low", "close", "volume")}
        entries.append(
            {
                "key": f"bench.S{number:02}.1d",
                "source": {"kind": "file", "path": f"data/{number}.csv", "columns": columns},
                "timeframe": "1d",
                "first_year": FIRST_YEAR,
                "volume_unit": "base",
            }
        )
    (configs / "series.yaml").write_text(yaml.safe_dump({"series": entries}))
    shipped = Path(__file__).resolve().parents[1] / "configs" / "features" / "daily.yaml"
    (configs / "features" / "daily.yaml").write_text(shipped.read_text())
    (configs / "compute" / "local.yaml").write_text(yaml.safe_dump({"kind": "local"}))
    return Places(configs=configs, store=root / "store")


def backfill(places: Places, years: int, home: Path) -> int:
    """All bars in one run, then all manifests and features in one. Gives distinct data versions."""
    keys = yaml.safe_load((places.configs / "series.yaml").read_text())["series"]
    first, last = keys[0]["key"], keys[-1]["key"]
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        stop = FIRST_YEAR + years - 1
        _run(places, instance, ["ohlcv"], f"{first}|{FIRST_YEAR}", f"{last}|{stop}")
        _run(places, instance, ["manifest", "features/daily"], first, last)
        records = instance.fetch_materializations(dg.AssetKey("ohlcv"), limit=10_000).records
        latest: dict[str, str] = {}
        for record in records:  # newest first
            event = record.asset_materialization
            assert event is not None and event.partition is not None and event.tags is not None
            latest.setdefault(event.partition, event.tags["dagster/data_version"])
        return len(set(latest.values()))


def single_runs(places: Places, partitions: int) -> float:
    """Seconds of so many runs of one partition each, into a store of their own."""
    apart = Places(configs=places.configs, store=places.store.with_name("apart"))
    home = places.store.with_name("apart_dagster")
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        started = time.perf_counter()
        for number in range(partitions):
            _run(apart, instance, ["ohlcv"], f"bench.S{number:02}.1d|{FIRST_YEAR}")
        return time.perf_counter() - started


def _run(
    places: Places, instance: dg.DagsterInstance, select: list[str], first: str, last: str = ""
) -> None:
    definitions = build_definitions(places)
    tags = {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": last,
    }
    done = dg.materialize(
        [*(definitions.assets or ()), *(definitions.asset_checks or ())],
        selection=dg.AssetSelection.assets(*(dg.AssetKey(one.split("/")) for one in select)),
        instance=instance,
        resources=definitions.resources,
        partition_key=None if last else first,
        tags=tags if last else {},
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
    assert done.success
