"""Series and bars that the tests of this folder start from."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA, TS
from trade_pipeline.settings.series import SeriesSettings

MINUTE = 60_000
DAY = 86_400_000
START = 1_514_764_800_000  # 2018-01-01
COLUMNS = {name: name for name in ("ts", "open", "high", "low", "close", "volume")}


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp()) * 1000


def crypto(path: str = "bars.csv", **changes: Any) -> SeriesSettings:
    """A 24/7 series from a file; `source` and `coverage` in changes are merged in."""
    source = {"kind": "file", "path": path, "columns": COLUMNS, "time_unit": "ms"}
    settings = {
        "key": "venue.BTC-USD.1m",
        "timeframe": "1m",
        "first_year": 2010,
        "volume_unit": "base",
        **changes,
        "source": source | changes.get("source", {}),
    }
    return SeriesSettings.model_validate(settings)


def stock(ticker: str, **changes: Any) -> SeriesSettings:
    """A daily series of the shipped sample."""
    return SeriesSettings.model_validate(
        {
            "key": f"sample.{ticker}.1d",
            "source": {"kind": "bokeh_sample", "ticker": ticker},
            "timeframe": "1d",
            "calendar": "XNYS",
            "first_year": 2000,
            "volume_unit": "shares",
            **changes,
        }
    )


def bars_at(ts_ms: list[int], source: str = "file", **columns: Any) -> pl.DataFrame:
    """Valid bars with prices that differ from bar to bar."""
    close = 100.0 + np.arange(len(ts_ms)) % 7
    frame = pl.DataFrame(
        {
            "ts": pl.Series(ts_ms, dtype=pl.Int64).cast(TS),
            "open": close,
            "high": close + 1,
            "low": close - 1,
            "close": close + 0.5,
            "volume": close / 10,
        }
    )
    others = {"trades": None, "adj_factor": None, "source": source} | columns
    frame = frame.with_columns(
        **{k: pl.Series(v) if isinstance(v, list) else pl.lit(v) for k, v in others.items()}
    )
    return frame.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())


def minutes(*indexes: int) -> list[int]:
    """Opens of these minutes, counted from `START`."""
    return [START + index * MINUTE for index in indexes]
