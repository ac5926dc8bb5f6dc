"""Feature tables: the indicators of a set over segments of contiguous bars.

Pure functions over frames: no storage, no manifest, no scaling. Start at `feature_table`.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from trade_pipeline.features.indicator import TIMES, Array
from trade_pipeline.features.plugins.specification import told
from trade_pipeline.features.registry import FeatureSet, Member

TS = pl.Datetime("ms", "UTC")


class FeatureError(ValueError):
    """Bars or an indicator broke a rule; the message names segment, row, column and what to do."""


def feature_table(segments: Sequence[pl.DataFrame], feature_set: FeatureSet) -> pl.DataFrame:
    """Features of every bar that has `feature_set.lookback` bars before it in its segment.

    Nothing carries over from one segment to the next. The table of a prefix of the bars is the
    prefix of the table, to the last bit, whatever the number of polars threads.

    Args:
        segments: frames in order of time, each of contiguous bars: `ts` Datetime(ms, UTC) and
            Float64 `open high low close volume`, prices already adjusted; where members read
            them also `close_ts` and columns of other series (`references.with_references`); other
            columns are ignored. One not longer than the lookback gives no rows.
        feature_set: see `registry.resolve`.

    Returns:
        `ts` and one Float32 column a feature, without null, NaN or infinity; `ts` increases.

    Raises:
        FeatureError: bars out of order or not finite, or an indicator that breaks its declaration.
    """
    parts = [_empty_table(feature_set)]
    for position, segment in enumerate(segments):
        parts.append(_segment_table(segment, feature_set, f"segment {position}"))
    table = pl.concat(parts, rechunk=True)
    _check_order(table["ts"], "the segments together")
    return table


def _empty_table(feature_set: FeatureSet) -> pl.DataFrame:
    columns = {name: pl.Float32() for name in feature_set.names}
    return pl.DataFrame(schema=pl.Schema({"ts": TS, **columns}))


def _segment_table(segment: pl.DataFrame, feature_set: FeatureSet, label: str) -> pl.DataFrame:
    times = segment["ts"]
    if times.dtype != TS:
        raise FeatureError(f"{label}: ts is {times.dtype}; cast it to Datetime in ms, UTC.")
    _check_order(times, label)
    lookback = feature_set.lookback
    wanted = sorted({name for member in feature_set.members for name in member.inputs})
    bars = {name: _input(segment, name, label) for name in wanted}
    if times.len() <= lookback:
        return _empty_table(feature_set)
    columns = {"ts": times.slice(lookback)}
    for member in feature_set.members:
        for name, values in _outputs(member, bars, label).items():
            # A value beyond Float32 becomes infinite here and is named below.
            with np.errstate(over="ignore"):
                kept = values[lookback:].astype(np.float32)
            wrong = np.flatnonzero(~np.isfinite(kept))
            if wrong.size:
                raise FeatureError(
                    f"{label}, row {lookback + wrong[0]} ({columns['ts'][int(wrong[0])]}): "
                    f"{name} is {values[lookback + wrong[0]]}; features must be finite after the "
                    f"set's lookback of {lookback} bars. Correct the bars, or indicator "
                    f"{member.indicator.name!r} (its lookback or a division by zero)."
                )
            columns[name] = pl.Series(name, kept)
    return pl.DataFrame(columns)


def _input(segment: pl.DataFrame, name: str, label: str) -> Array:
    """One column as float64, checked: a single NaN would poison the rest of the segment."""
    if name not in segment.columns:
        raise FeatureError(f"{label}: its bars have no column {name}, which an indicator reads.")
    column = segment[name].dt.epoch("ms") if name in TIMES else segment[name]
    column = column.cast(pl.Float64)
    values = column.fill_null(np.nan).to_numpy()
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        row = int(wrong[0])
        raise FeatureError(
            f"{label}, row {row} ({segment['ts'][row]}): {name} is {column[row]}; features need "
            "finite bars. End the segment before it or correct the bar."
        )
    values.flags.writeable = False  # members share it
    return values


def _outputs(member: Member, bars: dict[str, Array], label: str) -> dict[str, Array]:
    """Compute one member and hold it to its declaration."""
    inputs = {name: bars[name] for name in member.inputs}
    try:
        outputs = member.compute(inputs)
        got = {name: values.shape for name, values in outputs.items()}
    except Exception as error:
        if member.plugin is None:
            raise
        raise FeatureError(
            f"{label}: plug-in indicator {member.indicator.name!r} fails: {told(error)}. Correct "
            "it; `trade-pipeline indicators check` shows where."
        ) from error
    shape = next(iter(inputs.values())).shape
    if got != dict.fromkeys(member.names, shape):
        raise FeatureError(
            f"{label}: indicator {member.indicator.name!r} gave {got}; it declares "
            f"{list(member.names)}, each of shape {shape}. Correct its `outputs` or `compute`."
        )
    return {name: outputs[name] for name in member.names}


def _check_order(times: pl.Series, label: str) -> None:
    steps = np.diff(times.to_physical().to_numpy())
    wrong = np.flatnonzero(steps <= 0)
    if wrong.size:
        row = int(wrong[0]) + 1
        raise FeatureError(
            f"{label}, row {row}: ts {times[row]} follows {times[row - 1]}; sort the bars and "
            "remove duplicates."
        )
