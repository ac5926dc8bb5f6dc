"""PNG pictures of regimes for people who look at a run, each of less than 100 KB.

Draws on a canvas of its own, without pyplot's global state; equal inputs give equal bytes.
Start at `price_by_regime_png`.
"""

from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)
from numpy.typing import NDArray
from PIL import Image
from tsdownsample import MinMaxDownsampler

from trade_pipeline.features.regimes.model import FloatArray, RegimeModel

WIDTH_INCHES = 9.0  # of 100 pixels
DAY_MS = 86_400_000.0  # matplotlib counts days since 1970
MOST_POINTS = 1_600  # of the price: two a pixel
COLUMNS = 200  # of the shares of time
LOGARITHMIC_FROM = 4.0  # highest to lowest price
PANELS_A_LINE = 4
DARK, GREY, PALE = "#24292f", "#8c959f", "#ccd2d9"
# From calm to turbulent; told apart by people who see no red and green, and in print.
CALM_TO_TURBULENT = LinearSegmentedColormap.from_list(
    "regimes", ["#0b4a8f", "#62aee0", "#e3c04f", "#ec8a33", "#a02c02"]
)


def price_by_regime_png(
    ts: NDArray[np.int64],
    price: FloatArray,
    regimes: NDArray[np.int8],
    states: int,
    title: str,
) -> bytes:
    """Price coloured by regime; below it, how much of the time each regime took.

    The line breaks where more than a hundredth of the time is without a row, such as between
    distant slices. Of a long series the highs and lows are drawn.

    Args:
        ts: int64 [T], ms UTC, increasing.
        price: float64 [T], positive.
        regimes: int8 [T], see `filtering.labels`; -1, which is grey, where there is none.
        states: number of regimes, K.
        title: shown as it is.
    """
    figure = _figure(5.4, title)
    if not len(ts):
        _say(figure.add_subplot(), "no rows")
        return _png(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1.0))
    colors = [*regime_colors(states), PALE]  # the last one is that of -1
    _draw_price(above, ts, price, regimes, colors)
    _draw_time(below, ts, regimes, colors)
    shares = [float(np.mean(regimes == state)) for state in (*range(states), -1)]
    names = [*_names(states), "no regime"]
    handles = [
        Line2D([], [], color=color, linewidth=5, label=f"{name}: {share:.1%}".replace("%", " %"))
        for color, name, share in zip(colors, names, shares, strict=True)
        if share or name != "no regime"
    ]
    below.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.35),
        ncols=len(handles) if len(handles) <= 5 else -(-len(handles) // 2),
        fontsize=8,
        frameon=False,
    )
    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    below.xaxis.set_major_locator(locator)
    dates = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
    below.xaxis.set_major_formatter(dates)
    return _png(figure)


def transition_png(model: RegimeModel, title: str) -> bytes:
    """How likely each regime follows each, and how long a stay and what share of time that makes.

    Args:
        model: see `fit.fit_regimes`.
        title: shown as it is.
    """
    states = model.states
    figure = _figure(1.6 + 0.55 * max(states, 3), title)
    matrix, stays = figure.subplots(1, 2, width_ratios=(1.5, 1.0))
    chances = model.transition
    # Staying is nearly certain everywhere; the fourth root makes rare jumps visible.
    matrix.imshow(chances**0.25, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for row in range(states):
        for column in range(states):
            chance = chances[row, column]
            matrix.text(
                *(column, row, _percent(chance)),
                ha="center",
                va="center",
                fontsize=9 if states < 6 else 7,
                color="white" if chance**0.25 > 0.62 else DARK,
            )
    names = _names(states)
    matrix.set_xticks(range(states), [str(state) for state in range(states)])
    matrix.set_yticks(range(states), names)
    matrix.set_xlabel("regime of the next bar", fontsize=9)
    matrix.set_title("chance of the next bar's regime", fontsize=9)
    leaving = np.array([1 - chances[state, state] for state in range(states)])
    bars = 1 / np.maximum(leaving, np.finfo(float).eps)
    stays.barh(range(states), bars, color=regime_colors(states), height=0.7)
    stays.set_xlim(0, bars.max() * 2.2)  # room for the figures
    for state in range(states):
        stays.text(
            bars[state] + 0.03 * bars.max(),
            state,
            f"{_short(bars[state])} bars, {_percent(model.start[state])} of time",
            va="center",
            fontsize=8,
        )
    stays.set_ylim(states - 0.5, -0.5)
    stays.set_yticks(range(states), [str(state) for state in range(states)])
    stays.set_xticks([])
    stays.set_title("mean stay", fontsize=9)
    for side in ("top", "right", "bottom"):
        stays.spines[side].set_visible(False)
    for axes in (matrix, stays):
        axes.tick_params(labelsize=8)
    return _png(figure)


def state_means_png(model: RegimeModel, title: str) -> bytes:
    """Mean of each input in each regime, with one deviation to each side, in the input's unit.

    Args:
        model: see `fit.fit_regimes`.
        title: shown as it is.
    """
    inputs = len(model.inputs)
    lines = -(-inputs // PANELS_A_LINE)
    columns = -(-inputs // lines)
    figure = _figure(0.8 + (2.6 if lines == 1 else 1.9) * lines, title)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    places = np.arange(model.states)
    for number, (axes, name) in enumerate(zip(panels, model.inputs, strict=False)):
        means = model.center[number] + model.scale[number] * model.means[:, number]
        deviations = model.scale[number] * np.sqrt(model.covariances[:, number, number])
        if (means - deviations).min() < 0 < (means + deviations).max():
            axes.axhline(0.0, color=GREY, linewidth=0.8)
        for place, color in zip(places, regime_colors(model.states), strict=True):
            axes.errorbar(
                *(place, means[place], deviations[place]),
                color=color,
                marker="o",
                markersize=6,
                capsize=5,
                linewidth=2,
            )
        axes.set_title(name, fontsize=9, parse_math=False)
        axes.set_xlim(-0.6, model.states - 0.4)
        axes.set_xticks(places, [str(place) for place in places])
        axes.set_xlabel("regime, calmest first", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", alpha=0.3)
    for axes in panels[inputs:]:
        axes.set_axis_off()
    return _png(figure)


def bic_png(trials: pl.DataFrame, title: str) -> bytes:
    """BIC of each fit by number of states, the least of each joined, the chosen one starred.

    Args:
        trials: see `fit.Fitted`.
        title: shown as it is.
    """
    figure = _figure(3.4, title)
    axes = figure.add_subplot()
    usable = trials.filter(pl.col("dropped").is_null()).sort("states", "bic")
    axes.scatter(
        *(usable["states"], usable["bic"]), color=CALM_TO_TURBULENT(0.35), s=28, label="one start"
    )
    best = usable.unique("states", keep="first", maintain_order=True)
    axes.plot(best["states"], best["bic"], color=CALM_TO_TURBULENT(0.0), label="best start")
    chosen = trials.filter("chosen")
    star = CALM_TO_TURBULENT(0.7)
    axes.plot(
        *(chosen["states"], chosen["bic"]),
        color=star,
        marker="*",
        markersize=15,
        linestyle="none",
        label="chosen",
    )
    tried = sorted(set(trials["states"]))
    dropped = [
        trials.filter(pl.col("states") == states)["dropped"].drop_nulls().len() for states in tried
    ]
    axes.set_xlim(tried[0] - 0.5, tried[-1] + 0.5)
    axes.set_xticks(
        tried,
        [
            f"{states} states" + (f"\n{count} dropped" if count else "")
            for states, count in zip(tried, dropped, strict=True)
        ],
    )
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(y=0.15)
    axes.set_ylabel("BIC (less is better)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return _png(figure)


def regime_colors(states: int) -> list[str]:
    """A colour for each regime, from calm to turbulent."""
    return [to_hex(CALM_TO_TURBULENT(place)) for place in np.linspace(0, 1, states)]


def _draw_price(
    axes: Axes,
    ts: NDArray[np.int64],
    price: FloatArray,
    regimes: NDArray[np.int8],
    colors: list[str],
) -> None:
    """Each stretch between two points has the colour of the later one."""
    kept = np.arange(len(ts))
    if len(ts) > MOST_POINTS:
        downsampler = MinMaxDownsampler()  # type: ignore[no-untyped-call]
        kept = downsampler.downsample(price, n_out=MOST_POINTS).astype(np.int64)
    times = ts[kept] / DAY_MS
    points = np.stack([times, price[kept]], axis=1)
    stretches = np.stack([points[:-1], points[1:]], axis=1)
    # Between rows that are apart there was no price; thinned points are apart by themselves.
    longest = max(np.diff(ts).max(initial=0), 1)
    usual = float(np.median(np.diff(ts))) if len(ts) > 1 else 1.0
    gap = max((ts[-1] - ts[0]) / 100, 10 * usual)
    whole = np.ones(len(stretches), bool)
    if longest > gap:
        ends = np.flatnonzero(np.diff(ts) > gap)  # the last row before each gap
        whole = np.searchsorted(ends, kept[:-1]) == np.searchsorted(ends, kept[1:])
    axes.add_collection(
        LineCollection(
            list(stretches[whole]),
            colors=[colors[regime] for regime in regimes[kept[1:]][whole]],
            linewidths=1.3,
            capstyle="round",
        )
    )
    axes.set_xlim(times[0], max(times[-1], times[0] + 1e-3))
    low, high = float(price.min()), float(price.max())
    if high > LOGARITHMIC_FROM * low > 0:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    else:
        room = 0.05 * (high - low) or 0.01 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
    axes.set_ylabel("Price", fontsize=9)
    axes.tick_params(labelsize=8, labelbottom=False)
    axes.grid(alpha=0.3)


def _draw_time(
    axes: Axes, ts: NDArray[np.int64], regimes: NDArray[np.int8], colors: list[str]
) -> None:
    """Stacked shares of the rows of each stretch of time; nothing where there are no rows."""
    columns = min(COLUMNS, len(ts))
    edges = np.linspace(ts[0], ts[-1] + 1, columns + 1)
    column = np.searchsorted(edges, ts, side="right") - 1
    counts = np.zeros((columns, len(colors)))
    np.add.at(counts, (column, regimes.astype(np.int64)), 1)  # -1 is the last one
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    days = edges / DAY_MS
    below = np.zeros(columns)
    for share, color in zip(shares.T, colors, strict=True):
        axes.stairs(below + share, days, baseline=below, fill=True, color=color, linewidth=0)
        below = below + share
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_yticks([0, 0.5, 1])
    axes.set_ylabel("Share of bars", fontsize=9)
    axes.tick_params(labelsize=8)


def _names(states: int) -> list[str]:
    return [
        f"regime {state}" + {0: " (calmest)", states - 1: " (wildest)"}.get(state, "")
        for state in range(states)
    ]


def _percent(share: float) -> str:
    """Three figures of a percentage, also of a small one."""
    percent = 100 * share
    if percent and percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.4g} %" if percent >= 99 else f"{percent:.2g} %"


def _short(bars: float) -> str:
    return f"{bars:,.0f}" if bars >= 10 else f"{bars:.1f}"


def _figure(height_inches: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False, fontsize=11)
    return figure


def _png(figure: Figure) -> bytes:
    """In 256 colours, which halves the bytes and cannot be seen."""
    canvas: Any = figure.canvas
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
    drawn = BytesIO()
    pixels.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        drawn, format="png", optimize=True
    )
    return drawn.getvalue()


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_axis_off()
