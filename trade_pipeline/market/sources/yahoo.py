"""Daily stocks, funds, indices and crypto of Yahoo Finance, through yfinance (extra `yahoo`).

The whole history is read each time, since Yahoo gives prices adjusted for every split up to today:
only with all splits known are they prices as traded again, and `adj_factor` starts at the first
bar. Knows no other venue, and of the wire only `yahoo_chart`. Start at `Yahoo.fetch`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from trade_pipeline.market.actions import Action, unsplit
from trade_pipeline.market.bars import BAR_SCHEMA, PRICES, TS
from trade_pipeline.market.calendars import ALWAYS, DAY_MS, CalendarError, Instants, find_calendar
from trade_pipeline.market.coverage import joined
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
    years_of,
)
from trade_pipeline.market.sources.transport import Line
from trade_pipeline.market.sources.yahoo_chart import Answer, Chart, Meta, ask
from trade_pipeline.market.sources.yahoo_rounding import as_traded, shares_traded
from trade_pipeline.market.sources.yahoo_stored import History, Stored
from trade_pipeline.settings.series import SeriesSettings, start_of_year
from trade_pipeline.settings.sources import YahooSource

ROUTE = "rest"
# Yahoo's quotes are up to half an hour late, and the closing auction comes after the close.
SETTLED_AFTER_MS = 3_600_000
# Of sessions at an end of the answer: some days may come late, more is not the whole history.
MOST_MISSING = 7
CRYPTO = "CRYPTOCURRENCY"


class Yahoo:
    """Reads one ticker's daily history in one request.

    Yahoo keeps split-adjusted prices as float32 of six decimals. Undoing a split multiplies that
    error too, so prices as traded are rounded to the decimals that are left of it: cents for any
    usual price. A price of more decimals than are left (a sixteenth of a dollar before splits of
    100 for 1) loses the last ones, and volume before a reverse split loses the last shares. What is
    stored stays where such rounding explains the difference, so that a later split changes no
    earlier partition.
    """

    implementation = 1

    def routes(self, series: SeriesSettings) -> Mapping[str, Capabilities]:
        """One route of daily bars: older than 7 to 730 days Yahoo has no shorter ones."""
        return {
            ROUTE: Capabilities(
                page_cap=None,
                has_history=True,
                cursor="none",
                fills_quiet=False,
                timeframes=("1d",),
                calls_per_minute=_settings(series).calls_per_minute,
            )
        }

    def plan(
        self, series: SeriesSettings, wanted: Wanted, route: str | None, around: Surroundings
    ) -> list[Leg]:
        """The whole range, whatever is stored: the factor needs the whole history.

        Yahoo confirms nothing, so a year that lacks nothing is not of the run. Years before and
        behind it are legs of their own, of one request each.
        """
        require_route(series, route or ROUTE, self.routes(series))
        years = {year for part in wanted.missing for year in years_of(*part)}
        asked = joined(map(year_interval, years)) or [(wanted.start_ms, wanted.end_ms)]
        legs = within(asked, wanted.start_ms, wanted.end_ms)
        return [Leg(ROUTE, start, end) for start, end in legs]

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """One batch with every settled bar of the leg's years; it confirms nothing.

        It replaces what is stored of them, so that bars under a factor which Yahoo has since
        corrected do not stay beside it.

        Raises:
            SourceError: yfinance is missing, Yahoo refuses or does not answer well, its answer
                lacks stored sessions, or what it would stand beside was adjusted otherwise.
        """
        settings = _settings(series)
        _require_yfinance(series)
        # One pace for all tickers: Yahoo counts by address.
        line = Line("yahoo", "finance", settings.calls_per_minute, lambda error: False, around)
        about, ticker = f"series {series.key}", settings.ticker
        # A day early covers the new year of every time zone.
        start = f"{start_of_year(series.first_year) - timedelta(days=1):%Y-%m-%d}"
        answer = line.ask(
            f"{about}: history of {ticker} since {start}",
            lambda: ask(ticker, start, settings.base_url, about),
        )
        # The venue's clock says which session is over, where this machine's runs ahead. Not
        # regularMarketTime: it is that of the last trade, which in a stock that trades rarely, or
        # is halted, stays before the close until the next session.
        now_ms = min(around.now_ms(), answer.date_ms or around.now_ms())
        yield _source_bars(answer, series, leg, around, now_ms)


def _settings(series: SeriesSettings) -> YahooSource:
    if not isinstance(series.source, YahooSource):
        raise TypeError(f"series {series.key} is not of kind yahoo")
    return series.source


def _require_yfinance(series: SeriesSettings) -> None:
    try:
        import yfinance  # type: ignore[import-untyped] # noqa: F401
    except ImportError as error:
        raise SourceError(
            f"series {series.key}: yfinance cannot be imported ({error}); install "
            "trade_pipeline[yahoo]."
        ) from error


def _source_bars(
    answer: Answer, series: SeriesSettings, leg: Leg, around: Surroundings, now_ms: int
) -> SourceBars:
    """Raw prices with their factor, of the leg's years: its settled sessions since `first_year`."""
    chart, frame, _ = answer
    about = f"series {series.key}: {_settings(series).ticker}"
    _require_fit(chart.meta, series, about)
    # The index is midnight at the exchange; a session's bar is stamped with that date.
    dates = frame.index.tz_localize(None).to_numpy().astype("datetime64[D]")
    ts = dates.astype("datetime64[ms]").astype(np.int64)
    prices = frame[[name.capitalize() for name in PRICES]].to_numpy(np.float64)
    volume = frame["Volume"].to_numpy(np.float64)
    first_ms = int(start_of_year(series.first_year).timestamp()) * 1000
    is_session, settled = _sessions(ts, series, now_ms)
    traded = ~np.isnan(prices).all(axis=1)
    # On holidays of some exchanges Yahoo repeats a price; other rows there are for `violations`.
    flat = (prices == prices[:, :1]).all(axis=1) & (volume == 0)
    wanted = (ts >= first_ms) & settled
    kept = wanted & traded & (is_session | ~flat)
    if not kept.any():
        raise SourceError(
            f"{about}: Yahoo has no finished session with prices since {series.first_year}; "
            "materialize again after the next close."
        )
    left_out = int(np.count_nonzero(wanted & ~kept))
    ts, prices, volume = ts[kept], prices[kept], volume[kept]
    _require_whole(ts, chart.meta, first_ms, now_ms, series, about)
    # An action of a date without a session belongs to the bar before it as much as to the next.
    next_ms = _next_session(int(ts[-1]), series)
    years = years_of(leg.start_ms, leg.end_ms)
    start_ms, end_ms = year_interval(years[0])[0], year_interval(years[-1])[1]
    replaced = (max(first_ms, start_ms), max(first_ms, start_ms, min(end_ms, next_ms)))
    stored = Stored.read(series, around)
    try:
        actions = _actions(chart, stored, about)
        ratio = unsplit(ts, np.ones(len(ts)), actions)
        history = History(ts, as_traded(prices, ratio), shares_traded(volume, ratio), actions)
        history = stored.same_numbers(history)
        stored.require_nothing_lost(history, replaced, about)
        factor = stored.factors_beside(history, replaced, series, about)
    except ValueError as error:
        raise SourceError(f"{about}: {error}") from error
    columns = {
        "ts": pl.Series(ts).cast(TS),
        **{name: history.prices[:, column] for column, name in enumerate(PRICES)},
        "volume": history.volume,
        "trades": None,
        "adj_factor": None if series.calendar == ALWAYS else factor,
        "source": ROUTE,
    }
    bars = pl.DataFrame(columns).select(
        pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items()
    )
    return SourceBars(
        bars.filter(pl.Series((ts >= start_ms) & (ts < end_ms))),
        confirmed=(),
        origin=f"Yahoo Finance, {_settings(series).ticker}",
        notes=_notes(chart, left_out),
        actions=tuple(
            one for one in actions if ts[0] < one.ts_ms < next_ms and start_ms <= one.ts_ms < end_ms
        ),
        answers=1,
        replaces=replaced,
    )


def _require_fit(meta: Meta, series: SeriesSettings, about: str) -> None:
    """Refuse a calendar of another place: its closes would show bars before they are finished."""
    if series.calendar == ALWAYS:
        if meta.instrument_type != CRYPTO:
            raise SourceError(
                f"{about} is of type {meta.instrument_type} and does not trade around the clock; "
                "set the series' calendar to its exchange, such as XNYS."
            )
        return
    import exchange_calendars

    year = exchange_calendars.get_calendar(series.calendar, start="2024-01-01", end="2024-12-31")
    theirs = ZoneInfo(meta.exchange_timezone_name)
    for month in (1, 7):  # winter and summer time
        at = datetime(2024, month, 15, tzinfo=UTC)
        if at.astimezone(theirs).utcoffset() != at.astimezone(year.tz).utcoffset():
            raise SourceError(
                f"{about} trades in the time of {meta.exchange_timezone_name}, calendar "
                f"{series.calendar} is of {year.tz}; set the series' calendar to its exchange."
            )


def _sessions(
    ts: Instants, series: SeriesSettings, now_ms: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of each date [n]: is it a session, and has its bar stopped changing."""
    calendar, daily = find_calendar(series.calendar), series.is_daily_session
    first, last = (datetime.fromtimestamp(int(ts[at]) / 1000, UTC) for at in (0, -1))
    # Nowhere does a session end later than two days after the start of its date in UTC.
    closes = ts + 2 * DAY_MS
    try:
        end = last + timedelta(milliseconds=1)
        known = np.isin(ts, calendar.expected(first, end, series.timeframe_ms, daily))
        closes[known] = calendar.close_ts(ts[known], series.timeframe_ms, daily)
    except CalendarError as error:
        raise SourceError(f"series {series.key}: {error}") from error
    return known, closes + SETTLED_AFTER_MS <= now_ms


def _next_session(after_ms: int, series: SeriesSettings) -> int:
    """The first session behind a time; a fortnight later at most."""
    start_ms, end_ms = after_ms + 1, after_ms + 15 * DAY_MS
    return int(next(iter(_expected(start_ms, end_ms, series)), end_ms))


def _expected(start_ms: int, end_ms: int, series: SeriesSettings) -> Instants:
    start, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (start_ms, end_ms))
    try:
        return find_calendar(series.calendar).expected(
            start, end, series.timeframe_ms, series.is_daily_session
        )
    except CalendarError as error:
        raise SourceError(f"series {series.key}: {error}") from error


def _require_whole(
    ts: Instants, meta: Meta, first_ms: int, now_ms: int, series: SeriesSettings, about: str
) -> None:
    """Refuse an answer that lacks an end of the history: it would replace what is stored."""
    first_trade, last_trade = meta.first_trade_date, meta.regular_market_time
    if first_trade is not None:
        since = max(first_ms, first_trade * 1000)
        if len(_expected(since, int(ts[0]), series)) > MOST_MISSING:
            raise HistoryUnavailable(
                f"{about} has traded since {_date(since)}, but Yahoo's answer starts on "
                f"{_date(ts[0])}; nothing is stored. Materialize again, or raise first_year."
            )
    if last_trade is not None:
        until = min(last_trade * 1000, now_ms)
        if len(_expected(int(ts[-1]) + 1, until, series)) > MOST_MISSING:
            raise SourceError(
                f"{about} traded on {_date(until)}, but Yahoo's answer ends on "
                f"{_date(ts[-1])}; nothing is stored. Materialize again."
            )


def _actions(chart: Chart, stored: Stored, about: str) -> tuple[Action, ...]:
    """Splits, and dividends in money a share as it was on their ex-date."""
    zone = ZoneInfo(chart.meta.exchange_timezone_name)
    splits = {
        Action(_session(one.date, zone), "split", one.numerator / one.denominator)
        for one in chart.events.splits.values()
    }
    paid = list(chart.events.dividends.values())
    for one in paid:
        if one.currency and one.currency != chart.meta.currency:
            raise SourceError(
                f"{about}: the dividend of {_date(one.date * 1000)} is in {one.currency}, prices "
                f"are in {chart.meta.currency}; adj_factor needs both in one currency. Take this "
                "series from another source."
            )
    dates = np.array([_session(one.date, zone) for one in paid], dtype=np.int64)
    amounts = np.array([one.amount for one in paid], dtype=np.float64)
    order = np.argsort(dates, kind="stable")
    dates, amounts = dates[order], amounts[order]
    ratio = unsplit(dates, np.ones(len(dates)), splits)
    values = as_traded(amounts[:, np.newaxis], ratio)[:, 0]
    dividends = [
        Action(int(date), "dividend", float(value))
        for date, value in zip(dates, values, strict=True)
    ]
    return tuple(sorted(splits | stored.same_amounts(dividends, splits)))


def _notes(chart: Chart, left_out: int) -> tuple[str, ...]:
    meta, notes = chart.meta, []
    if left_out:
        notes.append(f"{left_out} dates without prices, or holidays with a repeated one, left out")
    if meta.currency != "USD":
        notes.append(f"prices and dividends are in {meta.currency or 'a currency not named'}")
    if gains := len(chart.events.capital_gains):
        notes.append(
            f"{gains} capital gains distributions are not in adj_factor, unless Yahoo gives them "
            "as dividends too"
        )
    return tuple(notes)


def _session(seconds: int, zone: ZoneInfo) -> int:
    """The exchange's date of an instant, as 00:00Z in ms."""
    date = datetime.fromtimestamp(seconds, UTC).astimezone(zone).date()
    return int(datetime(date.year, date.month, date.day, tzinfo=UTC).timestamp()) * 1000


def _date(ms: int) -> str:
    return f"{datetime.fromtimestamp(int(ms) / 1000, UTC):%Y-%m-%d}"
