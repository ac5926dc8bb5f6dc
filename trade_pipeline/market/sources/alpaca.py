"""Stocks and crypto from Alpaca, through alpaca-py (extra `alpaca`).

What its bars mean, from Alpaca's Market Data API reference and FAQ where nothing else is named:

- A bar of a stock exists where an eligible trade happened (an odd lot is none). The SIP feed has
  every exchange, since 2016, so a minute without a bar is quiet; IEX is one exchange, where it is
  unknown.
- Hours of a stock start on the full hour and mix in the time before the opening, off the grid of
  the calendar: 1h and 4h are refused. Its days are stamped at midnight in New York.
- A crypto bar without a trade has volume 0 and prices of quotes ("Historical Crypto Data"), so that
  minute is quiet. Nothing is said of a minute without any bar: it stays unknown, and is asked
  again. Days of crypto began at midnight in Chicago until 2025 (alpaca-py's issue 169): bars off
  the UTC grid are refused.
- Corporate actions may be listed late. Alpaca's announcement of them names April 2020 as the first
  month. A run that asks for bars compares all listed ones with what is stored. One that has none
  to ask for, of intraday years all confirmed, asks nothing, so there a late action waits for the
  next run that does.
- A symbol means the company that has it on the day `asof`, today by default, with the bars of its
  earlier names. Corporate actions of earlier names are not found.

Knows no other venue, and HTTP only through `alpaca_http`. Start at `Alpaca.fetch`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA
from trade_pipeline.market.calendars import ALWAYS, CalendarError, Instants, find_calendar
from trade_pipeline.market.coverage import joined
from trade_pipeline.market.sources.alpaca_history import (
    StockHistory,
    read_history,
    require_same_factors,
)
from trade_pipeline.market.sources.alpaca_http import PAGE_CAP, TIMEFRAMES, AlpacaHttp
from trade_pipeline.market.sources.base import (
    Capabilities,
    Interval,
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
    within_hours,
)
from trade_pipeline.market.sources.transport import CrawlProgress
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import AlpacaSource
from trade_pipeline.storage import layout

ROUTE = "rest"
STOCK_TIMEFRAMES = ("1m", "5m", "15m", "1d")
SIP_SINCE_YEAR = 2016


class _Batch(NamedTuple):
    """Alpaca's bars of [start, end), which is all that it has there."""

    bars: pl.DataFrame  # ts, prices, volume, trades
    start_ms: int
    end_ms: int
    answers: int


class Alpaca:
    """Reads one symbol; stocks get their splits and dividends with it.

    Intraday bars of the SIP feed and crypto are asked for only where they are missing. IEX confirms
    nothing, so its years are read whole each time, and so are daily bars, which are one answer.
    """

    implementation = 1

    def routes(self, series: SeriesSettings) -> Mapping[str, Capabilities]:
        """The one route."""
        settings = _settings(series)
        stocks = settings.asset_class == "stocks"
        return {
            ROUTE: Capabilities(
                page_cap=PAGE_CAP,
                has_history=True,
                cursor="bar_time" if _resumes(series) else "none",
                fills_quiet=not stocks,
                timeframes=STOCK_TIMEFRAMES if stocks else tuple(TIMEFRAMES),
                calls_per_minute=settings.calls_per_minute,
            )
        }

    def plan(
        self, series: SeriesSettings, wanted: Wanted, route: str | None, around: Surroundings
    ) -> list[Leg]:
        """What is missing, or everything where nothing is ever confirmed.

        Ranges begin where the calendar expects a bar. Those that are less than a page apart become
        one: the page costs the same.
        """
        _require_fit(series)
        require_route(series, route or ROUTE, self.routes(series))
        ranges = wanted.missing if _resumes(series) else ((wanted.start_ms, wanted.end_ms),)
        ranges = _with_bars(ranges, series)
        page_ms = PAGE_CAP * series.timeframe_ms
        near = joined((start, end + page_ms) for start, end in ranges)
        legs = [(start, end - page_ms) for start, end in near]
        first_ms = year_interval(series.first_year)[0]
        return [Leg(ROUTE, start, end) for start, end in within(legs, first_ms, wanted.end_ms)]

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """Batches of `batch_answers` pages, complete bars only.

        Raises:
            SourceError: alpaca-py or credentials are missing, Alpaca refuses or does not answer
                well, knows no such symbol, or its actions do not fit what is stored.
        """
        until_ms = _end_ms(around.now_ms(), leg, series)
        if leg.start_ms >= until_ms:
            return
        http = AlpacaHttp(series, around)
        if _settings(series).asset_class == "crypto":
            yield from _crypto(http, leg, until_ms)
            return
        history = read_history(http)
        require_same_factors(history, series, leg, around)
        batches = (
            iter([_daily(history, http, leg, until_ms)])
            if series.is_daily_session
            else _batches(http, leg, until_ms)
        )
        for nth, batch in enumerate(batches):
            found = _stock_bars(batch, history, series)
            if nth == 0:
                notes = (*history.notes, *found.notes)
                found = replace(found, notes=notes, answers=found.answers + history.answers)
            yield found


def _settings(series: SeriesSettings) -> AlpacaSource:
    if not isinstance(series.source, AlpacaSource):
        raise TypeError(f"series {series.key} is not of kind alpaca")
    return series.source


def _resumes(series: SeriesSettings) -> bool:
    """Whether what was confirmed need not be asked again."""
    settings = _settings(series)
    return settings.asset_class == "crypto" or (
        settings.feed == "sip" and not series.is_daily_session
    )


def _require_fit(series: SeriesSettings) -> None:
    """Refuse a calendar that Alpaca's bars cannot be on. Raises `SourceError`."""
    stocks = _settings(series).asset_class == "stocks"
    if stocks == (series.calendar == ALWAYS):
        fit = "its exchange, such as XNYS" if stocks else ALWAYS
        raise SourceError(
            f"series {series.key}: calendar {series.calendar} does not fit asset_class "
            f"{_settings(series).asset_class}; set it to {fit}."
        )
    if stocks and series.timeframe not in STOCK_TIMEFRAMES:
        raise SourceError(
            f"series {series.key}: Alpaca's {series.timeframe} bars of stocks start on the full "
            "hour and hold trades from before the opening; derive this series (kind: derived) "
            "from one with 1m, 5m or 15m bars."
        )


def _with_bars(ranges: Iterable[Interval], series: SeriesSettings) -> tuple[Interval, ...]:
    """Each range from the first bar that its calendar expects; a range without one is left out."""
    found = []
    for start, end in ranges:
        try:
            expected = find_calendar(series.calendar).expected(
                _instant(start), _instant(end), series.timeframe_ms, series.is_daily_session
            )
        except CalendarError as error:
            raise SourceError(f"series {series.key}: {error}") from error
        if len(expected):
            found.append((int(expected[0]), end))
    return tuple(found)


def _batches(http: AlpacaHttp, leg: Leg, until_ms: int) -> Iterator[_Batch]:
    """All bars of a leg that are complete, some pages at a time."""
    series, around = http.series, http.around
    start_ms = reached_ms = leg.start_ms // series.timeframe_ms * series.timeframe_ms
    progress = CrawlProgress(f"{series.key}: alpaca", start_ms, until_ms, around)
    pages: list[pl.DataFrame] = []
    for bars, more in http.bars(series.timeframe, start_ms, until_ms):
        pages.append(bars)
        # A crawl takes time, but what came meanwhile was not asked for.
        end_ms = min(until_ms, _end_ms(http.now_ms, leg, series))
        if not more:
            reached_ms = max(reached_ms, end_ms)
        elif bars.height:
            last_ms = int(bars["ts"].dt.epoch("ms")[-1])
            reached_ms = max(reached_ms, min(last_ms + series.timeframe_ms, end_ms))
        progress.step(reached_ms, bars.height)
        if len(pages) == around.batch_answers or not more:
            kept = _opening_within(pl.concat(pages), start_ms, reached_ms)
            yield _Batch(kept, start_ms, reached_ms, len(pages))
            start_ms, pages = reached_ms, []


def _daily(history: StockHistory, http: AlpacaHttp, leg: Leg, until_ms: int) -> _Batch:
    """The sessions of a leg that were over when asked for."""
    end_ms = max(leg.start_ms, min(until_ms, _end_ms(http.now_ms, leg, http.series)))
    kept = _opening_within(history.daily, leg.start_ms, end_ms)
    return _Batch(kept, leg.start_ms, end_ms, answers=0)


def _end_ms(now_ms: int, leg: Leg, series: SeriesSettings) -> int:
    """Up to which `ts` of a leg bars are complete at a time, on the grid."""
    end_ms = min(leg.end_ms, complete_until(now_ms - FEED_DELAY_MS, series))
    return end_ms // series.timeframe_ms * series.timeframe_ms


def _stock_bars(batch: _Batch, history: StockHistory, series: SeriesSettings) -> SourceBars:
    settings = _settings(series)
    bars = batch.bars if series.is_daily_session else within_hours(batch.bars, series)
    notes = []
    if outside := batch.bars.height - bars.height:
        notes.append(f"{outside} bars outside the hours of {series.calendar} were left out")
    factors = history.factors_at(bars["ts"].dt.epoch("ms").to_numpy())
    confirmed: tuple[Interval, ...] = ()
    if settings.feed == "sip":
        first_ms = year_interval(SIP_SINCE_YEAR)[0]
        confirmed = within([(batch.start_ms, batch.end_ms)], first_ms, batch.end_ms)
    return SourceBars(
        bars=_canonical(bars.with_columns(adj_factor=pl.Series(factors))),
        confirmed=confirmed,
        origin=f"Alpaca {settings.feed}, {settings.symbol}",
        notes=tuple(notes),
        actions=tuple(
            one for one in history.actions if history.sessions[0] < one.ts_ms < batch.end_ms
        ),
        answers=batch.answers,
    )


def _crypto(http: AlpacaHttp, leg: Leg, until_ms: int) -> Iterator[SourceBars]:
    """Bars that traded; every minute that Alpaca has a bar of is confirmed."""
    series, symbol = http.series, http.settings.symbol
    anything = _is_stored(series, http.around)
    for batch in _batches(http, leg, until_ms):
        ts = batch.bars["ts"].dt.epoch("ms").to_numpy()
        off = ts[ts % series.timeframe_ms != 0]
        if len(off):
            raise SourceError(
                f"series {series.key}: Alpaca's {series.timeframe} bar of {symbol} opens at "
                f"{_text(off[0])}, off the UTC grid; derive this series (kind: derived) from one "
                "with 1m or 1h bars."
            )
        anything |= len(ts) > 0
        traded = batch.bars.filter(pl.col("volume") != 0)
        notes = []
        if quotes := batch.bars.height - traded.height:
            notes.append(f"{quotes} bars without a trade, of quotes alone, were left out")
        yield SourceBars(
            bars=_canonical(traded.with_columns(adj_factor=None)),
            confirmed=_runs(ts, series.timeframe_ms),
            origin=f"Alpaca crypto, {symbol}",
            notes=tuple(notes),
            answers=batch.answers,
        )
    if not anything:
        raise SourceError(
            f"series {series.key}: Alpaca has no bar of {symbol} from {_text(leg.start_ms)} to "
            f"{_text(leg.end_ms)}; correct the symbol, or set first_year to its first year."
        )


def _is_stored(series: SeriesSettings, around: Surroundings) -> bool:
    folder = layout.ohlcv(around.store, series.key, series.first_year).path.parent
    return any(folder.glob("*.parquet"))


def _opening_within(bars: pl.DataFrame, start_ms: int, end_ms: int) -> pl.DataFrame:
    ms = pl.col("ts").dt.epoch("ms")
    return bars.filter((ms >= start_ms) & (ms < end_ms))


def _canonical(bars: pl.DataFrame) -> pl.DataFrame:
    bars = bars.with_columns(source=pl.lit(ROUTE))
    return bars.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())


def _runs(ts: Instants, timeframe_ms: int) -> tuple[Interval, ...]:
    """Intervals [start, end) that bars opening at these rising times fill without a gap."""
    if not len(ts):
        return ()
    gaps = np.flatnonzero(np.diff(ts) != timeframe_ms)
    starts = ts[np.concatenate(([0], gaps + 1))]
    ends = ts[np.concatenate((gaps, [len(ts) - 1]))] + timeframe_ms
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _text(ms: int) -> str:
    return f"{_instant(int(ms)):%Y-%m-%d %H:%M} UTC"
