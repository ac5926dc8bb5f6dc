"""What is tried on one indicator of a plug-in, inside a process that it may end.

Each finding is reported as it is made, so that those before a crash are kept. Start at
`try_indicator`.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import numpy as np
import polars as pl

from trade_pipeline.features.causality import columns_of, scale_of, warm_up_violations
from trade_pipeline.features.causality_check import Sampling, check_feature_set
from trade_pipeline.features.indicator import PRICES_AND_VOLUME, TIMES, Array, Indicator
from trade_pipeline.features.indicators import SHIPPED
from trade_pipeline.features.plugins.importing import PluginError, Source, import_indicators
from trade_pipeline.features.plugins.sample import sample_bars, still_bars
from trade_pipeline.features.plugins.specification import declaration_problem, parameters_text, told
from trade_pipeline.features.registry import FeatureSet, Member
from trade_pipeline.settings.base import Settings, SettingsError, parse_settings

Report = Callable[[Any], None]
OTHER_SERIES = ("sample.ONE.1m", "sample.TWO.1m")  # for a parameter that has no default
MOST_LOOKBACK = 200_000
LEAST_ROWS = 6_000
SPEED_ROWS = 100_000
PRICE_FACTOR = 1_000.0
LEVEL_TOLERANCE = 1e-6  # in standard deviations of the column
CAUSALITY_S = 10.0  # about what all prefixes may take
MOST_TRIES = 5  # until a computation was quick: the machine may be busy with others
CHECK_OF_KIND = {  # of what `check_feature_set` finds
    "look-ahead": "causal",
    "warm-up": "lookback",
    "rows": "outputs",
    "error": "outputs",
    "repeat": "deterministic",
}


class _BrokenError(Exception):
    """Nothing further can be tried; the message is the finding."""


def list_indicators(job: Mapping[str, Any], report: Report) -> None:
    """Report the names of a source's indicators, or why it has none."""
    try:
        found = import_indicators(Source(*job["source"]))
    except PluginError as error:
        report({"error": str(error)})
    else:
        names = [str(one.indicator.name) for one in found]
        report({"names": names, "left": _left_running()})


def digest_of(job: Mapping[str, Any], report: Report) -> None:
    """Report a hash of what one indicator gives."""
    member = _member(job)
    report({"digest": _digest(member, sample_bars(_rows(member), member.references))})


def try_indicator(job: Mapping[str, Any], report: Report) -> None:
    """Report lines `[check, verdict, detail]`, before each what is tried, and a hash at last."""
    trial = _Trial(report)
    try:
        trial.run(job)
    except _BrokenError as error:
        trial.say("fails", str(error))
    except BaseException as error:  # whatever the plug-in raised
        trial.say("fails", f"{told(error)}.")
    report({"at": "end"})


class _Trial:
    """The checks in their order; each raises or says what it found."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._check = "specification"

    def say(self, verdict: str, detail: str, check: str | None = None) -> None:
        """Report a line of the present check."""
        self._report({"line": [check or self._check, verdict, detail]})

    def run(self, job: Mapping[str, Any]) -> None:
        """Try everything on one indicator."""
        self._begin("specification")
        member = _member(job)
        indicator, lookback = member.indicator, member.lookback
        given = "the parameters given" if job["parameters"] else parameters_text(indicator)
        self.say("holds", f"{', '.join(member.names)}; lookback {lookback} bars; with {given}.")
        bars = sample_bars(_rows(member), member.references)
        columns = _inputs(member, bars)
        self._outputs(member, columns)
        self._untouched(member, columns)
        self._repeats(member, columns)
        self._finite(member, bars)
        self._constant(member, columns)
        self._speed(member)
        self._causality(member, bars)
        self._level(member, columns)
        self._report({"digest": _digest(member, bars)})

    def _begin(self, check: str) -> None:
        self._check = check
        self._report({"at": check})

    def _outputs(self, member: Member, columns: Mapping[str, Array]) -> None:
        """Declared names, each float64 of the bars' length, for any number of bars."""
        self._begin("outputs")
        most = _length(columns)
        for rows in sorted({0, 1, 2, member.lookback, member.lookback + 1, most}):
            part = {name: values[:rows].copy() for name, values in columns.items()}
            try:
                outputs = member.compute(part)
            except Exception as error:
                undeclared = _undeclared(error, member)
                if undeclared is not None:
                    raise _BrokenError(undeclared) from error
                raise _BrokenError(f"on {rows} bars it raises {told(error)}.") from error
            if not isinstance(outputs, dict) or set(outputs) != set(member.names):
                found = list(outputs) if isinstance(outputs, dict) else type(outputs).__name__
                raise _BrokenError(f"it gives {found}, but declares {list(member.names)}.")
            for name, values in outputs.items():
                kind, shape = getattr(values, "dtype", None), getattr(values, "shape", None)
                if kind != np.float64 or shape != (rows,):
                    raise _BrokenError(
                        f"{name} is {kind or type(values).__name__} of shape {shape} on {rows} "
                        f"bars; give float64 of shape ({rows},)."
                    )
        self.say("holds", f"as declared on 0 to {most:,} bars.")

    def _untouched(self, member: Member, columns: Mapping[str, Array]) -> None:
        """Inputs hold afterwards what they held before."""
        self._begin("inputs")
        copies = {name: values.copy() for name, values in columns.items()}
        member.compute(copies)
        for name, values in copies.items():
            if values.tobytes() != columns[name].tobytes():
                raise _BrokenError(
                    f"it writes to its input {name}, which other indicators read; copy it first."
                )
        self.say("holds", "never written to.")

    def _repeats(self, member: Member, columns: Mapping[str, Array]) -> None:
        self._begin("deterministic")
        one, other = member.compute(columns), member.compute(columns)
        for name in member.names:
            if one[name].tobytes() != other[name].tobytes():
                raise _BrokenError(f"{name} differs when computed twice from the same bars.")
        self.say("holds", "same bits twice.")

    def _finite(self, member: Member, bars: pl.DataFrame) -> None:
        """No NaN or infinity after the lookback, also where nothing moves or trades."""
        self._begin("finite")
        lookback = member.lookback
        still = still_bars(lookback + 500, member.references)
        for where, frame in (("", bars), (" of bars that stand still", still)):
            for name, values in member.compute(_inputs(member, frame)).items():
                wrong = np.flatnonzero(~np.isfinite(values[lookback:].astype(np.float32)))
                if wrong.size:
                    row = lookback + int(wrong[0])
                    bar = frame.row(row, named=True)
                    numbers = np.flatnonzero(~np.isnan(values))
                    if numbers.size and numbers[0] > row:
                        raise _BrokenError(
                            f"{name} is nan at row {row}{where}, after the lookback of {lookback}; "
                            f"its first number is at row {numbers[0]}, so declare a lookback of "
                            f"{numbers[0]}."
                        )
                    raise _BrokenError(
                        f"{name} is {values[row]} at row {row}{where}, after the lookback of "
                        f"{lookback} (close {bar['close']:.6g}, volume {bar['volume']:.6g}); "
                        "say what it is where nothing moves or trades."
                    )
        self.say("holds", "after the lookback, also with still prices and without volume.")

    def _constant(self, member: Member, columns: Mapping[str, Array]) -> None:
        """Say which columns tell nothing."""
        for name, values in member.compute(columns).items():
            later = values[member.lookback :]
            if later.size and np.all(later == later[0]):
                detail = (
                    f"{name} is {later[0]:g} on all {later.size:,} made-up bars after its "
                    "lookback; is it computed from them?"
                )
                self.say("warns", detail, "outputs")

    def _speed(self, member: Member) -> None:
        """Bars a second over many bars, after a first call."""
        self._begin("speed")
        bars = sample_bars(max(SPEED_ROWS, _rows(member)), member.references)
        columns = _inputs(member, bars)
        small = {name: values[: _rows(member)] for name, values in columns.items()}
        began = time.perf_counter()
        member.compute(small)
        taken, rows = time.perf_counter() - began, _length(small)
        if taken * bars.height / rows < 5:  # else it is known well enough
            began = time.perf_counter()
            member.compute(columns)
            taken, rows = time.perf_counter() - began, bars.height
        speed = rows / max(taken, 1e-9)
        self.say("holds", f"{speed:,.0f} bars a second, measured over {rows:,}.")

    def _causality(self, member: Member, bars: pl.DataFrame) -> None:
        """Prefixes, the honesty of the lookback, and hints of a look at the next bar."""
        self._begin("causal")
        sampling = _sampling(member, _inputs(member, bars))
        alone = FeatureSet((member,), "none")
        # A leak may wait for what is rare; a lookback that forgets it to 1e-4 would be too long.
        rough = sample_bars(bars.height, member.references, rare=True)
        sudden = check_feature_set([rough], alone, replace(sampling, excerpts=0))
        done = check_feature_set([bars], alone, replace(sampling, stretch=0))
        found = sudden.violations.to_dicts()
        seen = {(one["kind"], one["column"]) for one in found}
        found += [
            one for one in done.violations.to_dicts() if (one["kind"], one["column"]) not in seen
        ]
        ahead = {one["column"] for one in found if one["kind"] == "look-ahead"}
        for one in found:
            if one["kind"] == "warm-up" and one["column"] in ahead:
                continue  # it follows from looking ahead
            detail = f"{one['column']}, row {one['row']}: {one['problem']}."
            self.say("fails", detail, CHECK_OF_KIND[one["kind"]])
        if not ahead:
            stretch = f"every one of {sampling.stretch:,} bars in a row"
            self.say("holds", f"{sudden.cuts + done.cuts:,} prefixes, {stretch}.")
        for hint in done.decay.filter("suspect").iter_rows(named=True):
            detail = (
                f"{hint['column']} foretells the next bar (rank correlation {hint['now']:.2f}) "
                f"and nothing one bar later ({hint['later']:.2f}); does it read what it may not?"
            )
            self.say("warns", detail)
        if not found:
            self._begin("lookback")
            self._lookback(member, bars)

    def _lookback(self, member: Member, bars: pl.DataFrame) -> None:
        """Honest already; say also when it is far longer than needed."""
        lookback = needed = member.lookback
        while needed >= 8:
            shorter = needed // 2
            starts = [int(one) for one in np.linspace(0, bars.height - lookback - 1, 60)]
            starts = [start + lookback - shorter for start in starts]
            if warm_up_violations(member.compute, bars, shorter, starts).height:
                break
            needed = shorter
        detail = f"values from {lookback} bars before agree with those from all history"
        if needed <= lookback // 4 and lookback >= 20:
            self.say(
                "warns",
                f"{detail}, but so do values from {needed}; a shorter lookback loses fewer rows.",
            )
        else:
            self.say("holds", f"{detail}.")

    def _level(self, member: Member, columns: Mapping[str, Array]) -> None:
        self._begin("price level")
        prices = {
            name: values * PRICE_FACTOR
            for name, values in columns.items()
            if name.partition("@")[0] in ("open", "high", "low", "close")
        }
        one, other = member.compute(columns), member.compute({**columns, **prices})
        for name in member.names:
            scale = scale_of(one[name])
            apart = np.nanmax(np.abs(one[name] - other[name]), initial=0.0) / scale
            if apart > LEVEL_TOLERANCE:
                self.say(
                    "warns",
                    f"{name} changes when all prices are {PRICE_FACTOR:,.0f} times as high; a "
                    "policy sees other values after a split or on another series.",
                )
                return
        self.say("holds", "outputs do not depend on it.")


def _member(job: Mapping[str, Any]) -> Member:
    """The indicator of a job with its parameters."""
    found = import_indicators(Source(*job["source"]))[job["position"]]
    if found.problem is not None:
        raise _BrokenError(f"{found.problem}.")
    indicator = found.indicator
    if any(one.name == indicator.name and one is not indicator for one in SHIPPED):
        raise _BrokenError(f"{indicator.name!r} is the name of one that ships; rename it.")
    parameters = _parameters(indicator, job["parameters"])
    problem = declaration_problem(indicator, parameters)
    if problem is not None:
        raise _BrokenError(f"with these parameters {problem}.")
    if indicator.lookback(parameters) > MOST_LOOKBACK:
        raise _BrokenError(
            f"its lookback is {indicator.lookback(parameters):,} bars; more than {MOST_LOOKBACK:,} "
            "cannot be tried, so give parameters with a shorter one."
        )
    return Member(indicator, parameters)


def _parameters(indicator: Indicator[Any], given: Mapping[str, Any]) -> Settings:
    """Those given, else defaults; what names a series is filled in."""
    fields = indicator.parameters.model_fields
    missing = [key for key, field in fields.items() if field.is_required() and key not in given]
    model = cast(type[Settings], indicator.parameters)
    if not missing:
        try:
            return parse_settings(given, model, "parameters")
        except SettingsError as error:
            raise _BrokenError(" ".join(str(error).split())) from error
    for filling in (OTHER_SERIES[0], OTHER_SERIES):
        with suppress(SettingsError):
            return parse_settings({**given, **dict.fromkeys(missing, filling)}, model, "")
    raise _BrokenError(f"{', '.join(missing)} have no default; give each with --param.")


def _undeclared(error: Exception, member: Member) -> str | None:
    """What to say where it asked for a column that it does not declare."""
    name = error.args[0] if isinstance(error, KeyError) and error.args else None
    known = (*PRICES_AND_VOLUME, *TIMES)
    if not isinstance(name, str) or name in member.inputs or name.partition("@")[0] not in known:
        return None
    declared = f"its inputs ({', '.join(member.inputs)})"
    return f"it reads {name!r}, which is not among {declared}; add it there (KeyError)."


def _left_running() -> list[str]:
    """What importing a plug-in has started and not ended."""
    found = [
        f"importing it starts the thread {one.name!r}, which is no daemon: no process that loads "
        "it ends before the thread does"
        for one in threading.enumerate()
        if one is not threading.main_thread() and not one.daemon
    ]
    with suppress(ChildProcessError):  # there is none
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        found.append("importing it starts a process, which goes on when it is imported")
    return found


def _inputs(member: Member, bars: pl.DataFrame) -> dict[str, Array]:
    """What it declares to read, and nothing else."""
    columns = columns_of(bars)
    return {name: columns[name] for name in member.inputs}


def _length(columns: Mapping[str, Array]) -> int:
    return len(next(iter(columns.values())))


def _rows(member: Member) -> int:
    return max(LEAST_ROWS, 3 * member.lookback + 3_000)


def _sampling(member: Member, columns: Mapping[str, Array]) -> Sampling:
    """As many consecutive prefixes as the time allows, 50 at least."""
    usual = Sampling()
    excerpt = {name: values[: member.lookback + 500] for name, values in columns.items()}
    affordable = 50
    for _ in range(MOST_TRIES):
        began = time.perf_counter()
        member.compute(excerpt)
        took_s = time.perf_counter() - began
        affordable = max(affordable, int(CAUSALITY_S / max(took_s, 1e-9)))
        if affordable >= usual.stretch:
            return usual
    return replace(usual, stretch=affordable, excerpts=20)


def _digest(member: Member, bars: pl.DataFrame) -> str:
    """Hash of the outputs' bits, on as much history as fills polars' threads."""
    state = hashlib.sha256()
    for name, values in sorted(member.compute(_inputs(member, bars)).items()):
        state.update(name.encode())
        state.update(np.where(np.isnan(values), np.nan, values).tobytes())
    return state.hexdigest()
