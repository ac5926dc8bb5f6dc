"""A backtest that somebody asks for: any saved policy or baseline over any stored range.

The same bars, features, rules and engine as an experiment's backtests, so that over an
experiment's own test part the equity is the same to the last bit. Knows no Dagster. Start at
`run` and `write`; `resolution.resolve` checks what was asked.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.backtest.adhoc.range import (
    assemble,
    check_bars,
    notes_on_rows,
    rows_from,
)
from trade_pipeline.backtest.adhoc.request import ORIGIN
from trade_pipeline.backtest.adhoc.resolution import Resolved
from trade_pipeline.backtest.adhoc.seen import Seen, seen_days
from trade_pipeline.backtest.bundle import DETERMINISTIC, write_backtest
from trade_pipeline.backtest.engine import BacktestResult, backtest
from trade_pipeline.backtest.instants import day
from trade_pipeline.backtest.report.pictures import equity_png
from trade_pipeline.backtest.rules import lowered_leverage, too_few_bars
from trade_pipeline.backtest.strategies import PolicyStrategy, Strategy, StrategyError, baseline
from trade_pipeline.backtest.trial import HEADLINE
from trade_pipeline.features.table import FeatureError
from trade_pipeline.settings.base import SettingsError, yaml_text
from trade_pipeline.settings.baselines import BuyAndHoldBaseline, FlatBaseline
from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.settings.project import Project
from trade_pipeline.simulator.market import MarketError
from trade_pipeline.storage.bundles import BundleReference, seal
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import PolicyError
from trade_pipeline.training.regimes import with_regimes
from trade_pipeline.training.splits import SplitError

MEMBER, INPUTS = "adhoc.json", "inputs.json"
MOST_SERIES = 3  # in a title
# A request makes no sense, or what it needs is not stored: the message says what to do.
REFUSALS = (
    SettingsError,
    StorageError,
    SplitError,
    PolicyError,
    StrategyError,
    FeatureError,
    MarketError,
)
BESIDE = (BuyAndHoldBaseline(kind="buy_and_hold"), FlatBaseline(kind="flat"))


@dataclass(frozen=True)
class AdhocBacktest:
    """What came out, before anything is written.

    Attributes:
        request: what was asked.
        dataset: rows up to the end of the range, those before it included.
        result: of the policy or baseline.
        beside: buy and hold, and flat, on the same rows.
        seen: which days the policy knows from its training.
    """

    request: Resolved
    dataset: Dataset
    result: BacktestResult
    beside: tuple[BacktestResult, ...]
    seen: Seen
    notes: tuple[str, ...]
    """All that a reader must know of this range, most important first."""

    @property
    def title(self) -> str:
        """Of report and picture; opens with what spoils the figures."""
        keys = [one.key for one in self.request.series]
        more = f" and {len(keys) - MOST_SERIES} more" if len(keys) > MOST_SERIES else ""
        first, end = self.request.span_ms
        doubt = f"{self.seen.label}: " if self.seen.label else ""
        return (
            f"{doubt}{self.result.name} on {', '.join(keys[:MOST_SERIES])}{more}, {day(first)} to "
            f"{day(end - 1)}"
        )


@dataclass(frozen=True)
class WrittenAdhoc:
    """A sealed bundle, its headline figures (null where undefined) and its picture."""

    reference: BundleReference
    headline: dict[str, float | None]
    picture: bytes


def run(request: Resolved, store: Path, project: Project) -> AdhocBacktest:
    """Assemble the rows and run; the store is only read.

    Raises:
        SettingsError: the range holds no bar, or fewer than the window or the rule needs; or the
            policy's regimes need another series.
        StorageError: bars, manifest or features are missing, or do not fit each other.
        SplitError: the series share no rows.
        PolicyError: the policy cannot act on these rows.
    """
    policy, environment = request.policy, request.environment
    span_ms = (_first_ms(request), request.span_ms[1])
    dataset = assemble(store, project, request.series, request.features, span_ms, ORIGIN)
    if dataset.ts[-1] < request.span_ms[0]:
        check_bars(store, request.series, request.span_ms, ORIGIN)
    rows = rows_from(dataset, request.span_ms[0], environment.window, ORIGIN)
    seen = Seen(0) if policy is None else seen_days(store, policy, dataset, rows)
    strategy: Strategy
    if policy is None:
        assert request.baseline is not None
        strategy = baseline(request.baseline)
    else:
        strategy = PolicyStrategy(policy.runner, policy.name)
        try:
            dataset = with_regimes(dataset, policy.runner.regimes)
        except ValueError as error:
            raise SettingsError(
                f"{ORIGIN}: {policy.name} cannot know its regimes: {error}"
            ) from None
    short_of_bars = too_few_bars(strategy, dataset, [rows], environment.window)
    if short_of_bars is not None:
        raise SettingsError(
            f"{ORIGIN}: key 'baseline': {short_of_bars} Shorten its lookback, or move 'to' so "
            "that more bars come before."
        )
    result = backtest(dataset, rows, environment, strategy, ORIGIN)
    beside = tuple(
        backtest(dataset, rows, environment, baseline(one), ORIGIN)
        for one in BESIDE
        if one != request.baseline
    )
    short = notes_on_rows(dataset, rows, request.span_ms[0], environment.window)
    lowered = lowered_leverage(strategy, len(request.series), environment)
    capped = () if lowered is None else (lowered,)
    notes = (*seen.notes, *result.mishaps, *request.notes, *capped, *short)
    return AdhocBacktest(request, dataset, result, beside, seen, notes)


def write(done: AdhocBacktest, staging: ArtifactLocation) -> WrittenAdhoc:
    """Write the bundle of a backtest into a staging folder and seal it.

    Beside the members of every backtest it holds `adhoc.json`: what was asked, of which data, and
    what is to be said of it. `inputs.json` has the content hashes of all that was read, also of
    years outside of the range, and is hashed for integrity only.

    Args:
        done: what came out.
        staging: empty folder.
    """
    document, versions = done.request.document(), series_versions(done.dataset)
    policy = done.request.policy
    decider = f"{policy.key} {policy.version}" if policy else canonical_json(document["baseline"])
    written = write_backtest(
        done.result,
        done.dataset,
        staging,
        title=done.title,
        provenance={
            "policy" if policy else "baseline": decider,
            **{f"rows of {key}": version for key, version in versions.items()},
            "request": done.request.key,
        },
        baselines=done.beside,
        configuration=yaml_text(document),
        notes=done.notes,
    )
    write_json(
        staging.child(MEMBER),
        {
            "key": done.request.key,
            "request": document,
            "data_versions": versions,
            "seen": done.seen.document(),
            "notes": list(done.notes),
        },
    )
    write_json(staging.child(INPUTS), dict(done.dataset.input_versions))
    values = written.metrics["values"]
    curves = {one.name: (one.ts, one.equity) for one in (done.result, *done.beside)}
    return WrittenAdhoc(
        reference=seal(staging, (*DETERMINISTIC, MEMBER)),
        headline={name: values[name] for name in HEADLINE},
        picture=equity_png(curves, done.title),
    )


def series_versions(dataset: Dataset) -> dict[str, str]:
    """First 32 hex digits of a SHA-256 over each instrument's rows; bars after them change none."""
    found = {}
    for n, key in enumerate(dataset.instruments):
        digest = hashlib.sha256()
        columns: list[NDArray[np.generic]] = [dataset.ts, dataset.close_ts]
        for name in ("open", "high", "low", "close", "volume", "traded", "features"):
            columns.append(getattr(dataset, name)[:, n])
        for column in columns:
            digest.update(np.ascontiguousarray(column).tobytes())
        found[key] = digest.hexdigest()[:32]
    return found


def _first_ms(request: Resolved) -> int:
    """Where the rows before the range begin.

    At the start of the policy's experiment, as its own dataset does: filtered regimes depend on how
    long they have been filtered. A range that begins earlier, and a baseline, take all there is.
    """
    settings = None if request.policy is None else request.policy.settings
    if settings is None:
        return 0
    start = np.datetime64(settings.start, "ms").astype(np.int64)
    return int(start) if start <= request.span_ms[0] else 0
