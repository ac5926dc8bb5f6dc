"""What trading cost as a share of what it earned, and how large an account could trade so.

Start at `cost_shares` and `capacity`.
"""

import numpy as np

from trade_pipeline.evaluation.measure import FloatArray, IntArray, Measure, finite, undefined


def cost_shares(
    net_result: float, fees: float, slippage: float, financing: float
) -> dict[str, Measure]:
    """`gross_result`, and each cost as a share of it.

    The gross result is what the same trades would have earned without costs: the change of equity
    plus fees, slippage and financing, all in quote currency. A cost that was income is negative.
    """
    gross = net_result + fees + slippage + financing
    costs = {"fees": fees, "slippage": slippage, "financing": financing}
    costs["costs"] = fees + slippage + financing
    if gross > 0:
        shares = {f"{name}_share": finite(cost / gross) for name, cost in costs.items()}
    else:
        none = undefined("the gross result is not above zero: there is nothing to take a share of")
        shares = dict.fromkeys((f"{name}_share" for name in costs), none)
    return {"gross_result": finite(gross), **shares}


def capacity(
    bar: IntArray,
    quantity: FloatArray,
    volume: FloatArray,
    initial_equity: float,
    share: float,
) -> dict[str, Measure]:
    """The largest starting equity at which no order exceeds `share` of its bar's volume.

    capacity = E_0 min over bars of (share x volume / quantity traded in that bar). Quantities are
    taken to grow with equity, prices not to notice, and lots not to matter: an upper bound.

    Args:
        bar: [fills] which bar of which instrument: a number each, equal for fills of one bar.
        quantity: [fills] signed, in units of the instrument.
        volume: [fills] of the fill's bar, in the same units.
        initial_equity: E_0 that these quantities were traded with, quote currency.
        share: largest part of a bar's volume, such as 0.01.

    Returns:
        `equity` in quote currency, `share`, `largest_share` (of a bar's volume that was traded
        with E_0) and `bar` that binds, the first of equals.

    Raises:
        ValueError: `share` is not above zero.
    """
    if not share > 0:
        raise ValueError(f"share is {share}; it must be above zero, such as 0.01")
    names = ("equity", "largest_share", "bar")
    given = {"share": Measure(float(share), None)}
    traded = np.flatnonzero(quantity != 0)
    if not traded.size:
        return given | dict.fromkeys(names, undefined("nothing was traded"))
    bars, first, which = np.unique(bar[traded], return_index=True, return_inverse=True)
    totals = np.bincount(which, weights=np.abs(quantity[traded]))
    held = volume[traded][first]
    empty = np.flatnonzero(~(held > 0))
    if empty.size:
        reason = f"{empty.size} of {bars.size} bars that were traded in have no volume"
        return given | dict.fromkeys(names, undefined(reason))
    shares = totals / held
    at = int(np.argmax(shares))
    return given | {
        "equity": finite(initial_equity * share / float(shares[at])),
        "largest_share": finite(float(shares[at])),
        "bar": Measure(int(bars[at]), None),
    }
