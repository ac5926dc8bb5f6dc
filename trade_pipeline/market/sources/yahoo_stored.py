"""Yahoo's answer beside what earlier ones left in the store: what is the same, what would be lost.

Each answer is the whole history, but a run stores only its years of it. So before those are
replaced, stored sessions must be in the answer, and what stays must follow from the same splits and
dividends. Knows no wire. Start at `Stored.read`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from trade_pipeline.market.actions import Action, Sessions, Values, adjustment
from trade_pipeline.market.bars import PRICES
from trade_pipeline.market.calendars import ALWAYS, DAY_MS
from trade_pipeline.market.sources.base import Interval, SourceError, Surroundings
from trade_pipeline.market.sources.yahoo_rounding import (
    Prices,
    money_tolerance,
    ratios_seen,
    shares_tolerance,
)
from trade_pipeline.market.stored import read_partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.location import StorageError

# Stored closes may be corrected by a cent, which moves a dividend's factor a little, and no more.
SAME_FACTOR = 1e-6
# Of sessions that are stored behind an answer's last one; an answer may be some days late.
MOST_LATE = 7


class History(NamedTuple):
    """Daily bars by session [n], and the splits and dividends among them."""

    ts: Sessions
    prices: Prices
    volume: Values
    actions: tuple[Action, ...]


class Stored(NamedTuple):
    """All stored sessions [n], their factors (NaN for none), and the stored actions."""

    ts: Sessions
    prices: Prices
    volume: Values
    factors: Values
    actions: tuple[Action, ...]

    @classmethod
    def read(cls, series: SeriesSettings, around: Surroundings) -> "Stored":
        """What is stored; arrays of no session when nothing is.

        Raises:
            SourceError: a partition is damaged, so that nothing can be compared with it.
        """
        folder = layout.ohlcv(around.store, series.key, series.first_year).path.parent
        years = sorted(int(path.stem) for path in folder.glob("*.parquet"))
        parts = []
        for year in years:
            try:
                parts.append(read_partition(layout.ohlcv(around.store, series.key, year)))
            except StorageError as error:
                raise SourceError(
                    f"{error} Of bars that means: prune the whole of {year} of {series.key} (job "
                    "prune_bars), then import all years in one run."
                ) from error
        columns = {
            name: np.concatenate(
                [np.empty(0), *(one.bars[name].cast(float).to_numpy() for one in parts)]
            )
            for name in (*PRICES, "volume", "adj_factor")
        }
        ts = [one.bars["ts"].dt.epoch("ms").to_numpy() for one in parts]
        return cls(
            np.concatenate([np.empty(0, dtype=np.int64), *ts]),
            np.stack([columns[name] for name in PRICES], axis=1),
            columns["volume"],
            columns["adj_factor"],
            tuple(sorted(one for part in parts for one in part.actions)),
        )

    def same_amounts(self, dividends: Iterable[Action], splits: Iterable[Action]) -> set[Action]:
        """Dividends, each as it is stored where only rounding makes a difference."""
        splits, found = tuple(splits), set()
        for one in dividends:
            least, most = ratios_seen(np.array([one.ts_ms]), splits)
            near = money_tolerance(np.array([one.value]), least, most)[0]
            known = [
                other
                for other in self.actions
                if other[:2] == one[:2] and abs(other.value - one.value) <= near
            ]
            found.add(min(known, key=lambda other: abs(other.value - one.value), default=one))
        return found

    def same_numbers(self, answer: History) -> History:
        """An answer with the stored prices and volumes where only rounding makes a difference."""
        _, new, old = np.intersect1d(answer.ts, self.ts, return_indices=True)
        least, most = ratios_seen(answer.ts[new], answer.actions)
        prices, volume = answer.prices.copy(), answer.volume.copy()
        near = money_tolerance(self.prices[old].max(axis=1, initial=0.0), least, most)
        same = (np.abs(prices[new] - self.prices[old]) <= near[:, np.newaxis]).all(axis=1)
        prices[new[same]] = self.prices[old[same]]
        same = np.abs(volume[new] - self.volume[old]) <= shares_tolerance(least)
        volume[new[same]] = self.volume[old[same]]
        return answer._replace(prices=prices, volume=volume)

    def require_nothing_lost(self, answer: History, replaced: Interval, about: str) -> None:
        """Refuse an answer without prices of a session that is stored.

        Sessions behind its last one stay in the store, but an answer that is far behind is odd.

        Raises:
            SourceError: names the sessions, and how to give them up.
        """
        start, end = replaced
        gone = self.ts[(self.ts >= start) & (self.ts < end) & ~np.isin(self.ts, answer.ts)]
        behind = self.ts[self.ts > answer.ts[-1]]
        if len(behind) > MOST_LATE:
            gone = np.union1d(gone, behind)
        if not len(gone):
            return
        first, last, end_text = (_date(ms) for ms in (gone[0], gone[-1], gone[-1] + DAY_MS))
        raise SourceError(
            f"{about}: {len(gone)} stored sessions from {first} to {last} have no prices in "
            "Yahoo's answer, which would replace them; nothing is stored. Materialize again "
            f"tomorrow; to give them up, prune this series from {first} to {end_text} "
            "(job prune_bars), then import all years in one run."
        )

    def factors_beside(
        self, answer: History, replaced: Interval, series: SeriesSettings, about: str
    ) -> Values:
        """The factors [n] of an answer, by the bars that will be stored once it replaced its part.

        Raises:
            SourceError: what stays was adjusted by other splits or dividends.
            ValueError: a dividend is not below the close before it.
        """
        start, end = replaced
        stays = (self.ts < start) | (self.ts >= end)
        first_ms = answer.ts[0]
        # Which factor a bar has follows from the closes before it: of what stays, the stored ones.
        kept = stays & (self.ts >= first_ms)
        asked = ~np.isin(answer.ts, self.ts[kept])
        ts = np.concatenate((answer.ts[asked], self.ts[kept]))
        last = PRICES.index("close")
        close = np.concatenate((answer.prices[asked, last], self.prices[kept, last]))
        order = np.argsort(ts)
        ts, close = ts[order], close[order]
        factors = adjustment(ts, close, answer.actions)
        if series.calendar != ALWAYS:
            at = np.maximum(np.searchsorted(ts, self.ts, side="right") - 1, 0)
            same = np.isclose(self.factors, factors[at], rtol=SAME_FACTOR, atol=0)
            wrong = self.ts[stays & ~same].tolist()
            wrong += [one.ts_ms for one in self._other_actions(answer, replaced)]
            if wrong:
                since = _date(min(wrong))
                raise SourceError(
                    f"{about}: from {since} on, stored bars were adjusted by other splits or "
                    "dividends than Yahoo gives now; beside bars of this run they would not be "
                    "comparable. Import all years of this series in one run; if that is refused "
                    f"too, prune it from {since} on (job prune_bars) and do so again."
                )
        return factors[np.searchsorted(ts, answer.ts)]

    def _other_actions(self, answer: History, replaced: Interval) -> set[Action]:
        """Actions that only one of the two has, where this run replaces nothing.

        Readers take volume apart by the stored splits. Of years without a stored bar none is
        missed, nor behind the last stored bar, unless bars of this run follow it.
        """
        if not len(self.ts):
            return set()
        start, end = replaced
        years = {_instant(ms).year for ms in self.ts}
        first_ms = min(self.ts[0], answer.ts[0])
        until = max(self.ts[-1], start - 1)
        beside = [one for one in answer.actions if not start <= one.ts_ms < end]
        missing = {
            one
            for one in beside
            if first_ms < one.ts_ms <= until and _instant(one.ts_ms).year in years
        } - set(self.actions)
        withdrawn = {
            one
            for one in set(self.actions) - set(beside)
            if one.ts_ms > answer.ts[0] and not start <= one.ts_ms < end
        }
        return missing | withdrawn


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)


def _date(ms: int) -> str:
    return f"{_instant(ms):%Y-%m-%d}"
