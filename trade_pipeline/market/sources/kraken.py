"""Kraken spot: archives for cold history, trades for the middle, OHLC for the last hours.

Kraken's OHLC gives the newest 720 candles whatever is asked for; only its trades reach back to
any time, a thousand an answer, which takes days for years. Its archives are quick, but end with a
quarter. Plans which of them serves what, and turns answers into batches. Asking is `kraken_http`,
reading archives `kraken_archive`. Start at `Kraken.plan`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from trade_pipeline.market.calendars import ALWAYS
from trade_pipeline.market.coverage import joined
from trade_pipeline.market.sources.base import (
    Capabilities,
    HistoryUnavailable,
    Interval,
    Leg,
    SourceBars,
    SourceError,
    Surroundings,
    Wanted,
    require_route,
    within,
    without,
)
from trade_pipeline.market.sources.transport import CrawlProgress
from trade_pipeline.market.sources.unpack import matching
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import KrakenSource

if TYPE_CHECKING:
    from trade_pipeline.market.sources.kraken_http import Venue

ZIP, TRADES, REST = "zip", "trades", "rest"
WINDOW_BARS = 720  # committed candles that OHLC reaches back; Kraken REST API, "Get OHLC Data"
TRADES_OF_PAGE = 1000  # Kraken REST API, "Get Recent Trades"
# The plan stays this far inside the window: an hour of clock skew at one minute, and half an hour
# of waiting for the first answer.
RESERVE_BARS = 90
# A stretch that begins this little before the window's safe part is not worth pages of trades.
STUB_BARS = 30
NS_PER_MS = 1_000_000
# A trade's time is shown as a float of seconds, up to 120 ns off, while the cursor is exact: one
# shown at an interval's first instant may have happened before it.
SHOWN_OFF_NS = 1_000
MOST_DOUBTS = 5  # empty pages that the newest trades contradict
SETTLE_MS = 5_000  # the venue may take a moment to publish a trade


class Kraken:
    """One spot pair of Kraken, round the clock."""

    implementation = 1

    def routes(self, series: SeriesSettings) -> Mapping[str, Capabilities]:
        """`zip` needs no request, `trades` has all history, `rest` only the last 720 bars."""
        pace = _settings(series).calls_per_minute
        return {
            ZIP: Capabilities(None, True, "none", False),
            TRADES: Capabilities(
                TRADES_OF_PAGE, True, "trade_time_ns", False, calls_per_minute=pace
            ),
            REST: Capabilities(WINDOW_BARS, False, "bar_time", True, calls_per_minute=pace),
        }

    def plan(
        self, series: SeriesSettings, wanted: Wanted, route: str | None, around: Surroundings
    ) -> list[Leg]:
        """Of what is missing, the last hours by `rest`, what archives hold by `zip`, else `trades`.

        `rest` comes first, since its window moves away while a long crawl of trades runs.

        Raises:
            HistoryUnavailable: `rest` alone was asked for, and what is missing is too old for it.
            SourceError: the route is unknown, no archive is configured, or the calendar is not
                24/7.
        """
        settings = _settings(series)
        require_route(series, route, self.routes(series))
        length = series.timeframe_ms
        if route == ZIP:
            if settings.ohlcvt_zip is None and settings.trades_zip is None:
                raise SourceError(
                    f"series {series.key}: route zip has no archive to read; set "
                    "source.ohlcvt_zip (Kraken's OHLCVT archives) or source.trades_zip (its "
                    "time-and-sales archives) to their path."
                )
            whole: Iterable[Interval] = [(wanted.start_ms, wanted.end_ms)]
            return _legs(ZIP, _on_grid(whole, length))
        missing = _on_grid(wanted.missing, length)
        if route == REST:
            _require_reach(series, missing, around)
        if route is not None:
            return _legs(route, missing)
        newest, older = _split(missing, length, around.now_ms())
        cold = _archived(series, older, around)
        middle = [part for start, end in older for part in without(start, end, cold)]
        return [*_legs(REST, newest), *_legs(ZIP, cold), *_legs(TRADES, middle)]

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """Batches of one leg: an archive each, an answer each (`rest`), or many answers (`trades`).

        Raises:
            HistoryUnavailable: OHLC answered with newer candles than the leg's first.
            SourceError: the venue or an archive does not give what it should.
        """
        by_route = {ZIP: _from_archives, TRADES: _from_trades, REST: _from_candles}
        return by_route[leg.route](series, leg, around)


def _settings(series: SeriesSettings) -> KrakenSource:
    settings = series.source
    if not isinstance(settings, KrakenSource):
        raise TypeError(f"series {series.key} is not of kind kraken")
    if series.calendar != ALWAYS:
        raise SourceError(
            f"series {series.key}: calendar is {series.calendar}, but Kraken trades round the "
            f"clock; set calendar to {ALWAYS}, or leave it out."
        )
    return settings


def _on_grid(intervals: Iterable[Interval], length_ms: int) -> tuple[Interval, ...]:
    """Whole bars: from the one that holds the start, up to the one that holds the end."""
    return joined((a // length_ms * length_ms, b // length_ms * length_ms) for a, b in intervals)


def _legs(route: str, intervals: Iterable[Interval]) -> list[Leg]:
    return [Leg(route, start, end) for start, end in intervals]


def _reach(length_ms: int, now_ms: int, bars: int) -> int:
    """Open of the oldest bar among the last so many closed ones."""
    return (now_ms // length_ms - bars) * length_ms


def _require_reach(
    series: SeriesSettings, missing: tuple[Interval, ...], around: Surroundings
) -> None:
    reach = _reach(series.timeframe_ms, around.now_ms(), WINDOW_BARS)
    if missing and missing[0][0] < reach:
        raise HistoryUnavailable(
            f"series {series.key}: route rest reaches back {WINDOW_BARS} bars, to {_utc(reach)}, "
            f"but bars are missing from {_utc(missing[0][0])} on. Ask for a later start, or take "
            "route trades (slow) or zip (Kraken's archives) for what is older."
        )


def _split(
    missing: Iterable[Interval], length_ms: int, now_ms: int
) -> tuple[list[Interval], list[Interval]]:
    """What OHLC safely reaches, and what is older."""
    reach = _reach(length_ms, now_ms, WINDOW_BARS - RESERVE_BARS)
    newest, older = [], []
    for start, end in missing:
        # One that ends where the safe part begins is what a crawl of trades left: it stays with
        # trades, so that a crawl that was killed ends with the bytes of one that was not.
        stub = start >= reach - STUB_BARS * length_ms and end > reach
        split = start if stub else min(max(start, reach), end)
        older.append((start, split))
        newest.append((split, end))
    return [one for one in newest if one[0] < one[1]], [one for one in older if one[0] < one[1]]


def _archived(
    series: SeriesSettings, older: Iterable[Interval], around: Surroundings
) -> list[Interval]:
    settings = _settings(series)
    if settings.ohlcvt_zip is None and settings.trades_zip is None:
        return []
    from trade_pipeline.market.sources.kraken_archive import covered

    archived = covered(series, around)
    return [part for start, end in older for part in within(archived, start, end)]


def _from_archives(series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
    """Each bar from the first archive that covers it, so that a resumed import chooses the same."""
    from trade_pipeline.market.sources import kraken_archive

    settings = _settings(series)
    name = kraken_archive.altname_of(settings.symbol)
    kinds = (
        (settings.ohlcvt_zip, kraken_archive.ohlcvt_bars),
        (settings.trades_zip, kraken_archive.time_and_sales_bars),
    )
    configured = [(pattern, read) for pattern, read in kinds if pattern is not None]
    # One kind may be missing while the other serves; when both are, reading says so.
    present = [one for one in configured if matching(one[0], around.base)]
    batches = chain.from_iterable(
        read(pattern, name, series, around) for pattern, read in present or configured
    )
    taken: tuple[Interval, ...] = ()
    for batch in batches:
        new = [part for start, end in batch.confirmed for part in without(start, end, taken)]
        taken = joined((*taken, *batch.confirmed))
        yield _cut(batch, within(new, leg.start_ms, leg.end_ms))


def _cut(batch: SourceBars, intervals: tuple[Interval, ...]) -> SourceBars:
    """What of a batch is inside the intervals."""
    ts = pl.col("ts").dt.epoch("ms")
    inside = pl.any_horizontal(
        pl.lit(False), *((ts >= start) & (ts < end) for start, end in intervals)
    )
    return replace(batch, bars=batch.bars.filter(inside), confirmed=intervals)


def _from_candles(series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
    from trade_pipeline.market.sources.kraken_http import Venue

    venue = Venue(series, around)
    length, at = series.timeframe_ms, leg.start_ms
    while at < leg.end_ms:
        found = venue.candles(at, length)
        if found.first_ms > at:
            raise HistoryUnavailable(
                f"series {series.key}: Kraken was asked for candles of {venue.pair} from "
                f"{_utc(at)} on and gave none before {_utc(found.first_ms)}: either its "
                f"{WINDOW_BARS} candles reach no further (is this machine's clock right?), or the "
                "pair is that new. Take route trades for what is older."
            )
        # By what the venue says to be committed: neither by position nor by our clock.
        end = min(found.last_ms + length, leg.end_ms)
        if end <= at:
            return
        whole = SourceBars(found.bars, (), f"Kraken OHLC {venue.pair}", answers=1)
        yield _cut(whole, ((at, end),))
        at = end


def _from_trades(series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
    """A batch whenever enough pages came: their whole intervals; the rest waits for more pages."""
    from trade_pipeline.market.rebuild import TradesOrderError, bars_of_trades
    from trade_pipeline.market.sources.kraken_http import Venue

    venue = Venue(series, around)
    length = series.timeframe_ms
    # What the venue's clock has not reached is no quiet time.
    end_ms = min(leg.end_ms, (venue.now_ms() - SETTLE_MS) // length * length)
    if end_ms <= leg.start_ms:
        return
    about = f"{series.key}: trades of {venue.pair}"
    progress = CrawlProgress(about, leg.start_ms, end_ms, around)
    from_ns, answers, waiting = leg.start_ms * NS_PER_MS, 0, []
    for page in _pages(venue, from_ns, end_ms * NS_PER_MS):
        answers += page.failure is None
        waiting.append(page.trades)
        progress.step(page.known_until_ns // NS_PER_MS, page.trades.height)
        if answers < around.batch_answers and not page.is_last:
            continue
        trades = pl.concat(waiting)
        try:
            bars, known = bars_of_trades(trades, length, from_ns, page.known_until_ns)
        except TradesOrderError as error:
            raise SourceError(f"series {series.key}: Kraken {venue.pair}: {error}") from error
        waiting = [trades]
        if known is not None:
            from_ns = known[1] * NS_PER_MS
            waiting = [trades.filter(pl.col("time") >= from_ns)]
            yield SourceBars(bars, (known,), f"Kraken Trades {venue.pair}", answers=answers)
            answers = 0
        if page.failure is not None:  # what came before it is stored now
            raise page.failure


class _Page(NamedTuple):
    trades: pl.DataFrame
    known_until_ns: int  # every trade before it has come
    is_last: bool
    failure: SourceError | None = None  # why nothing follows


def _pages(venue: "Venue", start_ns: int, end_ns: int) -> Iterator[_Page]:
    """Pages of trades from `start_ns` on until they reach `end_ns`, or there are no more.

    A failure comes as a last page, so that what came before it can be stored first.
    """
    from trade_pipeline.market.rebuild import TRADE_SCHEMA

    cursor, newest_id, known_ns = str(start_ns - SHOWN_OFF_NS), None, start_ns
    doubts = 0
    while True:
        try:
            trades, last = venue.trades(cursor, newest_id)
            # Nothing newer, though the clock is past the end: quiet until there, if it is true.
            proven = trades.is_empty() and venue.has_ended(newest_id, start_ns)
        except SourceError as error:
            yield _Page(pl.DataFrame(schema=TRADE_SCHEMA), known_ns, True, error)
            return
        if trades.is_empty():
            yield _Page(trades, end_ns if proven else known_ns, proven)
            if proven:
                return
            doubts += 1
            if doubts == MOST_DOUBTS:
                failure = SourceError(
                    f"Kraken {venue.pair}: it says {doubts} times that there is no trade after "
                    f"{_utc(known_ns // NS_PER_MS)}, but has newer ones. What came before is "
                    "stored; import again later."
                )
                yield _Page(trades, known_ns, True, failure)
                return
            continue
        doubts, cursor = 0, last
        newest_id = int(trades["id"][-1])
        known_ns = min(max(known_ns, int(trades["time"][-1])), end_ns)
        yield _Page(trades, known_ns, known_ns == end_ns)
        if known_ns == end_ns:
            return


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
