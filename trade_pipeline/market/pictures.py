"""Pictures of a series' coverage for people who look at a run.

Draws on a canvas of its own, without pyplot's global state; equal days give equal bytes.
Start at `coverage_png(days)`.
"""

import io
from datetime import date

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Told apart by people who see no red and green, and in print: good days are blue and darken with
# what is known of them, excluded ones are orange and darken with what is not.
GOOD = LinearSegmentedColormap.from_list("good", ["#b9d7ee", "#0b4a8f"])
EXCLUDED = LinearSegmentedColormap.from_list("excluded", ["#7a1f02", "#fdc38d"])
NOTHING_EXPECTED = "#e4e4e4"
BEYOND = "#ffffff"  # before the first and after the last day
LEAST_GOOD = 0.95  # good days of less have the palest blue
DAYS_OF_YEAR = 366
_MONTHS = ("J", "F", "M", "A", "M", "J", "J", "A", "S", "O", "N", "D")


def coverage_png(days: pl.DataFrame) -> bytes:
    """A calendar, one line a year and one cell a day, as PNG of less than 100 KB.

    A day's colour says whether it is good and how many of its expected bars are known: traded, or
    confirmed to be quiet.

    Args:
        days: `Coverage.days`; may be empty.
    """
    cells, first = _cells(days)
    figure = Figure(figsize=(10, 1.5 + 0.24 * len(cells)), dpi=100, layout="constrained")
    calendar, scales = figure.subplots(2, 1, height_ratios=[0.24 * len(cells) + 0.3, 0.12])
    _draw_calendar(calendar, cells, first)
    good, expected = int(days["good"].sum()), int(days["expected"].sum())
    known = int(days["traded"].sum()) + int(days["quiet"].sum())
    share = f"{known / expected:.2%}".replace("%", " %") if expected else "none"
    calendar.set_title(
        f"{good} good of {days.height} days, {share} of the expected bars known", fontsize=10
    )
    _draw_scales(scales)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _cells(days: pl.DataFrame) -> tuple[npt.NDArray[np.uint8], int]:
    """Colours [years, 366, 3] of all days, and the first year (0 without days)."""
    if days.is_empty():
        return np.full((1, DAYS_OF_YEAR, 3), _rgb(BEYOND), dtype=np.uint8), 0
    years = days["day"].dt.year().to_numpy()
    first = int(years[0])
    cells = np.full((int(years[-1]) - first + 1, DAYS_OF_YEAR, 3), _rgb(BEYOND), dtype=np.uint8)
    covered = pl.date_range(days["day"][0], days["day"][-1], eager=True)
    cells[_places(covered, first)] = _rgb(NOTHING_EXPECTED)
    known = 1 - days["unknown"].to_numpy() / days["expected"].to_numpy()
    good = days["good"].to_numpy()[:, np.newaxis]
    blue = GOOD((known - LEAST_GOOD) / (1 - LEAST_GOOD), bytes=True)
    cells[_places(days["day"], first)] = np.where(good, blue, EXCLUDED(known, bytes=True))[:, :3]
    return cells, first


def _places(days: pl.Series, first: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]:
    """Line and column of each day."""
    return days.dt.year().to_numpy() - first, days.dt.ordinal_day().to_numpy() - 1


def _draw_calendar(axes: Axes, cells: npt.NDArray[np.uint8], first: int) -> None:
    axes.imshow(cells, aspect="auto", interpolation="nearest")
    months = [date(2024, month, 1).timetuple().tm_yday - 1.5 for month in range(1, 13)]
    axes.set_xticks([*months, DAYS_OF_YEAR - 0.5], [""] * 13)
    axes.set_xticks([start + 15 for start in months], _MONTHS, minor=True)
    axes.tick_params(axis="x", which="minor", length=0)
    lines = range(0, len(cells), max(1, len(cells) // 25))
    axes.set_yticks(list(lines), [str(first + line) if first else "" for line in lines])


def _draw_scales(axes: Axes) -> None:
    """What the colours mean, in place of a legend."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    ramp = np.linspace(0, 1, 64)[np.newaxis]
    scales = (
        (0.02, EXCLUDED, "excluded day: 0 %", "100 % known"),
        (0.42, GOOD, f"good day: {LEAST_GOOD:.0%} or less".replace("%", " %"), "100 % known"),
    )
    for left, colours, low, high in scales:
        start = left + 0.13
        axes.imshow(ramp, cmap=colours, extent=(start, start + 0.1, 0, 1), aspect="auto")
        axes.text(start - 0.008, 0.5, low, ha="right", va="center", fontsize=8)
        axes.text(start + 0.108, 0.5, high, ha="left", va="center", fontsize=8)
    axes.add_patch(Rectangle((0.8, 0), 0.02, 1, facecolor=NOTHING_EXPECTED))
    axes.text(0.83, 0.5, "no bar expected", ha="left", va="center", fontsize=8)
    axes.set_xlim(0, 1)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return red, green, blue
