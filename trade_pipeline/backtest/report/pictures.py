"""PNG previews for metadata: small, made without a browser, the same bytes for the same input.

Start at `equity_png`.
"""

from collections.abc import Mapping
from datetime import UTC
from io import BytesIO

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from trade_pipeline.backtest.report.curves import thin

Timed = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]

PICTURE_POINTS = 2_000  # of all curves together; more only make the file large
COLORS = 64  # enough for smooth lines, at half the bytes


def equity_png(curves: Mapping[str, Timed], title: str) -> bytes:
    """Equity of all curves above, drawdown of the first below; under 100 KB.

    Args:
        curves: name to ([n] ms UTC, increasing; [n] equity in quote currency). With several, each
            starts at 1.
        title: shown as it is.

    Raises:
        ValueError: no curve, or arrays that are empty, of different length or not finite.
    """
    if not curves:
        raise ValueError(f"{title}: no curve to draw")
    for name, (ts, equity) in curves.items():
        if equity.size == 0 or equity.shape != ts.shape or not np.isfinite(equity).all():
            raise ValueError(
                f"{title}: equity {equity.shape} and ts {ts.shape} of {name} must be finite, of "
                "equal length and not empty"
            )
    # Figure and canvas directly: pyplot keeps global state and picks a backend by environment.
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.set_title(title, parse_math=False, fontsize=11)
    for number, (name, (ts, equity)) in enumerate(curves.items()):
        points = thin(ts, equity, PICTURE_POINTS // len(curves))
        times = points.ts.astype("datetime64[ms]")
        start = points.equity[0] if len(curves) > 1 else 1.0
        color = "#2f81f7" if number == 0 else None
        above.plot(times, points.equity / start, color=color, linewidth=1.2, label=name)
        if number == 0:
            below.fill_between(times, points.drawdown, 0, color="#e5534b", alpha=0.4, linewidth=0)
    above.set_ylabel("Equity" if len(curves) == 1 else "Equity / start")
    if len(curves) > 1:
        above.legend(fontsize=8, loc="upper left")
    below.set_ylabel("Drawdown")
    below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    locator = AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]
    below.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, tz=UTC)  # type: ignore[no-untyped-call]
    below.xaxis.set_major_formatter(formatter)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    drawn, picture = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(COLORS).save(picture, format="png", optimize=True)
    return picture.getvalue()
