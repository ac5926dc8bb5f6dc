"""Tries whether a strategy looks ahead: whether decisions change when later bars arrive.

A strategy is started on rows of a dataset without those after them, and has to decide there as it
does with them. The samples are those of `features.causality_check`; a strategy declares no
lookback, so excerpts are long:

- beginnings of the whole dataset, for what reaches far;
- a stretch of 1,000 consecutive rows, each with at least 3,000 rows before it where there are as
  many: the data ends on every one of them, so that frequent leaks have nowhere to hide;
- 100 excerpts spread over the data, each with and without 64 rows after it.

Knows nothing of plug-ins. Start at `audit_strategy`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.backtest.plugins.importing import said
from trade_pipeline.backtest.plugins.installed import StrategyError
from trade_pipeline.backtest.protocol import Plan, Strategy
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import Account, Fills, Orders, Rules, step
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.splits import Fold, Rows

ROWS_TO_DECIDE = 2_000_000  # in all; a compiled rule takes a second for them
FEWEST_CUTS, MOST_CUTS = 8, 16
CUTS_BY_ORDERS = 4  # of each so many, one also by its orders where there is a plan
LAST_ROWS = 32  # of a beginning, on which orders are asked for; of an excerpt:
LAST_ROWS_OF_EXCERPTS = 4
STRETCH, HISTORY = 1_000, 3_000
EXCERPTS, EXCERPT_ROWS = 100, 1_000
TAIL = 64  # rows after an excerpt's last cut: what its decisions must not see
# Multiples of the golden ratio spread evenly, however many are taken, and lock to no period.
GOLDEN = (5**0.5 - 1) / 2
BY_ROW = ("ts", "close_ts", "open", "high", "low", "close", "volume", "traded", "features")


class LookAhead(NamedTuple):
    """A decision that changes when later bars arrive.

    Attributes:
        rows: how many rows there were.
        row: the first on which it was decided otherwise.
        time: when that row closed.
        instrument: the first that is at fault; empty where the strategy failed.
        what: the array, or how it failed.
        prefix: what was decided with these rows.
        whole: what was decided with all of them.
    """

    rows: int
    row: int
    time: datetime
    instrument: str
    what: str
    prefix: float = np.nan
    whole: float = np.nan

    def __str__(self) -> str:
        if not self.instrument:
            return (
                f"with the data ending at row {self.row} ({self.time.isoformat()}) {self.what}; "
                "it must decide on any row without those after it"
            )
        return (
            f"on row {self.row} ({self.time.isoformat()}) {self.what} of {self.instrument} is "
            f"{self.prefix:g} when the data ends at row {self.rows - 1}, but {self.whole:g} when "
            "later bars follow; decide from rows up to the one asked about"
        )


def audit_strategy(
    strategy: Strategy,
    dataset: Dataset,
    environment: EnvironmentSettings,
    rows: Sequence[int] | None = None,
) -> list[LookAhead]:
    """Compare decisions without later rows to those with them, bit for bit.

    A plan is compared on all rows; orders on the last few, for an account that starts flat, of a
    strategy with a plan only for one beginning in `CUTS_BY_ORDERS`.

    Args:
        strategy: is started often: twice for each row of the stretch where it has no plan.
        dataset: which rows are taken of; see `excerpt`.
        environment: window, costs and limits.
        rows: lengths of beginnings, 1 to T - 1, that alone are tried; None: all samples, the same
            for the same number of rows and slices.

    Returns:
        The first decision at fault of each try that has one; none where no look-ahead was found.
        The last row of a dataset cannot be at fault.

    Raises:
        StrategyError: two runs on the same rows differ, or the account was written to.
        ValueError: a length is outside the dataset.
    """
    chosen = _drawn(dataset, environment.window) if rows is None else [int(one) for one in rows]
    for one in chosen:
        if not 0 < one < len(dataset.ts):
            raise ValueError(f"rows {one} must lie in 1 to {len(dataset.ts) - 1}")
    whole = _plan(strategy, dataset, environment)
    _check_repeats(strategy, dataset, environment, whole)
    found = []
    for number, one in enumerate(chosen):
        last = LAST_ROWS if whole is None or number % CUTS_BY_ORDERS == 0 else 0
        first = _first_change(strategy, dataset, environment, whole, one, last)
        found += [] if first is None else [first]
    if rows is None:
        slices = dataset.segments, environment.window
        for begin, cuts, end in (*_stretches(*slices), *_spread(*slices)):
            found += _tried(strategy, excerpt(dataset, begin, end), environment, cuts, begin)
    return found


def beginning(dataset: Dataset, rows: int) -> Dataset:
    """The first rows of a dataset, as if nothing had come after; it has no version."""
    return excerpt(dataset, 0, rows)


def excerpt(dataset: Dataset, begin: int, end: int) -> Dataset:
    """Rows [begin, end) of a dataset, as if there were no others; it has no version."""

    def cut(segments: Rows) -> Rows:
        inside = segments[(segments[:, 0] < end) & (segments[:, 1] > begin)]
        return np.clip(inside, begin, end) - begin

    labels = dataset.regime_labels
    return replace(
        dataset,
        **{name: getattr(dataset, name)[begin:end] for name in BY_ROW},
        segments=cut(dataset.segments),
        folds=tuple(Fold(*(cut(part) for part in fold)) for fold in dataset.folds),
        final=cut(dataset.final),
        version="",
        regime_labels=None if labels is None else labels[begin:end],
    )


def _drawn(dataset: Dataset, window: int) -> list[int]:
    """Lengths that end on a row of a slice that is decided on, the longest among them."""
    ends = np.concatenate(
        [np.arange(a + window, b + 1) for a, b in dataset.segments.tolist()]
        or [np.zeros(0, np.int64)]
    )
    ends = ends[ends < len(dataset.ts)]
    count = int(np.clip(ROWS_TO_DECIDE // len(dataset.ts), FEWEST_CUTS, MOST_CUTS))
    if len(ends) > count:
        drawn = np.random.default_rng(0).choice(ends[:-1], count - 1, replace=False)
        ends = np.sort(np.append(drawn, ends[-1]))
    return [int(one) for one in ends]


def _stretches(segments: Rows, window: int) -> Iterator[tuple[int, list[int], int]]:
    """Excerpts whose data ends on consecutive rows: first row, lengths to try, end row.

    Of the longest slice, and of further ones while they are too short.
    """
    wanted = STRETCH
    for a, b in sorted(segments.tolist(), key=lambda one: one[0] - one[1]):
        needed = min(b - a, HISTORY + wanted + TAIL)
        if wanted <= 0 or needed <= window:
            return
        begin = a + int(GOLDEN * (b - a - needed))
        tried = min(wanted, needed - window)
        first = max(window, needed - TAIL - tried)
        yield begin, list(range(first, first + tried)), begin + needed
        wanted -= tried


def _spread(segments: Rows, window: int) -> Iterator[tuple[int, list[int], int]]:
    """Excerpts of slices all over the data: first row, length without what comes after, end row."""
    ends = np.cumsum(segments[:, 1] - segments[:, 0])
    for position in range(1, EXCERPTS + 1):
        rank = int((position * GOLDEN) % 1 * ends[-1])
        number = int(np.searchsorted(ends, rank, side="right"))
        a, b = segments[number].tolist()
        last = b - (int(ends[number]) - rank) + 1
        begin = max(a, last - EXCERPT_ROWS)
        if last < b and last - begin >= window:
            yield begin, [last - begin], min(b, last + TAIL)


def _tried(
    strategy: Strategy,
    part: Dataset,
    environment: EnvironmentSettings,
    cuts: Sequence[int],
    begin: int,
) -> list[LookAhead]:
    """What is found when an excerpt that begins at a row of the dataset ends at each cut."""
    whole = _plan(strategy, part, environment)
    last = LAST_ROWS_OF_EXCERPTS if whole is None else 0
    found = [_first_change(strategy, part, environment, whole, cut, last) for cut in cuts]
    return [
        one._replace(rows=begin + one.rows, row=begin + one.row) for one in found if one is not None
    ]


def _check_repeats(
    strategy: Strategy, dataset: Dataset, environment: EnvironmentSettings, whole: Plan | None
) -> None:
    """Refuse randomness without a seed: it would look like look-ahead."""
    last = len(dataset.ts) - 1
    orders = [_orders(strategy, dataset, dataset, environment, last, LAST_ROWS) for _ in range(2)]
    same = all(
        _differences(mine._asdict(), other._asdict()) is None
        for mine, other in zip(*orders, strict=True)
    )
    again = _plan(strategy, dataset, environment)
    if whole is not None and again is not None:
        same &= _differences(_arrays(whole), _arrays(again)) is None
    if not same or (whole is None) != (again is None):
        raise StrategyError(
            f"strategy {strategy.name!r} decides otherwise when it is started again on the same "
            "rows; seed its randomness in `start`, and let `start` forget what was before."
        )


def _first_change(
    strategy: Strategy,
    dataset: Dataset,
    environment: EnvironmentSettings,
    whole: Plan | None,
    rows: int,
    asked_rows: int,
) -> LookAhead | None:
    """What changes when only so many rows are there; orders are compared on the last few."""
    cut = beginning(dataset, rows)
    asked: list[Orders] = []
    given: list[Orders] = []
    if asked_rows:
        asked = _orders(strategy, dataset, dataset, environment, rows - 1, asked_rows)
    try:
        plan = _plan(strategy, cut, environment)
        if asked_rows:
            given = _orders(strategy, cut, dataset, environment, rows - 1, asked_rows, asked)
    except Exception as error:
        return _change(dataset, rows, rows - 1, f"it fails: {said(error)}")
    if (plan is None) != (whole is None):
        return _change(dataset, rows, rows - 1, "it has a plan or none, other than with all rows")
    if plan is not None and whole is not None:
        until = {name: array[:rows] for name, array in _arrays(whole).items()}
        found = _differences(_arrays(plan), until)
        if found is not None:
            name, row, instrument, values = found
            return _change(dataset, rows, row, f"the plan's {name}", instrument, values)
    first = rows - len(asked)
    for number, (mine, other) in enumerate(zip(given, asked, strict=True)):
        found = _differences(mine._asdict(), other._asdict())
        if found is not None:
            name, _, instrument, values = found
            return _change(dataset, rows, first + number, f"the order's {name}", instrument, values)
    return None


def _change(
    dataset: Dataset,
    rows: int,
    row: int,
    what: str,
    instrument: int | None = None,
    values: tuple[float, float] = (np.nan, np.nan),
) -> LookAhead:
    time = datetime.fromtimestamp(int(dataset.close_ts[row]) / 1000, UTC)
    key = "" if instrument is None else dataset.instruments[instrument]
    return LookAhead(rows, row, time, key, what, *values)


def _plan(strategy: Strategy, dataset: Dataset, environment: EnvironmentSettings) -> Plan | None:
    """Its plan after a start; None where it has none. Copied: it may be given again."""
    strategy.start(dataset, environment)
    make = getattr(strategy, "plan", None)
    plan: Plan | None = None if make is None else make(dataset, environment)
    if plan is None:
        return None
    return Plan(**{name: np.array(array) for name, array in _arrays(plan).items()})


def _orders(
    strategy: Strategy,
    seen: Dataset,
    dataset: Dataset,
    environment: EnvironmentSettings,
    last: int,
    most: int,
    carried_out: Sequence[Orders] | None = None,
) -> list[Orders]:
    """Its orders on the rows of a slice up to `last`.

    Args:
        strategy: is started on `seen`.
        seen: what it may look at.
        dataset: the market that its account trades in.
        environment: of the account.
        last: row.
        most: rows.
        carried_out: what the account does instead of these orders.
    """
    strategy.start(seen, environment)
    begins = [int(a) for a, b in dataset.segments if a <= last < b]
    first = max([last - most + 1, *(a + environment.window - 1 for a in begins)])
    instruments = len(dataset.instruments)
    account = Account.start(1, instruments, environment.initial_equity)
    rules, fills = Rules.of(environment, instruments), Fills.empty(1, instruments)
    given: list[Orders] = []
    for row in range(first, last + 1):
        before = account.balances.tobytes(), account.positions.tobytes()
        # Copied: a strategy may write into the same arrays again.
        given.append(Orders._make(np.array(one) for one in strategy.orders(row, account)))
        if before != (account.balances.tobytes(), account.positions.tobytes()):
            raise StrategyError(
                f"strategy {strategy.name!r} changes its account on row {row}; it may only read it."
            )
        if row < last:
            orders = given[-1] if carried_out is None else carried_out[row - first]
            step(account, dataset.market, np.array([row]), orders, rules, fills)
    return given


def _arrays(plan: Plan) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in plan._asdict().items() if array is not None}


def _differences(
    mine: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]
) -> tuple[str, int, int, tuple[float, float]] | None:
    """The first row and instrument on which two sets of arrays [n, N] differ, and the values."""
    found = []
    for name in {**mine, **other}:
        if name not in mine or name not in other:
            return name, 0, 0, (np.nan, np.nan)
        equal = (mine[name] == other[name]) | (
            (mine[name] != mine[name]) & (other[name] != other[name])
        )
        wrong = np.argwhere(~equal)
        if len(wrong):
            row, instrument = (int(index) for index in wrong[0])
            values = (float(mine[name][row, instrument]), float(other[name][row, instrument]))
            found.append((row, name, instrument, values))
    if not found:
        return None
    row, name, instrument, values = min(found, key=lambda one: one[0])
    return name, row, instrument, values
