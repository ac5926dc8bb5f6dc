"""The causality check of a feature set: sampled, seconds long, the same rows every time.

Each member is computed by itself, on arrays. Four samples of the segments:

- a stretch of 1,000 consecutive rows, on an excerpt that begins the member's lookback before it:
  every prefix is tried, so that a leak of one row in a thousand has nowhere to hide;
- a few prefixes of whole segments, for what reaches further than the excerpt;
- excerpts spread over the data, each with and without bars after it, for what happens elsewhere;
- the same excerpts against the values of whole segments: the lookback must be honest.

Values must agree to the last float64 bit, and so do those that a table stores. Knows no files and
no Dagster. Start at `check_feature_set`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from trade_pipeline.features.causality import (
    DECAY_SCHEMA,
    WARM_UP_TOLERANCE,
    Columns,
    Compute,
    columns_of,
    distance,
    lag_decay,
    scale_of,
)
from trade_pipeline.features.indicator import Array
from trade_pipeline.features.registry import FeatureSet, Member

CHECK_SCHEMA = pl.Schema(
    {
        "kind": pl.String(),
        "column": pl.String(),
        "segment": pl.Int64(),
        "row": pl.Int64(),
        "ts": pl.Datetime("ms", "UTC"),
        "cut": pl.Int64(),
        "whole": pl.Float64(),
        "prefix": pl.Float64(),
        "problem": pl.String(),
    }
)
Kind = Literal["look-ahead", "warm-up", "repeat", "rows", "error"]

# Multiples of the golden ratio spread evenly, however many are taken, and lock to no period.
GOLDEN = (5**0.5 - 1) / 2
TAIL = 64  # bars after an excerpt's last cut: what its values must not see


@dataclass(frozen=True)
class Sampling:
    """How much is tried; the defaults take seconds on a year of minute bars.

    Attributes:
        stretch: consecutive rows of which every prefix is tried.
        prefixes: of whole segments.
        excerpts: spread over the data.
        tolerance: of the lookback, in standard deviations of the column.
    """

    stretch: int = 1_000
    prefixes: int = 3
    excerpts: int = 100
    tolerance: float = WARM_UP_TOLERANCE


@dataclass(frozen=True)
class Part:
    """What is computed and checked at once.

    Attributes:
        names: columns it gives.
        lookback: bars before a value's own that it declares to read.
        compute: columns [T] float64 to columns [T] float64.
    """

    names: tuple[str, ...]
    lookback: int
    compute: Compute


@dataclass(frozen=True)
class CausalityCheck:
    """What was found, and in how much.

    Attributes:
        violations: one row per kind and column at fault, for the first bad row found: `kind`,
            `column`, `segment` and `row` in it, `ts`, `cut` (bars of the prefix, counted from the
            segment's first), `whole` and `prefix` (the two values, null where there is none),
            `problem` (a sentence). Kinds: `look-ahead` (a value changes when later bars arrive),
            `warm-up` (it rests on more bars than declared), `repeat` (it changes when computed
            again), `rows` (rows or the column vanish), `error` (it raises).
        decay: `causality.lag_decay` of every column; a hint, never a violation.
        rows: bars in the segments.
        cuts: prefixes computed, over all members.
        seconds: how long it took.
    """

    violations: pl.DataFrame
    decay: pl.DataFrame
    rows: int
    cuts: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return self.violations.is_empty()


class _Violation(NamedTuple):
    """One row of `CHECK_SCHEMA` without its `ts`."""

    kind: Kind
    column: str
    segment: int
    row: int
    cut: int
    whole: float | None
    prefix: float | None
    problem: str


class _BrokenError(Exception):
    """A part gave no columns to compare."""

    def __init__(self, kind: Kind, column: str, row: int, problem: str) -> None:
        super().__init__(problem)
        self.kind: Kind = kind
        self.column = column
        self.row = row


def check_feature_set(
    segments: Sequence[pl.DataFrame],
    feature_set: FeatureSet,
    sampling: Sampling = Sampling(),
    clock: Callable[[], float] = time.perf_counter,
) -> CausalityCheck:
    """Try whether a set's columns look ahead or rest on more bars than they declare.

    Args:
        segments: as for `table.feature_table`, with every column that the members read.
        feature_set: see `registry.resolve`.
        sampling: how much is tried.
        clock: seconds; says how long it took and decides nothing.

    Returns:
        See `CausalityCheck`; the same for the same arguments, `seconds` aside.
    """
    return check_parts(
        segments, [part_of(member) for member in feature_set.members], sampling, clock
    )


def part_of(member: Member) -> Part:
    """A member as what is checked."""

    def compute(columns: Columns) -> dict[str, Array]:
        return member.compute({name: columns[name] for name in member.inputs})

    return Part(member.names, member.lookback, compute)


def check_parts(
    segments: Sequence[pl.DataFrame],
    parts: Sequence[Part],
    sampling: Sampling = Sampling(),
    clock: Callable[[], float] = time.perf_counter,
) -> CausalityCheck:
    """`check_feature_set` of anything that gives columns."""
    began = clock()
    columns = [columns_of(segment) for segment in segments]
    lengths = [segment.height for segment in segments]
    found: list[_Violation] = []
    decays = [pl.DataFrame(schema=DECAY_SCHEMA)]
    cuts = 0
    for part in parts:
        run = _Run(part, columns, lengths, sampling)
        run.check()
        found += run.found
        cuts += run.cuts
        decays += run.decays
    return CausalityCheck(
        violations=_table(found, segments),
        decay=pl.concat(decays),
        rows=sum(lengths),
        cuts=cuts,
        seconds=clock() - began,
    )


class _Run:
    """The check of one part."""

    def __init__(
        self, part: Part, columns: Sequence[Columns], lengths: Sequence[int], sampling: Sampling
    ) -> None:
        self.part = part
        self.columns = columns
        self.lengths = lengths
        self.sampling = sampling
        self.cuts = 0
        self.found: list[_Violation] = []
        self.decays: list[pl.DataFrame] = []

    def check(self) -> None:
        """Fill `found`, `cuts` and `decays`."""
        for segment, first, cuts, end in self._stretches():
            self._prefixes(segment, first, cuts, end)
        sampled = self._whole_prefixes()
        for segment, cuts in sampled.items():
            whole = self._prefixes(segment, 0, cuts, self.lengths[segment])
            if whole is not None:
                self._excerpts(segment, whole, -(-self.sampling.excerpts // len(sampled)))
                if "close" in self.columns[segment] and not self.decays:
                    self.decays.append(lag_decay(whole, self.columns[segment]["close"]))

    def _stretches(self) -> Iterator[tuple[int, int, list[int], int]]:
        """Excerpts whose every prefix is tried: segment, first row, cuts in it, end row.

        Of the longest segment, and of further ones while they are too short.
        """
        wanted, lookback = self.sampling.stretch, self.part.lookback
        # A prefix within the warm-up has nothing to say, unless the warm-up is filled from later.
        early = [2**power for power in range(lookback.bit_length()) if 2**power <= lookback]
        for segment in sorted(range(len(self.lengths)), key=lambda one: -self.lengths[one]):
            rows = self.lengths[segment]
            if wanted <= 0 or rows <= lookback:
                return
            needed = min(rows, lookback + wanted + TAIL)
            first = int(GOLDEN * (rows - needed))
            tried = min(needed - lookback, wanted)
            late = range(lookback + 1, lookback + tried + 1)
            yield segment, first, [*early, *late], first + needed
            wanted -= tried

    def _whole_prefixes(self) -> dict[int, list[int]]:
        """Segments and the cuts to try in them."""
        ends = np.cumsum(self.lengths)
        chosen: dict[int, list[int]] = {}
        for fraction in _spread(self.sampling.prefixes):
            if not len(ends) or ends[-1] == 0:
                break
            row = int(fraction * ends[-1])
            segment = int(np.searchsorted(ends, row, side="right"))
            cut = row - int(ends[segment]) + self.lengths[segment] + 1
            chosen.setdefault(segment, []).append(cut)
        return chosen

    def _prefixes(
        self, segment: int, first: int, cuts: Sequence[int], end: int
    ) -> dict[str, Array] | None:
        """Compute rows `first` to `end` and prefixes of them; gives the former, None if broken."""
        whole = self._values(segment, first, end)
        again = self._values(segment, first, end)
        if whole is None or again is None:
            return None
        problem = "differs when computed again from the same bars"
        unsteady = self._compare("repeat", segment, first, end, whole, again, problem)
        steady = {name: values for name, values in whole.items() if name not in unsteady}
        for cut in cuts:
            prefix = self._values(segment, first, first + cut)
            if prefix is None:
                break
            self._look_ahead(segment, first, first + cut, steady, prefix)
        return steady

    def _excerpts(self, segment: int, whole: dict[str, Array], count: int) -> None:
        """Excerpts of the lookback, with and without bars after them, beside all history."""
        lookback, rows = self.part.lookback, self.lengths[segment]
        scales = {name: scale_of(values) for name, values in whole.items()}
        for fraction in _spread(count if rows > lookback else 0):
            start = int(fraction * (rows - lookback))
            row = start + lookback
            near = self._values(segment, start, row + 1)
            far = self._values(segment, start, min(rows, row + 1 + TAIL))
            if near is None or far is None:
                return
            steady = {name: far[name] for name in whole}
            ahead = self._look_ahead(segment, start, row + 1, steady, near)
            for name, values in whole.items():
                if name in ahead:
                    continue
                one, other = float(values[row]), float(near[name][lookback])
                apart = distance(one, other, scales[name])
                if apart > self.sampling.tolerance:
                    problem = (
                        f"from {lookback} bars before lies {apart:.2g} standard deviations from "
                        "its value from all history; declare a longer lookback"
                    )
                    self.found.append(
                        _Violation("warm-up", name, segment, row, row + 1, one, other, problem)
                    )

    def _look_ahead(
        self, segment: int, first: int, end: int, whole: Columns, prefix: Columns
    ) -> set[str]:
        problem = f"changes when bars after the first {end} arrive"
        return self._compare("look-ahead", segment, first, end, whole, prefix, problem)

    def _compare(
        self,
        kind: Kind,
        segment: int,
        first: int,
        end: int,
        whole: Columns,
        other: Columns,
        problem: str,
    ) -> set[str]:
        """Note the columns that differ in rows `first` to `end`, and name them."""
        differ = set()
        for name, values in whole.items():
            row = first_difference(values[: end - first], other[name])
            if row is not None:
                differ.add(name)
                one, two = float(values[row]), float(other[name][row])
                self.found.append(
                    _Violation(kind, name, segment, first + row, end, one, two, problem)
                )
        return differ

    def _values(self, segment: int, first: int, end: int) -> dict[str, Array] | None:
        """The part's columns of rows `first` to `end`; what is wrong with them is noted."""
        self.cuts += 1
        bars = {name: values[first:end] for name, values in self.columns[segment].items()}
        try:
            return _declared(self.part, bars, end - first)
        except _BrokenError as error:
            row = first + error.row
            self.found.append(
                _Violation(error.kind, error.column, segment, row, end, None, None, str(error))
            )
            return None


def _declared(part: Part, bars: Columns, rows: int) -> dict[str, Array]:
    """Compute, and hold the result to what the part declares."""
    try:
        got = part.compute(bars)
    except Exception as error:
        problem = f"raises {type(error).__name__} on {rows} bars: {error}"
        raise _BrokenError("error", part.names[0], max(rows - 1, 0), problem) from error
    columns = {}
    for name in part.names:
        if name not in got:
            raise _BrokenError("rows", name, 0, f"is missing when computed from {rows} bars")
        values = np.ascontiguousarray(got[name], np.float64)
        if values.shape != (rows,):
            problem = f"has shape {values.shape} when computed from {rows} bars"
            raise _BrokenError("rows", name, min(values.size, rows - 1), problem)
        columns[name] = values
    return columns


def first_difference(one: Array, other: Array) -> int | None:
    """First row whose bits differ, of two contiguous float64 [T]; NaN equals NaN."""
    differ = one.view(np.int64) != other.view(np.int64)
    if differ.any():
        differ &= ~(np.isnan(one) & np.isnan(other))
        if differ.any():
            return int(differ.argmax())
    return None


def _spread(count: int) -> Iterator[float]:
    """So many fractions from 0 to 1."""
    return ((position * GOLDEN) % 1 for position in range(1, count + 1))


def _table(found: Sequence[_Violation], segments: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The first of each kind and column."""
    first: dict[tuple[str, str], _Violation] = {}
    for one in sorted(found, key=lambda one: (one.segment, one.row, one.cut)):
        first.setdefault((one.kind, one.column), one)
    rows = []
    for one in first.values():
        times = segments[one.segment]["ts"]
        ts = times[one.row] if one.row < times.len() else None
        rows.append((*one[:4], ts, *one[4:]))
    return pl.DataFrame(rows, schema=CHECK_SCHEMA, orient="row")
