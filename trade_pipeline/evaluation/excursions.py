"""How far the price went for and against a trade while it was held. Start at `excursions`."""

from collections.abc import Mapping
from itertools import pairwise

import polars as pl

from trade_pipeline.evaluation.measure import FloatArray

LEFT_OVER = 1e-9  # of the most that a trip held: less is rounding of sums of floats


def excursions(
    trades: pl.DataFrame,
    high: Mapping[str, FloatArray],
    low: Mapping[str, FloatArray],
    matches: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Append `mfe`, `mae` and `mfe_hi`: how far price went for and against a trade, from entry.

    Bars held throughout or entered at their open count whole. Of the exit bar only the exit price
    counts; `mfe_hi` adds its favourable extreme after an exit inside the bar (stop, take,
    liquidation), where nobody knows what came first. A `slice_end` exit is at the close, so its
    bar counts whole. A trade still open counts to the last bar given.

    Args:
        trades: matches, trips or open lots.
        high: [T] of each instrument; `row` of the fills indexes it.
        low: like `high`.
        matches: of the trips: one that was built up or closed in parts is measured from the mean
            entry price of what it held at each bar; without them, from that of all its entries.

    Returns:
        The same rows and three Float64 columns in price units, never negative.
    """
    costs = {} if matches is None else _costs(matches)
    open_ended = "exit_row" not in trades.columns
    found = []
    for trade in trades.iter_rows(named=True):
        highs, lows = high[trade["instrument"]], low[trade["instrument"]]
        steps = costs.get(trade.get("trip", -1)) or [(trade["entry_row"], trade["entry_price"])]
        exit_row = None if open_ended else trade["exit_row"]
        reason = None if exit_row is None else trade["exit_reason"]
        whole = exit_row is None or reason == "slice_end"
        stop = highs.size if exit_row is None else exit_row + (1 if whole else 0)
        above = below = 0.0  # of the price over and under the cost at the time
        for (first, cost), (end, _) in pairwise([*steps, (stop, 0.0)]):
            above = max(above, float(highs[first:end].max(initial=cost)) - cost)
            below = max(below, cost - float(lows[first:end].min(initial=cost)))
        cost = steps[-1][1]
        if exit_row is not None:
            last = trade.get("last_price", trade["exit_price"])
            above, below = max(above, last - cost), max(below, cost - last)
        far_above, far_below = above, below
        if exit_row is not None and reason in {"stop", "take", "liquidation"}:
            far_above = max(above, float(highs[exit_row]) - cost)
            far_below = max(below, cost - float(lows[exit_row]))
        if trade["side"] == "long":
            found.append((above, below, far_above))
        else:
            found.append((below, above, far_below))
    schema = {"mfe": pl.Float64, "mae": pl.Float64, "mfe_hi": pl.Float64}
    return trades.hstack(pl.DataFrame(found, schema=schema, orient="row"))


def _costs(matches: pl.DataFrame) -> dict[int, list[tuple[int, float]]]:
    """From which row on what mean entry price holds, of each trip of several matches."""
    found = {}
    for (trip,), parts in matches.group_by("trip", maintain_order=True):
        if parts.height == 1:
            continue
        changes: dict[int, list[float]] = {}
        for quantity, price, entry, left in parts.select(
            "quantity", "entry_price", "entry_row", "exit_row"
        ).iter_rows():
            for row, sign in ((entry, 1), (left, -1)):
                change = changes.setdefault(row, [0.0, 0.0])
                change[0] += sign * quantity
                change[1] += sign * quantity * price
        held = spent = most = 0.0
        steps = []
        for row in sorted(changes):
            held, spent = held + changes[row][0], spent + changes[row][1]
            most = max(most, held)
            if held > most * LEFT_OVER:
                steps.append((row, spent / held))
        found[trip] = steps
    return found
