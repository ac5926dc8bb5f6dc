"""Splits and dividends of a stock, and what they do to its prices.

Adjustment runs forward from a series' first bar, so that a later action changes nothing before it.
Pure functions over arrays: knows no frame, no source, no storage. Start at `adjustment`.
"""

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Sessions = npt.NDArray[np.int64]  # [n] session dates at 00:00Z, ms since 1970, rising
Values = npt.NDArray[np.float64]  # [n] one number a session


class Action(NamedTuple):
    """One corporate action, in force from the open of its session.

    Attributes:
        ts_ms: the ex-date at 00:00Z, in ms.
        kind: what happened.
        value: new shares for one old share, or dollars a share before any later split (a split of
            the same date is not later).
    """

    ts_ms: int
    kind: Literal["split", "dividend"]
    value: float


def adjustment(sessions_ms: Sessions, close: Values, actions: Iterable[Action]) -> Values:
    """The `adj_factor` of each session: 1 at the first, and only past actions in it.

    A split multiplies it by its ratio; a dividend multiplies it by 1 / (1 - dividend / close
    before), the rule of CRSP's and Yahoo's adjusted prices, taken forward from the first session
    and not back from the last. Of one date the split comes first, since such a dividend is paid
    on new shares. Of several dividends between two sessions each lowers the close that the next
    is measured by, so that their order makes no difference.

    Args:
        sessions_ms: dates of the series from its first bar on; an action on another date takes
            effect at the next session.
        close: [n] prices as traded, dollars.
        actions: any order; a repeated one counts once. Those at or before the first session or
            after the last one change nothing.

    Returns:
        [n] factor that makes traded prices comparable with the first session's.

    Raises:
        ValueError: a value is no positive number, or a dividend is not below the close before.

    >>> day = 86_400_000
    >>> sessions, close = np.array([0, day, 2 * day]), np.array([100.0, 25.0, 24.0])
    >>> adjustment(sessions, close, [Action(day, "split", 4.0), Action(2 * day, "dividend", 5.0)])
    array([1., 4., 5.])
    """
    step = np.ones(len(sessions_ms))
    reference, before = math.nan, -1
    for at, action in _effective(sessions_ms, actions):
        if at == len(sessions_ms):
            break
        if at != before:
            reference, before = float(close[at - 1]), at
        if action.kind == "split":
            step[at] *= action.value
            reference /= action.value
            continue
        if not reference > action.value:
            raise ValueError(
                f"the dividend of {_date(action)} is {action.value:g} a share, which is not below "
                f"the close before it, {reference:g}; one of them is wrong, or a split is missing."
            )
        step[at] *= reference / (reference - action.value)
        reference -= action.value
    return np.cumprod(step, dtype=np.float64)


def split_part(sessions_ms: Sessions, actions: Iterable[Action]) -> Values:
    """The part of `adjustment` that is splits: shares now for one share of the first session.

    Args:
        sessions_ms: dates of the series from its first bar on.
        actions: as for `adjustment`; dividends are passed over.

    Returns:
        [n] product of split ratios so far. Volume divided by it is in shares of the first session.

    Raises:
        ValueError: a value is no positive number.
    """
    step = np.ones(len(sessions_ms))
    for at, action in _effective(sessions_ms, actions):
        if action.kind == "split" and at < len(step):
            step[at] *= action.value
    return np.cumprod(step, dtype=np.float64)


def unsplit(sessions_ms: Sessions, price: Values, actions: Iterable[Action]) -> Values:
    """Prices as traded, from those that a venue gives adjusted for all later splits.

    Args:
        sessions_ms: session of each price.
        price: [n] split-adjusted, dollars. Ones give the factor that volume is divided by.
        actions: as for `adjustment`, all that the venue has applied: also those after the last
            session. Dividends are passed over.

    Returns:
        [n] price times the product of the split ratios after its session.

    Raises:
        ValueError: a value is no positive number.
    """
    later = np.ones(len(sessions_ms) + 1)
    for at, action in _effective(sessions_ms, actions):
        if action.kind == "split":
            later[at] *= action.value
    # Of a session the splits count that take effect at one behind it.
    product = np.cumprod(later[::-1])[::-1][1:]
    return np.asarray(price * product, dtype=np.float64)


def _effective(sessions_ms: Sessions, actions: Iterable[Action]) -> Iterator[tuple[int, Action]]:
    """Each action behind the first session, with the position [1, n] it takes effect at, rising.

    Position n stands for a session still to come.
    """
    if not len(sessions_ms):
        return
    # A date's split goes before its dividend, as `adjustment` says.
    for action in sorted(set(actions), key=lambda one: (one.ts_ms, one.kind != "split", one.value)):
        if not 0 < action.value < math.inf:
            raise ValueError(
                f"the {action.kind} of {_date(action)} has the value {action.value:g}; a positive "
                "number is expected. Correct the source's actions."
            )
        at = int(np.searchsorted(sessions_ms, action.ts_ms))
        if at > 0:
            yield at, action


def _date(action: Action) -> str:
    return f"{datetime.fromtimestamp(action.ts_ms / 1000, UTC):%Y-%m-%d}"
