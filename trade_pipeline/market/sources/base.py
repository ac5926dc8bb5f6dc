"""What every source gives: its bars with their origin, or one sentence that says what is wrong.

A source says by which routes it can be asked (`routes`), plans a wanted range (`plan`) and then
gives batch after batch (`fetch`). Whoever takes the batches makes each durable before asking for
the next, so a source moves its cursor only when it is resumed. Start at `Source`; to add one, write
a module beside this and name it in `registry`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import polars as pl

from trade_pipeline.market.actions import Action
from trade_pipeline.market.bars import BAR_SCHEMA
from trade_pipeline.settings.base import closest
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings, start_of_year

Interval = tuple[int, int]  # [start, end) in ms since 1970


class SourceError(Exception):
    """A source cannot be read; the message names file, series and row, and what to do."""


class HistoryUnavailable(SourceError):  # noqa: N818 - reads as what it says
    """The venue answered with newer bars than were asked for: it has none that old."""


@dataclass(frozen=True)
class SourceBars:
    """One batch of bars as a source gives them.

    Attributes:
        bars: canonical columns in the source's order, then, from files, `file` and `row` (1-based
            line of the file, its header counted). Rows may still break the invariants of a bar:
            `bars.violations` names them.
        confirmed: intervals of which the source has every traded bar.
        origin: the files or the requests, for people.
        notes: what a reader of these bars should know.
        actions: splits and dividends within `confirmed` or between the bars.
        answers: how many answers of a venue the batch was made of.
        replaces: everything that is stored of this interval goes before these are merged.
    """

    bars: pl.DataFrame
    confirmed: tuple[Interval, ...]
    origin: str
    notes: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()
    answers: int = 0
    replaces: Interval | None = None

    @property
    def stored(self) -> pl.DataFrame:
        """The canonical columns alone, as they are stored once `violations` finds nothing."""
        return self.bars.select(*BAR_SCHEMA)


@dataclass(frozen=True)
class Capabilities:
    """What one route of a source can do.

    Attributes:
        page_cap: most bars or trades of one answer; None when one answer holds everything.
        has_history: whether an old start is honoured, and not answered with the newest window.
        cursor: what the next request starts from; a route without one reads all there is again.
        fills_quiet: whether it writes flat bars for intervals without a trade.
        timeframes: the ones it can give.
        calls_per_minute: most requests for one pair; None when it needs none.
    """

    page_cap: int | None
    has_history: bool
    cursor: Literal["none", "bar_time", "trade_time_ns"]
    fills_quiet: bool
    timeframes: tuple[str, ...] = tuple(TIMEFRAME_MS)
    calls_per_minute: float | None = None


class Wanted(NamedTuple):
    """The range that a run asks for, and the parts of it that no earlier answer confirmed."""

    start_ms: int
    end_ms: int
    missing: tuple[Interval, ...]


class Leg(NamedTuple):
    """One part of a plan: a range taken by one route."""

    route: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class Surroundings:
    """What a source needs of the world around it.

    Attributes:
        base: folder that relative paths in the settings start from.
        store: folder of the artefacts, for sources that read stored bars.
        environment: where credentials are.
        now_ms: the clock, ms since 1970 UTC; a venue's own clock says what is complete.
        sleep: waits some seconds.
        log: takes a line of progress.
        batch_answers: most answers of a venue before a batch is handed over to be stored.
        announce: takes the series and its plan before the first request to a venue.
        all_series: every series by key, for those that are derived from another.
    """

    base: Path
    store: Path
    environment: Mapping[str, str]
    now_ms: Callable[[], int]
    sleep: Callable[[float], None]
    log: Callable[[str], None]
    batch_answers: int = 10
    announce: Callable[[str, str], None] = lambda series, plan: None
    all_series: Mapping[str, SeriesSettings] = field(default_factory=dict)


class Source(Protocol):
    """A place that bars come from."""

    implementation: int

    def routes(self, series: SeriesSettings) -> Mapping[str, Capabilities]:
        """The ways to get bars of this series, best first, by name."""
        ...

    def plan(
        self, series: SeriesSettings, wanted: Wanted, route: str | None, around: Surroundings
    ) -> list[Leg]:
        """Which part of the wanted range is taken by which route, in the order of fetching.

        Sends no request. A route without a cursor takes the whole range, one with a cursor only
        what is missing.

        Args:
            series: which bars.
            wanted: which time.
            route: one of `routes` to use alone; None: the source chooses.
            around: clock and folders.

        Raises:
            SourceError: the route is unknown, not set up, or cannot serve the range.
        """
        ...

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """Batches of bars of one leg, in order of time; bars outside of it may be among them.

        Being resumed means that the last batch is durable. No batch repeats a `ts`.

        Raises:
            SourceError: missing, damaged or unparsable input; a venue that does not answer well.
        """
        ...


class WholeHistory(ABC):
    """A source that reads everything it has at once, such as a file."""

    implementation: int
    route = "file"

    @abstractmethod
    def read(self, series: SeriesSettings, base: Path) -> SourceBars:
        """All bars that the source has, none of them before `first_year`. Raises `SourceError`."""

    def routes(self, series: SeriesSettings) -> Mapping[str, Capabilities]:
        """The one route, which needs no request."""
        return {self.route: Capabilities(None, True, "none", False)}

    def plan(
        self, series: SeriesSettings, wanted: Wanted, route: str | None, around: Surroundings
    ) -> list[Leg]:
        """The whole range, whatever is stored: a file may have been corrected."""
        require_route(series, route, self.routes(series))
        return [Leg(self.route, wanted.start_ms, wanted.end_ms)]

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """One batch of everything."""
        yield self.read(series, around.base)


def require_route(
    series: SeriesSettings, route: str | None, routes: Mapping[str, Capabilities]
) -> None:
    """Refuse a route that the source does not have, or a timeframe that the route cannot give.

    Raises:
        SourceError: names the series and what is possible.
    """
    if route is None:
        return
    if route not in routes:
        raise SourceError(
            f"series {series.key}: source {series.source.kind} has no route {route!r}."
            f"{closest(route, list(routes))}"
        )
    if series.timeframe not in routes[route].timeframes:
        raise SourceError(
            f"series {series.key}: route {route} of source {series.source.kind} has no timeframe "
            f"{series.timeframe}; it has {', '.join(routes[route].timeframes)}."
        )


def split_years(source_bars: SourceBars, years: Iterable[int]) -> dict[int, SourceBars]:
    """Each year's bars, in the source's order, with what of `confirmed` and `actions` is in it.

    A year without bars gives an empty frame. Bars of other years are left out.
    """
    year_of_row = source_bars.bars["ts"].dt.year()
    parts = {}
    for year in years:
        start, end = year_interval(year)
        parts[year] = replace(
            source_bars,
            bars=source_bars.bars.filter(year_of_row == year),
            confirmed=within(source_bars.confirmed, start, end),
            actions=tuple(one for one in source_bars.actions if start <= one.ts_ms < end),
            replaces=next(iter(within([source_bars.replaces or (0, 0)], start, end)), None),
        )
    return parts


def year_interval(year: int) -> Interval:
    """[1 January, 1 January of the next year) in ms."""
    first, stop = (int(start_of_year(one).timestamp()) * 1000 for one in (year, year + 1))
    return first, stop


def years_of(start_ms: int, end_ms: int) -> range:
    """The years that [start_ms, end_ms) touches; the first one at least."""
    first, last = (
        datetime.fromtimestamp(ms / 1000, UTC).year for ms in (start_ms, max(start_ms, end_ms - 1))
    )
    return range(first, last + 1)


def within(intervals: Iterable[Interval], start_ms: int, end_ms: int) -> tuple[Interval, ...]:
    """The parts of intervals inside [start_ms, end_ms)."""
    cut = ((max(start, start_ms), min(end, end_ms)) for start, end in intervals)
    return tuple((start, end) for start, end in cut if start < end)


def without(start_ms: int, end_ms: int, intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The parts of [start_ms, end_ms) that are in none of the intervals, rising."""
    left = []
    at = start_ms
    for start, end in sorted(within(intervals, start_ms, end_ms)):
        if at < start:
            left.append((at, start))
        at = max(at, end)
    if at < end_ms:
        left.append((at, end_ms))
    return tuple(left)
