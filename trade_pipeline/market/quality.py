"""What looks wrong in valid bars: holes in time, and prices that jump and come back.

Pure functions over frames; nothing here stops an import. Start at `gaps` and `outliers`.
"""

from collections.abc import Iterable

import polars as pl

from trade_pipeline.settings.series import SeriesSettings

GAP_SCHEMA: dict[str, pl.DataType] = {
    "first": pl.Datetime("ms", "UTC"),
    "last": pl.Datetime("ms", "UTC"),
    "bars": pl.Int64(),
}


def gaps(
    bars: pl.DataFrame, confirmed: Iterable[tuple[int, int]], series: SeriesSettings
) -> pl.DataFrame:
    """Runs of unknown bars longer than the series allows within a slice."""
    return pl.DataFrame(schema=GAP_SCHEMA)


def outliers(bars: pl.DataFrame, series: SeriesSettings) -> pl.DataFrame:
    """Bars whose price jumps out of proportion."""
    return pl.DataFrame(schema={"ts": pl.Datetime("ms", "UTC")})
