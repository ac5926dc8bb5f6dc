"""Market data: storing, reading, checking and rebuilding bars, beside pandas and ccxt.

Prints one JSON object a line; a ratio above 1 means that ours is better. Each figure is the best of
several runs, taken in a process of its own whose peak memory stands beside it. Run it with
`make bench`, or name cases: `python benchmarks/market_data.py "read one day"`.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

KEY = "bench.BTC-USD.1m"
START_MS = 1_577_836_800_000  # 2020-01-01
YEARS = range(2020, 2025)
MINUTES = 2_629_440  # 5 years
MINUTE_MS = 60_000
TRADES = 5_000_000
PART_OF_TRADES = 200_000  # what ccxt is timed on; its time is scaled to all of them
SERIES, SERIES_YEARS = 15, 10


class Measured(NamedTuple):
    """Seconds of ours and of the peer for the same work, and what to say about it."""

    ours_s: float
    peer: str
    peer_s: float
    note: str = ""


def minutes(seed: int = 0) -> pl.DataFrame:
    """Five years of one-minute bars without a gap: a seeded random walk."""
    from trade_pipeline.market.bars import BAR_SCHEMA, TS

    rng = np.random.default_rng(seed)
    close = np.round(30_000 * np.exp(np.cumsum(rng.normal(0, 1e-3, MINUTES))), 1)
    opened = np.concatenate([[30_000.0], close[:-1]])
    spread = np.round(rng.exponential(5, (2, MINUTES)), 1)
    frame = pl.DataFrame(
        {
            "ts": pl.Series(START_MS + MINUTE_MS * np.arange(MINUTES)).cast(TS),
            "open": opened,
            "high": np.maximum(opened, close) + spread[0],
            "low": np.maximum(np.minimum(opened, close) - spread[1], 0.1),
            "close": close,
            "volume": np.round(rng.exponential(2, MINUTES), 8),
            "trades": rng.integers(1, 200, MINUTES),
            "adj_factor": None,
            "source": "zip",
        }
    )
    return frame.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())


def best(run: Callable[[], object], times: int = 5) -> float:
    """Least seconds of several runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def store_years(store: Path, bars: pl.DataFrame) -> None:
    """Store the bars the way an import does: merged under the lock, hashed, flushed to the disk."""
    from trade_pipeline.market.importing import store_batch
    from trade_pipeline.market.sources.base import SourceBars

    years = bars["ts"].dt.year()
    for year in YEARS:
        batch = SourceBars(bars.filter(years == year), (), "benchmark")
        store_batch(store, KEY, year, batch)


def stored(folder: Path) -> tuple[Path, list[Path]]:
    """A store with the five years, and the same bars as pandas writes them."""
    bars = minutes()
    store_years(folder / "store", bars)
    return folder / "store", write_pandas(folder / "pandas", bars)


def write_pandas(folder: Path, bars: pl.DataFrame) -> list[Path]:
    """One zstd parquet file a year."""
    folder.mkdir(exist_ok=True)
    whole = bars.with_columns(pl.col("source").cast(pl.String)).to_pandas()
    paths = []
    for year, part in whole.groupby(whole["ts"].dt.year):
        paths.append(folder / f"{year}.parquet")
        part.to_parquet(paths[-1], compression="zstd", index=False)
    return paths


def case_write(folder: Path) -> Measured:
    """Five years into an empty store."""
    bars = minutes()
    turns = iter(range(100))
    ours = best(lambda: store_years(folder / f"store{next(turns)}", bars), 3)
    return Measured(ours, "pandas", best(lambda: write_pandas(folder / "pandas", bars), 3))


def case_read_all(folder: Path) -> Measured:
    """Every column of five years, compared with the hash that was written."""
    import pandas as pd

    from trade_pipeline.market.stored import read_bars

    store, paths = stored(folder)
    ours = best(lambda: read_bars(store, KEY), 8)
    return Measured(ours, "pandas", best(lambda: pd.concat(map(pd.read_parquet, paths)), 3))


def case_read_one_day(folder: Path) -> Measured:
    """One day out of the middle."""
    import pandas as pd

    from trade_pipeline.market.stored import read_window

    store, paths = stored(folder)
    day = datetime(2022, 5, 5, tzinfo=UTC)
    start_ms = int(day.timestamp()) * 1000
    assert read_window(store, KEY, start_ms, start_ms + 86_400_000).height == 1440
    ours = best(lambda: read_window(store, KEY, start_ms, start_ms + 86_400_000), 20)
    path = next(path for path in paths if path.stem == "2022")
    filters = [("ts", ">=", day), ("ts", "<", day + timedelta(days=1))]
    return Measured(
        ours, "pandas", best(lambda: pd.read_parquet(path, filters=filters), 10), "from its file"
    )


def case_quality_scan(folder: Path) -> Measured:
    """Duplicates, gaps and coverage of each day, on bars with holes and repeated rows."""
    import pandas as pd

    from trade_pipeline.market.coverage import coverage
    from trade_pipeline.market.quality import gaps

    bars = minutes()
    rng = np.random.default_rng(1)
    kept = np.sort(rng.choice(MINUTES, MINUTES - 20_000, replace=False))
    again = np.sort(np.concatenate([kept, kept[rng.choice(len(kept), 5_000, replace=False)]]))
    dirty = bars[again]
    series = one_minute_series()
    # Three days of which the source knows that nothing traded.
    confirmed = [(START_MS, START_MS + 3 * 86_400_000)]

    def ours() -> object:
        return coverage(dirty, confirmed, series), gaps(dirty, confirmed, series)

    frame = dirty.select("ts", "close").to_pandas()

    def pandas_way() -> object:
        duplicates = frame["ts"].duplicated().sum()
        single = frame.drop_duplicates("ts").set_index("ts")
        whole = single.asfreq("min")
        missing = whole["close"].isna()
        runs = missing.groupby((missing != missing.shift()).cumsum()).sum()
        return duplicates, runs[runs > 0], missing.groupby(pd.Grouper(freq="D")).mean()

    return Measured(best(ours), "pandas", best(pandas_way, 3), "duplicates, gaps, coverage a day")


def one_minute_series() -> Any:
    """Settings of the series that the bars above belong to."""
    from trade_pipeline.settings.series import SeriesSettings

    return SeriesSettings.model_validate(
        {
            "key": KEY,
            "source": {"kind": "kraken", "symbol": "BTC/USD"},
            "timeframe": "1m",
            "first_year": 2020,
            "volume_unit": "base",
        }
    )


def case_trades_to_1m(folder: Path) -> Measured:
    """Five million trades into one-minute bars."""
    import ccxt

    from trade_pipeline.market.rebuild import TRADE_SCHEMA, bars_of_trades

    rng = np.random.default_rng(2)
    time_ns = START_MS * 1_000_000 + np.cumsum(rng.integers(1, 6_000_000_000, TRADES))
    price = np.round(30_000 * np.exp(np.cumsum(rng.normal(0, 1e-4, TRADES))), 1)
    volume = np.round(rng.exponential(0.1, TRADES) + 1e-8, 8)
    frame = pl.DataFrame(
        {"id": np.arange(TRADES), "time": time_ns, "price": price, "volume": volume},
        schema=TRADE_SCHEMA,
    )
    bars_of_trades(frame.head(1000), MINUTE_MS)  # compiled once, before the clock runs
    ours = best(lambda: bars_of_trades(frame, MINUTE_MS))
    exchange = ccxt.kraken()
    part = [
        {"timestamp": t // 1_000_000, "price": p, "amount": v}
        for t, p, v in frame.head(PART_OF_TRADES).select("time", "price", "volume").rows()
    ]
    scaled = best(lambda: exchange.build_ohlcvc(part, "1m"), 3) * TRADES / PART_OF_TRADES
    note = f"ccxt timed on {PART_OF_TRADES} trades and scaled to {TRADES}"
    return Measured(ours, "ccxt.build_ohlcvc", scaled, note)


def case_backfill(folder: Path) -> Measured:
    """150 series-years of daily bars and their features, checks included, in single-run ranges.

    The peer is one Dagster run a partition, timed on four of them and scaled.
    """
    from backfill_project import backfill, single_runs, write_project

    places = write_project(folder, SERIES, SERIES_YEARS)
    peer = single_runs(places, 4) / 4 * (SERIES * SERIES_YEARS)
    started = time.perf_counter()
    versions = backfill(places, SERIES_YEARS, folder / "dagster")
    ours = time.perf_counter() - started
    assert versions == SERIES * SERIES_YEARS, f"{versions} distinct data versions"
    return Measured(ours, "one run a partition", peer, f"{versions} distinct data versions")


CASES: dict[str, tuple[Callable[[Path], Measured], str]] = {
    "write": (case_write, "ms"),
    "read all": (case_read_all, "ms"),
    "read one day": (case_read_one_day, "ms"),
    "quality scan": (case_quality_scan, "s"),
    "trades to 1m": (case_trades_to_1m, "ms"),
    "backfill": (case_backfill, "s"),
}


def measure(case: str) -> None:
    """Run one case and print its line."""
    run, unit = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder))
    scale = 1000 if unit == "ms" else 1
    line = {
        "benchmark": "market_data",
        "case": case,
        "value": round(found.ours_s * scale, 3),
        "unit": unit,
        "peer": found.peer,
        "peer_value": round(found.peer_s * scale, 3),
        "ratio": round(found.peer_s / found.ours_s, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(line | ({"note": found.note} if found.note else {})), flush=True)


def main(cases: list[str]) -> None:
    """Measure the named cases, or all, each in a process of its own."""
    if unknown := [case for case in cases if case not in CASES]:
        sys.exit(f"unknown case {unknown[0]!r}; known: {', '.join(CASES)}")
    spawn = multiprocessing.get_context("spawn")
    for case in cases or list(CASES):
        process = spawn.Process(target=measure, args=(case,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"case {case!r} failed")


if __name__ == "__main__":
    main(sys.argv[1:])
