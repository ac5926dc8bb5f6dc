"""Indicators on longer bars than the series has, seen only once those bars have closed.

Longer bars start on the clock (UTC; weeks on Monday). Their values appear on the first bar that
closes at their end or later, and stay until the next: a longer bar labelled by its start would
show a day's close in the morning. Start at `on_higher_bars`.
"""

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.features.indicator import Array, Bars, Indicator
from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.features import HIGHER_TIMEFRAME_MS

IMPLEMENTATION = 1
DAY_MS = 86_400_000
FIRST_MONDAY_MS = 4 * DAY_MS  # 1970-01-05; days and what divides them start there, too


def lookback_on_higher(lookback: int, bars_each: int) -> int:
    """Shorter bars before a value's own that it may depend on.

    The longer bars that the indicator reads, and three more: the one not yet closed, one that the
    segment's start cuts, and the one that is seen.

    Args:
        lookback: of the indicator, in longer bars.
        bars_each: most shorter bars that make a longer one.
    """
    return (lookback + 3) * bars_each


def on_higher_bars(
    indicator: Indicator[Settings], parameters: Settings, bars: Bars, timeframe: str
) -> dict[str, Array]:
    """An indicator's outputs on bars of `timeframe`, spread over the bars they were made of.

    Args:
        indicator: reads no other series.
        parameters: of it.
        bars: its inputs and `ts` and `close_ts`, each [T].
        timeframe: key of `HIGHER_TIMEFRAME_MS`, longer than the bars.

    Returns:
        Each output [T]: that of the newest longer bar that has closed, NaN before the first.
    """
    length = HIGHER_TIMEFRAME_MS[timeframe]
    group = np.floor_divide(bars["ts"] - FIRST_MONDAY_MS, length)
    starts = np.flatnonzero(np.diff(group, prepend=np.nan) != 0)
    if len(starts) and bars["ts"][0] != group[0] * length + FIRST_MONDAY_MS:
        starts = starts[1:]  # its beginning lies before the segment
    opens = group[starts] * length + FIRST_MONDAY_MS
    times = {"ts": opens, "close_ts": opens + length}
    longer = {
        name: times[name] if name in times else _merged(name, bars[name], starts)
        for name in indicator.inputs
    }
    newest = np.searchsorted(times["close_ts"], bars["close_ts"], side="right") - 1
    outputs = indicator.compute(longer, parameters)
    return {name: _seen(values, newest) for name, values in outputs.items()}


def _merged(name: str, values: Array, starts: NDArray[np.intp]) -> Array:
    """One column of longer bars, of the rows from each start to the next."""
    merged: Array
    if not len(starts):
        merged = np.empty(0)
    elif name == "open":
        merged = values[starts]
    elif name == "close":
        merged = values[np.append(starts[1:], len(values)) - 1]
    else:
        combine: np.ufunc = {"high": np.maximum, "low": np.minimum, "volume": np.add}[name]
        merged = combine.reduceat(values, starts)
    return merged


def _seen(values: Array, newest: NDArray[np.intp]) -> Array:
    """The newest value that each row knows, NaN where it knows none."""
    seen: Array = np.append(values, np.nan)[newest]
    return seen
