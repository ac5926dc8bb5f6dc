"""Figures of the parts of a curve that lie in each regime of the market. Start at `by_regime`."""

from typing import Any

import numpy as np
import numpy.typing as npt

from trade_pipeline.evaluation.growth import simple_returns, until_ruin
from trade_pipeline.evaluation.measure import FloatArray, Measure, as_json, finite, undefined
from trade_pipeline.evaluation.ratios import sharpe

NONE = "none"  # what a label of -1 is called


def by_regime(
    equity: FloatArray,
    labels: npt.NDArray[np.int8],
    exposure: FloatArray,
    bars_per_year: float,
    risk_free: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """`return`, `sharpe`, `exposure`, `share_of_time` and `bars` of each regime.

    The return is that of the regime's bars one after the other, and the Sharpe ratio that of bars,
    for a regime rarely lasts days. Over all regimes, growth factors multiply to the whole curve's
    and shares of time add up to one. After ruin nothing counts.

    Args:
        equity: [n+1] account value, E_0 first.
        labels: int8 [n] regime known when the position of the bar was decided; -1: none.
        exposure: [n] gross exposure as a multiple of equity at each bar's close.
        bars_per_year: bars in a year.
        risk_free: annual rate taken off returns.

    Returns:
        The label as text, or `none`, to `values` and `undefined`; in order of the labels.

    Raises:
        ValueError: lengths disagree.
    """
    for name, array in (("labels", labels), ("exposure", exposure)):
        if array.shape != (equity.size - 1,):
            raise ValueError(
                f"{name} has shape {array.shape}, but equity has {equity.size} values; "
                f"({equity.size - 1},) is expected"
            )
    equity = until_ruin(equity)
    bars = equity.size - 1
    returns = simple_returns(equity)
    held = exposure[:bars].copy()
    found: dict[str, dict[str, Any]] = {}
    for label in np.unique(labels[:bars]).tolist():
        rows = labels[:bars] == label
        # Exposure relative to an equity of zero means nothing: the bar of ruin is left out.
        alive = held[rows & (equity[1:] > 0)]
        count = int(np.count_nonzero(rows))
        found[NONE if label == -1 else str(label)] = as_json(
            {
                "return": finite(float(np.prod(returns[rows] + 1)) - 1),
                "sharpe": sharpe(returns[rows], bars_per_year, risk_free),
                "exposure": (
                    finite(float(alive.mean())) if alive.size else undefined("ruined in its bar")
                ),
                "share_of_time": Measure(count / bars, None),
                "bars": Measure(count, None),
            }
        )
    return found
