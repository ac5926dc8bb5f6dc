"""The bars and features of any range of stored series, held against their manifests.

The rows are those that an experiment's dataset would have; rows before the range stay in the
dataset, because a rule's averages may reach back to them. Start at `check_range` and `assemble`.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from trade_pipeline.backtest.instants import day, instant
from trade_pipeline.features.assemble import read_segments
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.features.table import feature_table
from trade_pipeline.market.calendars import DAY_MS
from trade_pipeline.market.coverage import Manifest, Slice
from trade_pipeline.market.stored import read_grids, read_manifest
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage.frames import StorageError
from trade_pipeline.training.assemble import bar_versions, read_inputs
from trade_pipeline.training.dataset import Dataset, SeriesInput, align
from trade_pipeline.training.splits import Rows, long_enough

MOST_SLICES, MOST_DAYS = 8, 5  # named in one sentence
SpanMs = tuple[int, int]


def check_range(
    store: Path, series: Iterable[SeriesSettings], span_ms: SpanMs, origin: str
) -> list[str]:
    """Hold a range against the slices of each series.

    Args:
        store: the store's folder.
        series: which.
        span_ms: [start, end) in ms.
        origin: who asks, as errors name it.

    Returns:
        A sentence for each gap between slices inside the range.

    Raises:
        StorageError: a series has no manifest.
        SettingsError: the range begins or ends outside of all slices of a series.
    """
    said = []
    for one in series:
        manifest = read_manifest(store, one.key)
        for name, at_ms in (("from", span_ms[0]), ("to", span_ms[1])):
            # The end is no part of the range: its last instant must lie in a slice.
            inside = at_ms if name == "from" else at_ms - 1
            if not any(_begins(part) <= inside < _ends(part) for part in manifest.slices):
                raise SettingsError(
                    f"{origin}: key {name!r}: {'the last day before ' if name == 'to' else ''}"
                    f"{instant(at_ms)} lies in no slice of {one.key}; {_slices(manifest)}"
                )
        said += _gaps(one.key, manifest, span_ms)
    return said


def check_bars(store: Path, series: Iterable[SeriesSettings], span_ms: SpanMs, origin: str) -> None:
    """Refuse a range without a bar of some series, as a weekend is where markets close then.

    Args:
        store: the store's folder.
        series: which.
        span_ms: [start, end) in ms.
        origin: who asks, as errors name it.

    Raises:
        SettingsError: names the series, and the nearest bars before and after the range.
        StorageError: bars or manifest are missing, or do not fit each other.
    """
    start_ms, end_ms = span_ms
    for one in series:
        ts = pl.concat(read_grids(store, one))["ts"].dt.timestamp("ms")
        before, after = ts.filter(ts < start_ms).max(), ts.filter(ts >= end_ms).min()
        if ts.is_between(start_ms, end_ms, closed="left").any():
            continue
        found = [
            f"the {which} opens at {instant(int(at))}"  # type: ignore[arg-type]
            for which, at in (("last one before", before), ("next one after", after))
            if at is not None
        ]
        raise SettingsError(
            f"{origin}: the range from {instant(start_ms)} to {instant(end_ms)} holds no bar of "
            f"{one.key}; {', '.join(found)} (UTC). Widen the range."
        )


def assemble(
    store: Path,
    project: Project,
    series: Sequence[SeriesSettings],
    features: tuple[str, FeatureSet] | None,
    span_ms: SpanMs,
    origin: str,
) -> Dataset:
    """The dataset of some series, as an experiment's is made, without folds.

    Args:
        store: the store's folder.
        project: series settings by key.
        series: they become the instruments.
        features: name of a set and the set; None takes bars alone.
        span_ms: [start, end) in ms, what comes before the range included.
        origin: who asks, as errors name it.

    Raises:
        StorageError: a manifest or feature table is missing or older than the bars.
        SplitError: the series share no rows.
    """
    keys = [one.key for one in series]
    if features is None:
        inputs = []
        for one in series:
            grids = read_grids(store, one, as_stored=True)
            inputs.append(SeriesInput(one, grids, pl.concat(grids).select("ts")))
        return align(
            inputs,
            (),
            lookback=0,
            scaling="none",
            span_ms=span_ms,
            input_versions=bar_versions(store, keys),
            origin=origin,
        )
    name, feature_set = features
    inputs, versions = read_inputs(store, project, keys, name, feature_set.references, origin)
    for given in inputs:
        _require_fresh(store, project, name, feature_set, given, span_ms[1], origin)
    return align(
        inputs,
        feature_set.names,
        lookback=feature_set.lookback,
        scaling=feature_set.scaling,
        span_ms=span_ms,
        input_versions=versions,
        origin=origin,
    )


def rows_from(dataset: Dataset, start_ms: int, window: int, origin: str) -> Rows:
    """Segments [K, 2] of the rows that open at `start_ms` or later.

    Raises:
        SettingsError: none of them holds an episode of this window; the message has the numbers.
    """
    first = int(np.searchsorted(dataset.ts, start_ms))
    rows = np.maximum(dataset.segments, first)
    rows = np.ascontiguousarray(rows[rows[:, 1] > rows[:, 0]])
    if not len(long_enough(rows, window)):
        longest = int((rows[:, 1] - rows[:, 0]).max(initial=0))
        lost = ""
        if dataset.lookback:
            lost = f" {_no_features(dataset)}, which look back that far."
        raise SettingsError(
            f"{origin}: the range is too short: it has {int((rows[:, 1] - rows[:, 0]).sum())} rows "
            f"in {len(rows)} slice(s), the longest of {longest}, but a window of {window} needs "
            f"{window + 2} in one slice.{lost} Widen the range."
        )
    return rows


def notes_on_rows(dataset: Dataset, rows: Rows, start_ms: int, window: int) -> list[str]:
    """What of the range is not traded, beside its gaps.

    Args:
        dataset: whose features the rows need, if any.
        rows: as `rows_from` gives them.
        start_ms: of the range.
        window: rows of an observation.
    """
    said = []
    short = [(a, b) for a, b in rows.tolist() if b - a < window + 2]
    if short:
        named = ", ".join(
            f"{day(int(dataset.ts[a]))} to {day(int(dataset.ts[b - 1]))}"
            for a, b in short[:MOST_DAYS]
        )
        said.append(
            f"{len(short)} slice(s) with fewer rows than the {window + 2} that a window of "
            f"{window} needs are left out: {named}{_and_more(len(short) - MOST_DAYS)}."
        )
    begin = set(dataset.segments[:, 0].tolist())
    late = [
        day(int(dataset.ts[a]))
        for a in rows[:, 0].tolist()
        if dataset.lookback and a in begin and dataset.ts[a] >= _midnight(start_ms) + DAY_MS
    ]
    if late:
        named = ", ".join(late[:MOST_DAYS])
        said.append(
            f"{_no_features(dataset)}: rows begin on {named}{_and_more(len(late) - MOST_DAYS)}."
        )
    return said


def _require_fresh(
    store: Path,
    project: Project,
    name: str,
    feature_set: FeatureSet,
    given: SeriesInput,
    end_ms: int,
    origin: str,
) -> None:
    """Refuse a feature table that is not what today's bars and settings give.

    Rows after the range are not looked at: bars that came since need not have features yet.

    Raises:
        StorageError: names the set, the series and the first row that differs.
    """
    key = given.settings.key
    segments = read_segments(store, key, project.series, feature_set)
    end = pl.lit(end_ms).cast(pl.Datetime("ms", "UTC"))
    made = feature_table(segments, feature_set).filter(pl.col("ts") < end)
    stored = given.features
    if stored.columns == made.columns:
        stored = stored.filter(pl.col("ts") < end)
        if stored.equals(made):
            return
        rows = min(stored.height, made.height)
        same = np.logical_and.reduce(
            [stored[one][:rows].to_numpy() == made[one][:rows].to_numpy() for one in made.columns]
        )
        at = int(np.argmin(same)) if not same.all() else rows
        longer = made if at < made.height else stored
        what = f"from {longer['ts'][at]:%Y-%m-%d %H:%M} on"
    else:
        what = f"it has columns {', '.join(stored.columns[1:])}"
    raise StorageError(
        f"{origin}: features/{name} of {key} are not those of the bars, manifest and settings of "
        f"now ({what}); materialize features/{name} of {key} again."
    )


def _begins(part: Slice) -> int:
    """The start of the UTC day of a slice's first bar."""
    return _midnight(part.start_ms)


def _ends(part: Slice) -> int:
    """The end of the UTC day of its last bar."""
    return _midnight(part.end_ms - 1) + DAY_MS


def _slices(manifest: Manifest) -> str:
    """What there is, first to last day of each."""
    found = [f"{day(one.start_ms)} to {day(one.end_ms - 1)}" for one in manifest.slices]
    if not found:
        return "its manifest has none: no stretch of good days is long enough."
    half = MOST_SLICES // 2
    if len(found) > MOST_SLICES:
        found = [*found[:half], f"{len(found) - 2 * half} more", *found[-half:]]
    return f"it has bars, first to last day, from {', '.join(found)}."


def _gaps(key: str, manifest: Manifest, span_ms: SpanMs) -> list[str]:
    said = []
    for before, after in pairwise(manifest.slices):
        if before.end_ms >= span_ms[1] or after.start_ms <= span_ms[0]:
            continue
        first, last = _midnight(before.end_ms), _midnight(after.start_ms)
        why = [
            f"{one.day} ({one.reason})"
            for one in manifest.excluded_days
            if day(first) <= str(one.day) <= day(last)
        ]
        named = ", ".join(why[:MOST_DAYS]) + _and_more(len(why) - MOST_DAYS)
        said.append(
            f"{key} has no slice between {instant(before.end_ms - 1)} and "
            f"{instant(after.start_ms)}, and nothing is held over it"
            + (f"; excluded: {named}." if why else ".")
        )
    return said


def _no_features(dataset: Dataset) -> str:
    return f"The first {dataset.lookback} bars of a slice have no features"


def _midnight(ms: int) -> int:
    """The start of the UTC day that an instant lies in."""
    return ms // DAY_MS * DAY_MS


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
