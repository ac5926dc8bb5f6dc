"""Pictures of a series' coverage for people who look at a run.

Draws on a canvas of its own, without pyplot's global state; equal days give equal bytes.
Start at `coverage_png(days)`.
"""

import io
from datetime import date

import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

KINDS = (
    ("no bar expected", "#f2f2f2"),
    ("good", "#2a9d5c"),
    ("good, some bars unknown", "#b5d99c"),
    ("excluded", "#d1495b"),
)
_MONTHS = ("J", "F", "M", "A", "M", "J", "J", "A", "S", "O", "N", "D")


def coverage_png(days: pl.DataFrame) -> bytes:
    """A calendar, one line a year and one cell a day, as PNG of less than 100 KB.

    Args:
        days: `Coverage.days`; may be empty.
    """
    years = days["day"].dt.year().unique().sort().to_list()
    first = years[0] if years else 0
    cells = np.zeros((years[-1] - first + 1 if years else 1, 366), dtype=np.int8)
    good = pl.when(pl.col("unknown") == 0).then(1).otherwise(2)
    marked = days.select(
        line=pl.col("day").dt.year() - first,
        cell=pl.col("day").dt.ordinal_day() - 1,
        kind=pl.when(pl.col("good")).then(good).otherwise(3),
    )
    cells[marked["line"].to_numpy(), marked["cell"].to_numpy()] = marked["kind"].to_numpy()

    figure = Figure(figsize=(9, 1.2 + 0.22 * len(cells)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    colours = ListedColormap([colour for _, colour in KINDS])
    axes.imshow(cells, cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest")
    axes.set_xticks([date(2024, m, 1).timetuple().tm_yday - 1 for m in range(1, 13)], _MONTHS)
    lines = range(0, len(cells), max(1, len(cells) // 25))
    axes.set_yticks(list(lines), [str(first + line) if years else "" for line in lines])
    good_days = int(days["good"].sum())
    axes.set_title(f"{good_days} good of {days.height} days with expected bars", fontsize=10)
    figure.legend(
        handles=[Patch(color=colour, label=label) for label, colour in KINDS],
        loc="outside lower center",
        ncols=len(KINDS),
        fontsize=8,
        frameon=False,
    )
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
