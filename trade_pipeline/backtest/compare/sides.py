"""A finished result as values that can be laid beside another: figures, curve, settings, versions.

A side is the report of an experiment (its policy in the foreground, stitched over all folds), a
trial's backtest, or one that somebody asked for. Start at `load_side`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from trade_pipeline.backtest import leaderboard
from trade_pipeline.backtest.curve import Curve, stitch
from trade_pipeline.backtest.export.sources import (
    PROVENANCE,
    SPECIFICATION,
    Made,
    SourceError,
    backtest_sources,
    configuration,
    flattened,
    is_backtest,
    is_report,
    key_of,
    report_provenance,
    verified,
)
from trade_pipeline.backtest.instants import day
from trade_pipeline.evaluation.measure import FloatArray, IntArray
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation

METRICS = "metrics.json"
ASKED, INPUTS = "adhoc.json", "inputs.json"  # of a backtest that somebody asked for


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        key, version: of the bundle.
        subject: whose curve and figures they are: a trial, or a variant and its median seed.
        ts: int64 [n] ms UTC, increasing.
        equity: float64 [n] quote currency, E_0 first.
        figures: result of `evaluation.metrics.metrics`, with `market` and the like beside.
        configuration: flattened settings.
        data: name of each input to its content hash.
        provenance: versions of bundles, implementations and packages, by name.
        instruments: keys of the series.
        notes: what the bundle says of itself that a reader must know.
        leaderboard: rows of a report; empty otherwise.
        risk_free: annual rate that its Sharpe ratio is above.
    """

    key: str
    version: str
    subject: str
    ts: IntArray
    equity: FloatArray
    figures: dict[str, Any]
    configuration: dict[str, Any]
    data: dict[str, str]
    provenance: dict[str, str]
    instruments: tuple[str, ...]
    notes: tuple[str, ...] = ()
    leaderboard: pl.DataFrame = field(default_factory=pl.DataFrame)
    risk_free: float = 0.0

    @property
    def period(self) -> str:
        """First and last day."""
        return f"{day(self.ts[0])} to {day(self.ts[-1])}"

    @property
    def daily(self) -> bool:
        """Whether its bars are days: a year has as many of both."""
        periods = self.figures["periods_per_year"]
        return bool(periods["bar"] == periods["day"])


def load_side(store: Path, name: str) -> Side:
    """Read a report or backtest, verified.

    Args:
        store: the store's folder.
        name: key, or `key@version` for another than the current version.

    Raises:
        StorageError: it is not there, is neither, or what it was made from is needed and is gone.
        SettingsError: this code refuses the settings that a report recorded.
    """
    key, _, version = name.partition("@")
    location = bundles.find(store, key, version or None)
    bundles.verify(location)
    if is_report(location):
        return _report(location)
    if not is_backtest(location):
        raise SourceError(
            f"{name}: is neither a report nor a backtest; give keys such as aapl_ppo/report or "
            "aapl_ppo/backtest/base.f0.s0."
        )
    return _asked(location) if location.child(ASKED).path.is_file() else _trial(location)


def _report(location: ArtifactLocation) -> Side:
    made = report_provenance(location)
    settings = made.experiment_settings()
    variant, seed = made.shown.variant, made.shown.seed
    trials = [
        key
        for key, trial in settings.trials().items()
        if (trial.variant, trial.seed) == (variant, seed)
    ]
    tested = [
        verified(made.backtests[trial], location.store, key_of(location))[0] for trial in trials
    ]
    curve = stitch([Curve.stored(one) for one in tested])
    environment, algorithm = settings.variant(variant)
    plain = {
        key: made.settings[key] for key in made.settings if key not in ("environment", "algorithm")
    }
    policies = {trial: made.policies[trial] for trial in trials}
    packages, feature_set, notes = _trained_with(policies, location.store)
    return Side(
        key=key_of(location),
        version=location.path.name,
        subject=f"{variant}, seed {seed}",
        ts=curve.close_ts,
        equity=curve.equity,
        figures=read_json(location.child(METRICS))[variant][str(seed)],
        configuration={
            **flattened(plain),
            **flattened(feature_set, "feature_set"),
            **flattened(environment.model_dump(mode="json"), "environment"),
            **flattened(algorithm.model_dump(mode="json"), "algorithm"),
        },
        data=dict(made.inputs),
        provenance={
            "report": location.path.name,
            "dataset": made.dataset.version,
            **{f"policy {trial}": one.version for trial, one in policies.items()},
            **{f"backtest {trial}": made.backtests[trial].version for trial in trials},
            **_implementations(made.implementations),
            **packages,
        },
        instruments=tuple(made.settings["series"]),
        notes=notes,
        leaderboard=read_frame(location.child(leaderboard.MEMBER)),
        risk_free=curve.risk_free,
    )


def _trial(location: ArtifactLocation) -> Side:
    sources = backtest_sources(location)
    curve = Curve.stored(location)
    observed = sources.specification["observation"]
    return Side(
        key=key_of(location),
        version=location.path.name,
        subject=f"{sources.known['experiment']} {sources.known['trial']}",
        ts=curve.close_ts,
        equity=curve.equity,
        figures=read_json(location.child(METRICS)),
        configuration=configuration(sources),
        data=dict(sources.training.get("inputs", {})),
        provenance={
            "dataset": sources.known["dataset_version"],
            "policy": sources.policy.path.name,
            "backtest": location.path.name,
            **_implementations(sources.known["implementations"]),
            **_versions(sources.specification),
        },
        instruments=tuple(observed["instruments"]),
        risk_free=curve.risk_free,
    )


def _asked(location: ArtifactLocation) -> Side:
    document = read_json(location.child(ASKED))
    request = document["request"]
    curve = Curve.stored(location)
    made = request.get("policy")
    packages: dict[str, str] = {}
    if made is not None:
        packages, _, _ = _trained_with({"policy": Made(**made)}, location.store)
    named = {key: request[key] for key in request if key != "policy"}
    return Side(
        key=key_of(location),
        version=location.path.name,
        subject=request["baseline"]["kind"] if made is None else made["key"],
        ts=curve.close_ts,
        equity=curve.equity,
        figures=read_json(location.child(METRICS)),
        configuration=flattened(named),
        data=read_json(location.child(INPUTS)),
        provenance={
            "backtest": location.path.name,
            **({} if made is None else {"policy": made["version"]}),
            **packages,
        },
        instruments=tuple(request["series"]),
        notes=tuple(document["notes"]),
        risk_free=curve.risk_free,
    )


def _trained_with(
    policies: Mapping[str, Made], store: Path
) -> tuple[dict[str, str], dict[str, Any], tuple[str, ...]]:
    """Versions and feature set behind the first policy still stored; a note where none is."""
    for made in policies.values():
        location = made.location(store)
        if location.path.is_dir():
            recipe = read_json(location.child(PROVENANCE)).get("recipe") or {}
            versions = _versions(read_json(location.child(SPECIFICATION)))
            return versions, recipe.get("feature_set", {}), ()
    named = ", ".join(f"{one.key} version {one.version}" for one in policies.values())
    return (
        {},
        {},
        (f"{named} is no longer stored; its features and package versions are not compared.",),
    )


def _versions(specification: Mapping[str, Any]) -> dict[str, str]:
    trained = specification["implementations"]
    return {
        **{f"package {name}": version for name, version in specification["versions"].items()},
        **{f"training's implementation of {name}": str(n) for name, n in trained.items()},
        "threads": str(specification["threads"]),
    }


def _implementations(numbers: Mapping[str, int]) -> dict[str, str]:
    return {f"implementation of {name}": str(number) for name, number in numbers.items()}
