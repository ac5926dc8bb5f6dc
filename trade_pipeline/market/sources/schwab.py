"""US stocks and indices from Charles Schwab, through schwab-py (extra `schwab`).

What Schwab gives, from schwab-py's documentation of the price history and its issues 136 and 148,
for Schwab publishes little:

- One answer holds all there is: about 48 days of 1m, nine months of 5m and 15m bars, 20 years and
  more of days. A start and an end are not honoured to the minute.
- Prices are adjusted for splits (not for dividends) at the time of asking, and no answer lists the
  splits. So `adj_factor` is null, and a later split changes all bars before it: everything is read
  each time and compared with what is stored, and bars of two bases never stand side by side.
- Days are stamped at night in New York or Chicago. Whether a missing bar is quiet is nowhere said,
  so nothing is confirmed.

Knows no other venue. Start at `Schwab.fetch`; `schwab_http` asks.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import numpy as np
import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA
from trade_pipeline.market.calendars import ALWAYS
from trade_pipeline.market.sources.base import (
    Capabilities,
    HistoryUnavailable,
    Leg,
    SourceBars,
    SourceError,
    Surroundings,
    Wanted,
    require_route,
    within,
    year_interval,
)
from trade_pipeline.market.sources.new_york import (
    FEED_DELAY_MS,
    complete_until,
    session_dates,
    within_hours,
)
from trade_pipeline.market.sources.schwab_http import METHODS, SchwabHttp
from trade_pipeline.market.stored import read_bars
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import SchwabSource
from trade_pipeline.storage.location import StorageError

ROUTE = "rest"
NOTE = (
    "prices are as Schwab adjusted them for splits (not dividends) when asked; its splits are not "
    "known, so adj_factor is null"
)
# A split moves every bar before it by far more, a correction only single bars.
SAME_PRICE = 1e-3
FEWEST_CHANGED = 5


class Schwab:
    """Reads all that Schwab has of one symbol, and keeps what the run wants of it."""

    implementation = 1

    def routes(self, series: SeriesSettings) -> Mapping[str, Capabilities]:
        """The one route."""
        return {
            ROUTE: Capabilities(
                page_cap=None,
                has_history=False,
                cursor="none",
                fills_quiet=False,
                timeframes=tuple(METHODS),
                calls_per_minute=_settings(series).calls_per_minute,
            )
        }

    def plan(
        self, series: SeriesSettings, wanted: Wanted, route: str | None, around: Surroundings
    ) -> list[Leg]:
        """The wanted years, each run of them as a leg, whatever is stored."""
        if series.calendar == ALWAYS:
            raise SourceError(
                f"series {series.key}: calendar {ALWAYS} does not fit a stock; set it to its "
                "exchange, such as XNYS."
            )
        require_route(series, route or ROUTE, self.routes(series))
        first_ms = year_interval(series.first_year)[0]
        # Nothing is ever confirmed, so that what is missing is the run's years.
        ranges = within(wanted.missing, first_ms, wanted.end_ms)
        return [Leg(ROUTE, start, end) for start, end in ranges]

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """One batch with the complete bars of a leg.

        Raises:
            HistoryUnavailable: the leg lies before the first bar that Schwab has.
            SourceError: schwab-py, credentials or token are missing; Schwab refuses or does not
                answer well; its prices have another basis than stored ones that would stay.
        """
        http = SchwabHttp(series, around)
        bars = http.bars(series.timeframe, year_interval(series.first_year)[0])
        if series.is_daily_session:
            bars = bars.with_columns(ts=session_dates(bars["ts"], series))
        else:
            bars = within_hours(bars, series)
        if not _settings(series).symbol.startswith("$"):  # an index has no volume at all
            bars = bars.filter(pl.col("volume") != 0)
        ms = pl.col("ts").dt.epoch("ms")
        bars = bars.filter(ms < complete_until(http.now_ms - FEED_DELAY_MS, series))
        _require_history(bars, series, leg)
        kept = bars.filter((ms >= leg.start_ms) & (ms < leg.end_ms))
        notes = _require_same_basis(bars, kept, series, around)
        kept = kept.with_columns(trades=None, adj_factor=None, source=pl.lit(ROUTE))
        yield SourceBars(
            bars=kept.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items()),
            confirmed=(),
            origin=f"Schwab, {_settings(series).symbol}",
            notes=(NOTE, *notes),
            answers=1,
        )


def _settings(series: SeriesSettings) -> SchwabSource:
    if not isinstance(series.source, SchwabSource):
        raise TypeError(f"series {series.key} is not of kind schwab")
    return series.source


def _require_history(bars: pl.DataFrame, series: SeriesSettings, leg: Leg) -> None:
    first = bars["ts"].min()
    if isinstance(first, datetime) and first.timestamp() * 1000 < leg.end_ms:
        return
    has = f"its first is of {first:%Y-%m-%d}" if isinstance(first, datetime) else "it has none"
    raise HistoryUnavailable(
        f"series {series.key}: Schwab has no complete {series.timeframe} bar of "
        f"{_settings(series).symbol} before {_text(leg.end_ms)}; {has}. It keeps about 48 days of "
        "1m and nine months of 5m and 15m bars: ask for later years, or correct the symbol or "
        "first_year."
    )


def _require_same_basis(
    given: pl.DataFrame, kept: pl.DataFrame, series: SeriesSettings, around: Surroundings
) -> tuple[str, ...]:
    """Refuse to store bars beside older ones that a split since then has left on another basis.

    Args:
        given: all complete bars that Schwab has.
        kept: those of them that will be stored.
        series: whose bars.
        around: the store.

    Returns:
        Notes on what could not be compared.
    """
    try:
        stored = read_bars(around.store, series.key).bars.select("ts", "close")
    except StorageError:
        return ()  # nothing is stored yet; what is damaged is named when it is merged
    both = stored.join(given.select("ts", now="close"), on="ts", how="left", maintain_order="left")
    ratio = both["now"].to_numpy() / both["close"].to_numpy()
    known = ~np.isnan(ratio)
    if both.height and not known.any():
        return (
            "no stored bar is among those that Schwab has now, so a split in between, which would "
            "put them on two bases, cannot be noticed",
        )
    changed = known & (np.abs(ratio - 1) > SAME_PRICE)
    if changed.sum() < min(FEWEST_CHANGED, max(known.sum(), 1)):
        return ()
    # A split changes every bar before it; bars that are overwritten now are no harm.
    last = int(np.flatnonzero(changed)[-1])
    stays = ~both["ts"].is_in(kept["ts"].implode()).to_numpy()[: last + 1]
    lost = stays & ~known[: last + 1]
    is_split = 2 * changed.sum() > known[: last + 1].sum()
    if not (stays & changed[: last + 1]).any() and not (is_split and lost.any()):
        return ()
    raise SourceError(
        f"series {series.key}: {changed.sum()} of {known.sum()} stored bars, up to "
        f"{both['ts'][last]:%Y-%m-%d}, differ from Schwab's now, by a factor of about "
        f"{np.median(ratio[changed]):.4g}: a split since they were stored, or another company with "
        f"the symbol {_settings(series).symbol}. Materialize all years of this series in one run; "
        "if that is refused too, Schwab no longer has some of the stored bars: prune the series "
        "and import it again."
    )


def _text(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"
