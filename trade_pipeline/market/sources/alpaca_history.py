"""What the factors of an Alpaca stock are made of, and whether stored bars still follow from it.

Knows bars and actions only as `alpaca_http` gives them. Start at `read_history`.
"""

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import polars as pl

from trade_pipeline.market.actions import Action, Sessions, Values, adjustment
from trade_pipeline.market.calendars import DAY_MS, Instants, find_calendar
from trade_pipeline.market.sources.alpaca_http import AlpacaHttp
from trade_pipeline.market.sources.base import (
    Leg,
    SourceError,
    Surroundings,
    year_interval,
    years_of,
)
from trade_pipeline.market.sources.new_york import FEED_DELAY_MS, session_dates
from trade_pipeline.market.stored import StoredBars, read_bars
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage.location import StorageError

ACTIONS_SINCE_YEAR = 2020
# Closes are corrected now and then, which moves a dividend's factor a little, and no more.
SAME_FACTOR = 1e-6


class StockHistory(NamedTuple):
    """What the factors of a stock are made of.

    Attributes:
        daily: bars as Alpaca gives them, by session, from the first one on; the last may change.
        sessions: [n] of the calendar, from the first daily bar to now.
        factors: [n] `adj_factor` of each.
        actions: splits and dividends, rising; announced ones too.
        notes: what they lack.
        answers: how many answers they took.
    """

    daily: pl.DataFrame
    sessions: Sessions
    factors: Values
    actions: tuple[Action, ...]
    notes: tuple[str, ...]
    answers: int

    def factors_at(self, ts_ms: Instants) -> Values:
        """Of each bar [n]: that of its day."""
        at = np.searchsorted(self.sessions, ts_ms, side="right") - 1
        return self.factors[np.maximum(at, 0)]

    def session_before(self, ts_ms: int) -> int:
        """The session of a date, or the last one before it."""
        at = int(np.searchsorted(self.sessions, ts_ms, side="right")) - 1
        return int(self.sessions[max(at, 0)])

    def session_from(self, ts_ms: int) -> int:
        """The session of a date, or the next one; a date behind them all for one to come."""
        at = int(np.searchsorted(self.sessions, ts_ms))
        return int(self.sessions[at]) if at < len(self.sessions) else ts_ms


def read_history(http: AlpacaHttp) -> StockHistory:
    """Raw daily closes since `first_year` and what happened to the shares since."""
    series, settings = http.series, http.settings
    first_ms, now_ms = year_interval(series.first_year)[0], http.around.now_ms()
    pages = [page.bars for page in http.bars("1d", first_ms, now_ms - FEED_DELAY_MS)]
    daily = pl.concat(pages)
    if daily.is_empty():
        raise SourceError(
            f"series {series.key}: Alpaca has no daily bar of {settings.symbol} since "
            f"{series.first_year} in feed {settings.feed}; correct the symbol, or set asof to a "
            "day on which the company had it."
        )
    daily = daily.with_columns(ts=session_dates(daily["ts"], series))
    dates = daily["ts"].dt.epoch("ms").to_numpy()
    listed = http.actions()
    sessions = find_calendar(series.calendar).expected(
        _instant(int(dates[0])), _instant(now_ms + DAY_MS), DAY_MS, True
    )
    # A session without a bar keeps the close before it.
    closes = daily["close"].to_numpy()[np.searchsorted(dates, sessions, side="right") - 1]
    try:
        factors = adjustment(sessions, closes, listed.actions)
    except ValueError as error:
        raise SourceError(f"series {series.key}: {settings.symbol}: {error}") from error
    notes = []
    if series.first_year < ACTIONS_SINCE_YEAR:
        notes.append(
            f"Alpaca lists corporate actions since {ACTIONS_SINCE_YEAR}; adj_factor may lack "
            "earlier ones"
        )
    if listed.others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in listed.others.items())
        notes.append(f"adj_factor has no rule for what else Alpaca lists: {kinds}")
    answers = len(pages) + listed.answers
    return StockHistory(daily, sessions, factors, listed.actions, tuple(notes), answers)


def require_same_factors(
    history: StockHistory, series: SeriesSettings, leg: Leg, around: Surroundings
) -> None:
    """Refuse to put bars beside stored ones whose factors no longer follow from the actions.

    Raises:
        SourceError: Alpaca listed an action late, corrected one or withdrew it.
    """
    try:
        stored = read_bars(around.store, series.key)
    except StorageError:
        return  # nothing is stored yet; what is damaged is named when it is merged
    ts = stored.bars["ts"].dt.epoch("ms").to_numpy()
    if not len(ts):
        return
    factors = stored.bars["adj_factor"].to_numpy()
    stays = (ts < leg.start_ms) | (ts >= leg.end_ms)
    same = np.isclose(factors, history.factors_at(ts), rtol=SAME_FACTOR, atol=0)
    wrong = [int(ts[stays & ~same].min())] if (stays & ~same).any() else []
    wrong += [one.ts_ms for one in set(stored.actions) - set(history.actions)]
    # A session at least, so that what is pruned is asked for again.
    wrong += [history.session_before(one.ts_ms) for one in _not_stored(history, stored, leg)]
    if not wrong:
        return
    since = _text(min(wrong))
    raise SourceError(
        f"series {series.key}: from {since} on, stored bars were adjusted by other splits or "
        f"dividends than Alpaca lists now. Materialize all years of "
        f"this series in one run; if that is refused too, prune it from {since} on and import it "
        "again."
    )


def _not_stored(history: StockHistory, stored: StoredBars, leg: Leg) -> set[Action]:
    """Listed actions between the bars of a leg and stored ones that this run will not store.

    Readers take volume apart by the stored splits. The years of the leg are of this run, which
    stores their actions. Of years without a stored bar none is missed. Behind the leg one is only
    where its session is stored: a later leg may bring what was pruned there.
    """
    ts = stored.bars["ts"].dt.epoch("ms").to_numpy()
    years = set(stored.bars["ts"].dt.year().unique())
    taken = years_of(leg.start_ms, leg.end_ms)
    found = set()
    for one in set(history.actions) - set(stored.actions):
        year = datetime.fromtimestamp(one.ts_ms / 1000, UTC).year
        if year not in years or year in taken or one.ts_ms <= max(ts[0], history.sessions[0]):
            continue
        session = history.session_from(one.ts_ms)
        if one.ts_ms < leg.start_ms or _any_within(ts, session, session + DAY_MS):
            found.add(one)
    return found


def _any_within(ts: Instants, start_ms: int, end_ms: int) -> bool:
    first, stop = np.searchsorted(ts, (start_ms, end_ms))
    return bool(first < stop)


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _text(ms: int) -> str:
    return f"{_instant(int(ms)):%Y-%m-%d %H:%M} UTC"
