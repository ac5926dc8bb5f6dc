"""US stocks as venues write them: days from midnight in New York, hours before and after trading.

Turns a venue's stamps into those of the series' calendar, and says which bars are over. Knows no
venue and no clock. Start at `within_hours`; daily bars go through `session_dates`.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl

from trade_pipeline.market.bars import TS
from trade_pipeline.market.calendars import DAY_MS, find_calendar
from trade_pipeline.market.sources.base import SourceError
from trade_pipeline.settings.series import SeriesSettings

NEW_YORK = ZoneInfo("America/New_York")
MINUTE_MS = 60_000
# Feeds without a subscription are 15 minutes late; a minute more for trades reported late.
FEED_DELAY_MS = 16 * MINUTE_MS
LATEST_HOUR = 2  # of a daily bar's stamp in New York


def session_dates(stamps: pl.Series, series: SeriesSettings) -> pl.Series:
    """The session of each daily bar: the date in New York at its stamp, as 00:00Z of that date.

    Raises:
        SourceError: a stamp is not of the first hours of a day there, so that its day is unclear.
    """
    local = stamps.dt.convert_time_zone(NEW_YORK.key)
    odd = stamps.filter(local.dt.hour() > LATEST_HOUR)
    if len(odd):
        raise SourceError(
            f"series {series.key}: a daily bar is stamped {odd[0]:%Y-%m-%d %H:%M} UTC; midnight in "
            "New York or Chicago is expected, so its session is unclear. Report it, and take this "
            "series from another source until then."
        )
    return local.dt.date().cast(TS)


def within_hours(bars: pl.DataFrame, series: SeriesSettings) -> pl.DataFrame:
    """Bars that open in a trading minute of the series' calendar.

    One that does so beside the series' grid stays, for validation to name.
    """
    first, last = bars["ts"].min(), bars["ts"].max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return bars
    minutes = find_calendar(series.calendar).expected(
        first, last + timedelta(milliseconds=1), MINUTE_MS, False
    )
    return bars.filter(pl.col("ts").dt.epoch("ms").is_in(pl.Series(minutes).implode()))


def complete_until(now_ms: int, series: SeriesSettings) -> int:
    """End, exclusive, of the `ts` whose bars can change no more; a bar on the grid starts there.

    A daily bar takes trades of the evening too, so it is over with its day in New York.

    Args:
        now_ms: the venue's time, less its feed's delay.
        series: timeframe, calendar.
    """
    if not series.is_daily_session:
        return now_ms // series.timeframe_ms * series.timeframe_ms
    today = datetime.fromtimestamp(now_ms / 1000, NEW_YORK).date()
    midnight = datetime(today.year, today.month, today.day, tzinfo=UTC)
    return int(midnight.timestamp()) // 86_400 * DAY_MS
