"""A picture of one episode: prices with what was bought and sold, and equity.

Start at `episode_picture`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trade_pipeline.simulator.market import Market
from trade_pipeline.simulator.state import Account, Fill

MARKS = (("^", "#1a9850"), ("v", "#d73027"), ("x", "#7b3294"))


class EpisodeRecord:
    """What happened since an episode began.

    Attributes:
        first_row: the first decision row; -1 before any episode.
        price_scale: of the account; fills are in its prices.
        equity: before the first step and after each, quote currency.
        fills: the step (0 the first) and the fill.
    """

    def __init__(self) -> None:
        self.first_row = -1
        self.price_scale = 1.0
        self.equity: list[float] = []
        self.fills: list[tuple[int, Fill]] = []

    def begin(self, row: int, account: Account, environment: int = 0) -> None:
        """Forget the last episode."""
        self.first_row = row
        self.price_scale = float(account.price_scale[environment])
        self.equity = [float(account.equity[environment])]
        self.fills = []

    def add(self, equity: float, fills: list[Fill]) -> None:
        """Remember one step."""
        self.fills += [(len(self.equity) - 1, fill) for fill in fills]
        self.equity.append(equity)


def episode_picture(market: Market, record: EpisodeRecord) -> npt.NDArray[np.uint8]:
    """Draw an episode.

    Args:
        market: the bars it ran on.
        record: what happened.

    Returns:
        uint8 [600, 900, 3]: above, closes relative to the first one with a triangle up for each
        purchase and down for each sale, a cross for stops, takes and liquidations; below, equity.
    """
    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    if record.first_row < 0:
        above.set_title("no episode yet")
    else:
        _draw(market, record, above, below)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])


def _draw(market: Market, record: EpisodeRecord, above: Any, below: Any) -> None:
    first, steps = record.first_row, len(record.equity) - 1
    when = market.close_ts[first : first + steps + 1].astype("datetime64[ms]")
    close = market.close[first : first + steps + 1]
    for n in range(market.instruments):
        above.plot(when, close[:, n] / close[0, n], linewidth=1, color=f"C{n}")
    for mark, colour in MARKS:
        points = [
            (when[step + 1], fill.price / record.price_scale / close[0, fill.instrument])
            for step, fill in record.fills
            if _mark(fill) == mark
        ]
        if points:
            above.scatter(*zip(*points, strict=True), marker=mark, color=colour, s=24, zorder=3)
    above.set_ylabel("close, first = 1")
    below.plot(when, record.equity, linewidth=1, color="black")
    below.axhline(record.equity[0], linewidth=0.5, color="grey")
    below.set_ylabel("equity")
    change = record.equity[-1] / record.equity[0] - 1
    above.set_title(f"{steps} bars, {len(record.fills)} fills, equity {change:+.2%}")


def _mark(fill: Fill) -> str:
    if fill.reason != "order":
        return "x"
    return "^" if fill.quantity > 0 else "v"
