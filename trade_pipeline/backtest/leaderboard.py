"""Leaderboard rows: the median seed of each policy's stitched test curve, beside the baselines.

The median, never the best: a row carries the seed in the middle with the worst and the best one
beside it. Start at `row` and `table`; `combine` reads finished reports.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from trade_pipeline.backtest.report.figures import NOTHING, number, percent
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import StorageError, read_frame

IMPLEMENTATION = 2
MEMBER = "leaderboard.parquet"
SCHEMA: dict[str, Any] = {
    "experiment": pl.String(),
    "name": pl.String(),
    "kind": pl.String(),
    "seeds": pl.Int64(),
    "median_seed": pl.Int64(),
    "folds": pl.Int64(),
    "sharpe": pl.Float64(),
    "sharpe_min": pl.Float64(),
    "sharpe_max": pl.Float64(),
    "sharpe_low": pl.Float64(),
    "sharpe_high": pl.Float64(),
    "deflated_sharpe": pl.Float64(),
    "trials_tried": pl.Int64(),
    "total_return": pl.Float64(),
    "total_return_min": pl.Float64(),
    "total_return_max": pl.Float64(),
    "max_drawdown": pl.Float64(),
    "turnover": pl.Float64(),
    "trades": pl.Int64(),
}
# Of the median seed; `low` and `high` bound its Sharpe ratio with 95 % (block bootstrap), and
# `deflated_sharpe` is the probability that it is above the best that chance gives so many trials.
PLAIN = ("sharpe", "sharpe_low", "sharpe_high", "total_return", "max_drawdown", "turnover")


def median_seed(figures: Mapping[int, Mapping[str, Any]]) -> int:
    """The seed in the middle by Sharpe ratio; of an even number the lower of the two.

    A seed without a Sharpe ratio counts as worse than any that has one.
    """

    def order(seed: int) -> tuple[bool, float, float, int]:
        values = figures[seed]["values"]
        ratio = values["sharpe"]
        return (ratio is not None, ratio or 0.0, values["total_return"] or 0.0, seed)

    ranked = sorted(figures, key=order)
    return ranked[(len(ranked) - 1) // 2]


def row(
    experiment: str,
    name: str,
    kind: str,
    figures: Mapping[int, Mapping[str, Any]],
    folds: int,
    significance: Mapping[str, Any],
) -> dict[str, Any]:
    """One row of the leaderboard.

    Args:
        experiment: its name.
        name: variant or baseline.
        kind: policy or baseline.
        figures: metrics of the stitched curve by seed; a baseline has the one seed 0.
        folds: number of test parts in each curve.
        significance: `deflated_sharpe` and `trials_tried` of a policy.
    """
    seed = median_seed(figures)
    values = figures[seed]["values"]
    spread = {}
    for key in ("sharpe", "total_return"):
        found = [one["values"][key] for one in figures.values()]
        known = [value for value in found if value is not None]
        if kind == "baseline":  # it has one seed, and a range of one says nothing
            known = []
        spread[f"{key}_min"] = min(known) if known else None
        spread[f"{key}_max"] = max(known) if known else None
    return {
        "experiment": experiment,
        "name": name,
        "kind": kind,
        "seeds": len(figures),
        "median_seed": seed if kind == "policy" else None,
        "folds": folds,
        **{key: values[key] for key in PLAIN},
        **{key: significance.get(key) for key in ("deflated_sharpe", "trials_tried")},
        **spread,
        "trades": values["trades"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a frame of `SCHEMA`, best Sharpe ratio of each experiment first."""
    frame = pl.DataFrame(list(rows), schema=SCHEMA, orient="row")
    return frame.sort(
        ["experiment", "sharpe", "name"], descending=[False, True, False], nulls_last=True
    )


class Combined(NamedTuple):
    """Rows of all reports that can be read, and a sentence for each that cannot."""

    table: pl.DataFrame
    broken: list[str]


def combine(store: Path, experiments: Sequence[str]) -> Combined:
    """Rows of every experiment that has a report; one that is broken takes only its own."""
    frames, broken = [pl.DataFrame(schema=SCHEMA)], []
    for name in experiments:
        home = layout.experiment_bundle(store, name, "report")
        try:
            if bundles.current_version(home) is None:
                continue
            frames.append(read_frame(bundles.current(home).child(MEMBER)))
        except StorageError as error:
            broken.append(
                f"{name}/report is left out of the leaderboard, as it cannot be read: {error} "
                f"Materialize {name}/report again."
            )
    return Combined(table(pl.concat(frames, how="diagonal").to_dicts()), broken)


def markdown(frame: pl.DataFrame) -> str:
    """The leaderboard as a markdown table; an undefined figure is an en dash."""
    head = [
        "experiment",
        "policy",
        "Sharpe (min to max)",
        "deflated Sharpe",
        "return (min to max)",
        "drawdown",
        "trades",
    ]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for one in frame.to_dicts():
        lines.append(
            " | ".join(
                [
                    one["experiment"],
                    one["name"] if one["kind"] == "policy" else f"{one['name']} (baseline)",
                    _ranged(one, "sharpe", number),
                    _deflated(one),
                    _ranged(one, "total_return", percent),
                    _text(one["max_drawdown"], percent),
                    _text(one["trades"], number),
                ]
            )
        )
    return "\n".join(f"| {line} |" for line in lines)


def _ranged(one: Mapping[str, Any], key: str, write: Callable[[float], str]) -> str:
    middle = _text(one[key], write)
    if one["kind"] != "policy":
        return middle
    return f"{middle} ({_text(one[f'{key}_min'], write)} to {_text(one[f'{key}_max'], write)})"


def _deflated(one: Mapping[str, Any]) -> str:
    """A probability, with how many trials it takes into account."""
    if one["deflated_sharpe"] is None:
        return NOTHING
    return f"{percent(one['deflated_sharpe'])} ({one['trials_tried']} trials)"


def _text(value: float | None, write: Callable[[float], str]) -> str:
    return NOTHING if value is None else write(value)
