"""PNG pictures of a training for people who look at a run: what it learned and what it does.

Reads `Diagnostics.frame()`; draws on a canvas of its own, without pyplot's global state, and equal
frames give equal bytes. Start at `learning_curve_png` and `action_mix_png`.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from trade_pipeline.simulator.actions import ACTION_KEYS, DIRECTIONS

FloatArray = NDArray[np.float64]

WIDTH_INCHES = 9.0  # of 100 pixels
BLUE, ORANGE, GREY = "#2f81f7", "#d9730d", "#57606a"
# What updates say of themselves: the first three that there are. Entropy is logged as a loss.
UPDATES: Mapping[str, tuple[str, float]] = {
    "approx_kl": ("KL divergence", 1.0),
    "entropy_loss": ("Entropy (nats)", -1.0),
    "explained_variance": ("Explained variance", 1.0),
    "critic_loss": ("Critic's loss", 1.0),
    "actor_loss": ("Actor's loss", 1.0),
    "loss": ("Loss", 1.0),
    "ent_coef": ("Entropy coefficient", 1.0),
    "exploration_rate": ("Random actions", 1.0),
}
MOST_UPDATES = 3
# Told apart by people who see no red and green, and in print.
DIRECTION_COLORS = dict(zip(DIRECTIONS, ("#d0d7de", "#8c959f", BLUE, ORANGE), strict=True))
MOST_LINES = 8  # instruments; more are told apart only in lines of a table


def learning_curve_png(frame: pl.DataFrame, title: str) -> bytes:
    """Validation return with its best look, episode reward, and what the updates say.

    Args:
        frame: `Diagnostics.frame()`; what it lacks is left out.
        title: shown as it is.
    """
    updates = [name for name in UPDATES if _taken(frame, name)][:MOST_UPDATES]
    figure = _figure(6.4 if updates else 4.6, title)
    heights = [1.3, 1.0, 0.9] if updates else [1.3, 1.0]
    grid = figure.add_gridspec(len(heights), max(len(updates), 1), height_ratios=heights)
    above = figure.add_subplot(grid[0, :])
    _draw_validation(above, frame)
    below = figure.add_subplot(grid[1, :], sharex=above)
    _draw_line(below, frame, "ep_rew_mean", 1.0)
    below.set_ylabel("Episode reward")
    above.tick_params(labelbottom=False)
    for column, name in enumerate(updates):
        label, factor = UPDATES[name]
        axes = figure.add_subplot(grid[2, column])
        _draw_line(axes, frame, name, factor)
        axes.set_title(label, fontsize=9)
        axes.yaxis.set_major_locator(MaxNLocator(4))
    _finish(figure.axes, frame)
    return _png(figure)


def action_mix_png(frame: pl.DataFrame, title: str) -> bytes:
    """What the policy does while it learns.

    Shares of each choice for brackets, parts with a single choice left out; for weights the mean
    of each instrument, and how many lie at a bound. A row says what was done since the one before.

    Args:
        frame: `Diagnostics.frame()`; without rows of actions the picture says so.
        title: shown as it is.
    """
    parts = {key: _columns(frame, f"action/{key}_") for key in ACTION_KEYS}
    parts = {key: names for key, names in parts.items() if len(names) > 1}
    means = _columns(frame, "action/weight_mean_")
    if parts:
        figure = _figure(1.2 + 1.4 * len(parts), title)
        heights = [1.6] + [1.0] * (len(parts) - 1)
        drawn = figure.subplots(len(parts), sharex=True, squeeze=False, height_ratios=heights)
        panels = list(drawn[:, 0])
        for axes, (key, names) in zip(panels, parts.items(), strict=True):
            _draw_shares(axes, frame, key, names)
    elif means:
        figure = _figure(5.2, title)
        panels = list(figure.subplots(2, sharex=True, height_ratios=[2.2, 1.0]))
        _draw_weights(panels[0], frame, means)
        _draw_line(panels[1], frame, "action/at_bound", 1.0)
        panels[1].set_ylabel("At a bound")
        panels[1].set_ylim(0, 1)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        figure = _figure(2.0, title)
        panels = [figure.add_subplot()]
        _say(panels[0], "no actions were recorded")
    _finish(panels, frame)
    return _png(figure)


def _figure(height_inches: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False, fontsize=11)
    return figure


def _png(figure: Figure) -> bytes:
    figure.align_ylabels()
    drawn = BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()


def _finish(panels: Sequence[Axes], frame: pl.DataFrame) -> None:
    """Frames from 0 to the last row in all panels."""
    end = max(frame["frames"].to_list(), default=1_000)
    for axes in panels:
        axes.set_xlim(0, end)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(labelsize=8)
        place = axes.get_subplotspec()
        if place is not None and place.is_last_row():
            axes.set_xlabel("Frames", fontsize=9)


def _taken(frame: pl.DataFrame, name: str) -> bool:
    return name in frame.columns and len(_points(frame, name)[0]) > 0


def _columns(frame: pl.DataFrame, prefix: str) -> list[str]:
    """Names that begin so: directions in their order, numbers in theirs."""
    found = [name for name in frame.columns if name.startswith(prefix)]
    order = {direction: number for number, direction in enumerate(DIRECTIONS)}

    def place(name: str) -> int:
        last = name.removeprefix(prefix)
        return order[last] if last in order else int(last)

    return sorted(found, key=place)


def _points(frame: pl.DataFrame, name: str) -> tuple[FloatArray, FloatArray]:
    """Frames and values of all rows that have a finite value."""
    rows = frame.select("frames", name).drop_nulls()
    at, values = rows["frames"].to_numpy().astype(np.float64), rows[name].to_numpy()
    return at[np.isfinite(values)], values[np.isfinite(values)]


def _draw_line(axes: Axes, frame: pl.DataFrame, name: str, factor: float) -> None:
    if not _taken(frame, name):
        _say(axes, "none yet")
        return
    at, values = _points(frame, name)
    axes.plot(at, factor * values, color=BLUE, linewidth=1.2, marker="." if len(at) < 3 else None)
    axes.grid(alpha=0.3)


def _draw_validation(axes: Axes, frame: pl.DataFrame) -> None:
    axes.set_ylabel("Validation return")
    if not _taken(frame, "validation_return"):
        _say(axes, "no look at validation yet")
        return
    at, values = _points(frame, "validation_return")
    best = int(values.argmax())  # the first of equals, as the trainer keeps it
    axes.plot(at, values, color=BLUE, linewidth=1.2, marker="o", markersize=3, clip_on=False)
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.plot(at[best], values[best], color=ORANGE, marker="*", markersize=13, clip_on=False)
    axes.annotate(
        f"best: {values[best]:.2%} after {at[best]:,.0f} frames",
        (at[best], values[best]),
        xytext=(0, 8),  # nothing lies above the best
        textcoords="offset points",
        ha="right" if at[best] > at[-1] / 2 else "left",
        va="bottom",
        fontsize=8,
    )
    axes.margins(y=0.25)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)


def _draw_shares(axes: Axes, frame: pl.DataFrame, key: str, names: Sequence[str]) -> None:
    rows = frame.select("frames", *names).drop_nulls()
    choices = [name.removeprefix(f"action/{key}_") for name in names]
    labels = choices if key == "direction" else [f"choice {choice}" for choice in choices]
    blues = colormaps["Blues"](np.linspace(0.25, 0.9, len(names)))
    at = np.concatenate([[0], rows["frames"].to_numpy()])
    shares = rows.select(names).to_numpy().T
    axes.stackplot(
        at,
        np.concatenate([shares[:, :1], shares], axis=1),
        step="pre",
        labels=labels,
        colors=[DIRECTION_COLORS[c] for c in choices] if key == "direction" else list(blues),
        linewidth=0,
    )
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(key.replace("_", " ").capitalize(), fontsize=9)
    # From the top down as the areas lie.
    axes.legend(reverse=True, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_weights(axes: Axes, frame: pl.DataFrame, names: Sequence[str]) -> None:
    if len(names) <= MOST_LINES:
        for number, name in enumerate(names):
            at, values = _points(frame, name)
            axes.plot(at, values, linewidth=1.2, label=f"instrument {number}")
        axes.axhline(0.0, color=GREY, linewidth=0.8)
        axes.set_ylabel("Mean weight")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.grid(alpha=0.3)
        return
    rows = frame.select("frames", *names).drop_nulls()
    means = rows.select(names).to_numpy().T
    largest = float(np.abs(means).max()) or 1.0
    mesh = axes.pcolormesh(
        np.concatenate([[0], rows["frames"].to_numpy()]),
        np.arange(len(names) + 1) - 0.5,
        means,
        cmap="PuOr",  # orange is short here, too
        vmin=-largest,
        vmax=largest,
    )
    axes.set_ylabel("Instrument")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.figure.colorbar(mesh, ax=axes, label="Mean weight", pad=0.01)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_yticks([])
