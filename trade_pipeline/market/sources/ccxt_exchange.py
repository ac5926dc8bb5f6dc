"""Any exchange with real history of bars, through ccxt: Binance, Coinbase, Bybit, OKX and others.

Walks from the oldest missing bar to the newest closed one, page by page, and says of each page what
it proves. Knows no venue by name, except those that keep no history; what differs between venues
is ccxt's, and `ccxt_client` keeps ccxt honest. Start at `CcxtExchange.fetch`.
"""

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any, NamedTuple

import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA, PRICES, TS
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
)
from trade_pipeline.market.sources.ccxt_client import described, find_market, may_pass, opened
from trade_pipeline.market.sources.transport import BadResponseError, CrawlProgress, Line
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings
from trade_pipeline.settings.sources import CcxtSource

ROUTE = "rest"
FALLBACK_PAGE_CAP = 300  # where ccxt declares none: the least of the large venues'
# ccxt 4.5 sends these no start of the wanted time, so they can only give their newest bars.
WITHOUT_HISTORY = frozenset(
    {
        "bithumb",
        "bitrue",
        "bitteam",
        "bittrade",
        "extended",
        "gemini",
        "modetrade",
        "nado",
        "p2b",
        "woofipro",
    }
)

ROW_SCHEMA = {"ts": pl.Int64()} | dict.fromkeys((*PRICES, "volume"), pl.Float64())
Row = tuple[Any, ...]  # ts in ms and five floats, as in the schema


class CcxtExchange:
    """Bars of one market of one exchange."""

    implementation = 1

    def routes(self, series: SeriesSettings) -> Mapping[str, Capabilities]:
        """The one route, as ccxt describes the venue; sends no request."""
        settings = _settings(series)
        exchange = described(settings.exchange)
        return {
            ROUTE: Capabilities(
                page_cap=_page_cap(settings),
                has_history=settings.exchange not in WITHOUT_HISTORY,
                cursor="bar_time",
                fills_quiet=True,  # some venues do; such bars are never stored
                timeframes=tuple(one for one in TIMEFRAME_MS if one in (exchange.timeframes or {})),
                calls_per_minute=settings.calls_per_minute or 60_000 / exchange.rateLimit,
            )
        }

    def plan(
        self, series: SeriesSettings, wanted: Wanted, route: str | None, around: Surroundings
    ) -> list[Leg]:
        """What is missing, in whole bars; stretches less than a page apart become one leg.

        Raises:
            HistoryUnavailable: the venue can only give its newest bars.
            SourceError: no such route, or the venue has no bars of this timeframe or market.
        """
        routes = self.routes(series)
        require_route(series, route, routes)
        _require_served(series, routes[ROUTE])
        bar_ms = series.timeframe_ms
        page_ms = _page_cap(_settings(series)) * bar_ms
        closed_ms = around.now_ms() // bar_ms * bar_ms
        legs: list[Leg] = []
        for start, end in wanted.missing:
            first = start // bar_ms * bar_ms
            stop = min(-(-end // bar_ms) * bar_ms, closed_ms)
            if first >= stop:
                continue
            if legs and first - legs[-1].end_ms < page_ms:
                first = legs.pop().start_ms
            legs.append(Leg(ROUTE, first, stop))
        return legs

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """Batches of pages, oldest first; what came before a failure is handed over first.

        Raises:
            HistoryUnavailable: the venue answers any start with its newest bars.
            SourceError: the symbol is unknown or of another market; the venue does not answer well.
        """
        return _Crawl(series, leg, self.routes(series)[ROUTE], around).batches()


class _Page(NamedTuple):
    """One answer.

    Attributes:
        rows: its closed bars.
        confirmed: of which time it is known to leave out no bar.
        next_ms: the first time that is still to be asked for.
        anchor_ms: the bar to begin the next page with, if there is one to begin with.
    """

    rows: list[Row]
    confirmed: tuple[Interval, ...]
    next_ms: int
    anchor_ms: int | None


class _Crawl:
    """The walk through one leg."""

    def __init__(
        self, series: SeriesSettings, leg: Leg, capabilities: Capabilities, around: Surroundings
    ) -> None:
        self.settings, self.leg, self.around = _settings(series), leg, around
        self.timeframe, self.bar_ms = series.timeframe, series.timeframe_ms
        self.cap = _page_cap(self.settings)
        self.page_ms = self.cap * self.bar_ms
        self.about = f"{self.settings.exchange} {self.settings.symbol} {series.timeframe}"
        self.line = Line(
            self.settings.exchange,
            self.settings.symbol,
            capabilities.calls_per_minute,
            may_pass,
            around,
        )
        self.exchange = opened(self.settings, self.line)
        find_market(self.exchange, self.settings, series.key)
        self.notes: dict[str, None] = {}  # in order, each once

    def batches(self) -> Iterator[SourceBars]:
        """The pages of the leg, so many to a batch."""
        pages: list[_Page] = []
        try:
            for page in self._pages():
                pages.append(page)
                if len(pages) == self.around.batch_answers:
                    yield self._batch(pages)
                    pages = []
        except SourceError:
            if pages:
                yield self._batch(pages)
            raise
        if pages:
            yield self._batch(pages)

    def _pages(self) -> Iterator[_Page]:
        """Each page begins with the last bar of the one before, whose absence would tell a lot."""
        progress = CrawlProgress(self.about, self.leg.start_ms, self.leg.end_ms, self.around)
        at, anchor = self.leg.start_ms, None
        server_ms, is_fresh = self._server_ms(), True
        while at + self.bar_ms <= self.leg.end_ms:
            if at + self.page_ms > server_ms and not is_fresh:
                # Before the page, never after it: a bar may close in between.
                server_ms, is_fresh = self._server_ms(), True
            if at + self.bar_ms > server_ms:
                return
            page = self._page(at, anchor, server_ms)
            yield page
            progress.step(page.next_ms, len(page.rows))
            at, anchor, is_fresh = page.next_ms, page.anchor_ms, False

    def _page(self, at: int, anchor: int | None, server_ms: int) -> _Page:
        """The bars from `at` on, asked for together with the bar `anchor` in front of it.

        A venue counts its page either in bars or in time. Both kinds leave out no bar between the
        start and the last one given; of the time behind it only the first kind would say anything,
        so it stays unknown, as all of an empty page does.
        """
        start = at if anchor is None else anchor
        rows = self.line.ask(
            f"bars since {_text(start)}", lambda: self._rows(start, self.cap, anchor is not None)
        )
        first, was_cut_off = start, False
        while rows and rows[0][0] > start:
            proven = self._proven_from(start, rows)
            if proven is not None:
                first = proven
                break
            if was_cut_off:  # and not by mistake
                self._shorten(min(len(rows), self.cap) - 1)
            was_cut_off = True
            rows = self.line.ask(
                f"bars since {_text(start)} again", lambda: self._rows(start, self.cap)
            )
        closed = [row for row in rows if row[0] + self.bar_ms <= server_ms]
        if closed and closed[-1][0] >= at:
            last = closed[-1][0]
            return _Page(closed, ((first, last + self.bar_ms),), last + self.bar_ms, last)
        if rows and rows[-1][0] >= at:  # nothing new but the open bar: this is the end
            return _Page([], (), self.leg.end_ms, None)
        return _Page([], (), start + self.page_ms, None)

    def _rows(self, start: int, most: int, is_anchored: bool = False) -> list[Row]:
        """One request, checked: rows from `start` on, rising. Raises `BadResponseError`."""
        given = self.exchange.bars(self.settings.symbol, self.timeframe, start, most)
        for row in given:
            if len(row) != 6 or not all(map(_is_number, row)):
                raise BadResponseError(f"a row is {row!r}, not a time and five numbers")
            if row[0] % self.bar_ms:
                raise SourceError(
                    f"{self.about}: the venue has a bar that opens at {_text(row[0])}, and bars "
                    f"of {self.timeframe} must open at multiples of it since 1970 UTC. Take a "
                    "shorter timeframe and derive this one from it (kind: derived)."
                )
        rows = sorted(given, key=lambda row: row[0])
        for before, row in pairwise(rows):
            if before[0] == row[0]:
                raise BadResponseError(f"two bars open at {_text(row[0])}")
        if rows and rows[0][0] < start - self.page_ms:
            raise BadResponseError(f"it begins at {_text(rows[0][0])}, long before the start")
        # Venues that round the start down give a few earlier ones.
        found = [(int(row[0]), *map(float, row[1:])) for row in rows if row[0] >= start]
        if is_anchored and not found:
            raise BadResponseError(f"even the bar of {_text(start)}, given before, is missing")
        return found

    def _proven_from(self, start: int, rows: list[Row]) -> int | None:
        """From when on a page that begins late is complete; None: its front is cut off.

        All is well where nothing traded before its first bar: quiet minutes, a halt, a listing. But
        a venue may also have cut off the front, because its page is shorter than ccxt says; or have
        ignored the start and given its newest bars. Asked for fewer bars from the same start, the
        good one gives none (its pages count time) or the first of the same ones (they count bars).

        Raises:
            HistoryUnavailable: the venue ignores the start.
        """
        began: int = rows[0][0]
        fewer = max(1, min((began - start) // self.bar_ms, len(rows) // 2))
        front = self.line.ask(
            f"{fewer} bars since {_text(start)}, since it began at {_text(began)}",
            lambda: self._rows(start, fewer),
        )
        if not front or (front[0][0] == began and front[-1][0] < rows[-1][0]):
            return start
        if front[0][0] < began:
            return None
        if len(rows) >= self.cap:
            raise HistoryUnavailable(
                f"{self.about}: asked for bars since {_text(start)}, the venue gives its newest "
                f"{len(rows)} from {_text(began)} on, whatever the start: it keeps no older ones. "
                "Use another exchange, or kind: file, for the history."
            )
        # A young market whose few bars the venue gives all at once, or a short newest window.
        self._note(
            f"asked for bars since {_text(start)}, the venue began at {_text(began)}; the time "
            "between is unknown"
        )
        return began

    def _shorten(self, cap: int) -> None:
        """Take pages of fewer bars from now on. Raises `SourceError` when too few are left."""
        if cap < 2:
            raise SourceError(
                f"{self.about}: the venue gives only its newest {cap + 1} of the bars asked for; "
                "use another source."
            )
        self._note(f"the venue gives fewer bars at once than {self.cap}; taking {cap}")
        self.cap, self.page_ms = cap, cap * self.bar_ms

    def _note(self, text: str) -> None:
        self.notes[f"{self.about}: {text}"] = None

    def _server_ms(self) -> int:
        """The venue's time, that says which bars have closed."""
        exchange = self.exchange
        if exchange.has["fetchTime"] is True:
            now: int = self.line.ask("server time", exchange.server_ms)
            return now
        self.line.ask(
            "server time, from the Date of an answer",
            lambda: self._rows(self.leg.start_ms, self.cap),
        )
        try:
            date = parsedate_to_datetime((exchange.last_response_headers or {}).get("Date", ""))
            return int(date.timestamp()) * 1000
        except ValueError:
            self._note(
                "the venue tells no time, so bars count as closed one bar late by this machine's "
                "clock"
            )
            return self.around.now_ms() - self.bar_ms

    def _batch(self, pages: list[_Page]) -> SourceBars:
        rows = {row[0]: row for page in pages for row in page.rows}  # the later answer stays
        traded = [rows[ts] for ts in sorted(rows) if rows[ts][-1] != 0]
        bars = pl.DataFrame(traded, schema=ROW_SCHEMA, orient="row").with_columns(
            pl.col("ts").cast(TS), trades=None, adj_factor=None, source=pl.lit(ROUTE)
        )
        notes, self.notes = tuple(self.notes), {}
        return SourceBars(
            bars.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items()),
            confirmed=joined(one for page in pages for one in page.confirmed),
            origin=self.about,
            notes=notes,
            answers=len(pages),
        )


def _settings(series: SeriesSettings) -> CcxtSource:
    if not isinstance(series.source, CcxtSource):
        raise TypeError(f"series {series.key} is not of kind ccxt")
    return series.source


def _page_cap(settings: CcxtSource) -> int:
    """Most bars of one answer, as ccxt declares it for this kind of market."""
    exchange = described(settings.exchange)
    side = None
    if settings.market != "spot":
        # BTC/USD:BTC settles in its base and is inverse; BTC/USDT:USDT-261225 is linear.
        pair, _, settled = settings.symbol.partition(":")
        is_inverse = settled.partition("-")[0] == pair.partition("/")[0]
        side = "inverse" if is_inverse else "linear"
    cap = exchange.feature_value_by_type(settings.market, side, "fetchOHLCV", "limit")
    return int(cap) if cap else FALLBACK_PAGE_CAP


def _require_served(series: SeriesSettings, capabilities: Capabilities) -> None:
    settings = _settings(series)
    exchange, about = described(settings.exchange), f"series {series.key}: {settings.exchange}"
    if exchange.has.get("fetchOHLCV") is not True:
        raise SourceError(f"{about} gives no bars through ccxt; use another exchange.")
    if not capabilities.has_history:
        raise HistoryUnavailable(
            f"{about} gives its newest bars only: ccxt cannot tell it a start. Use another "
            "exchange, or kind: file."
        )
    if not exchange.has.get(settings.market):
        raise SourceError(
            f"{about} has no {settings.market} markets; set the source's market and symbol to "
            "what it has."
        )
    if series.timeframe not in capabilities.timeframes:
        raise SourceError(
            f"{about} has no bars of {series.timeframe}; it has "
            f"{', '.join(capabilities.timeframes)}. Longer ones can be made from shorter ones "
            "(kind: derived)."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _text(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
