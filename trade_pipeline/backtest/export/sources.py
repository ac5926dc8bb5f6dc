"""What reports and backtests were made from, found by the versions that they record.

Reads bundles and verifies them; knows nothing of where they are exported to. Start at
`report_provenance` and `backtest_sources`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ConfigDict

from trade_pipeline.backtest import leaderboard
from trade_pipeline.settings.base import Settings, parse_settings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError

PROVENANCE = "provenance.json"
SPECIFICATION = "spec.json"
EQUITY = "equity.parquet"
# Of an experiment, what makes its dataset.
OF_DATA = ("series", "features", "from", "to", "splits", "final_from")


class SourceError(StorageError):
    """What a bundle was made from is not recorded or not stored; the message names it."""


class Made(Settings):
    """A version of a bundle."""

    key: str
    version: str

    def location(self, store: Path) -> ArtifactLocation:
        """Its folder, which need not be there any more."""
        return ArtifactLocation(store, f"{self.key}/{self.version}")


class Shown(Settings):
    """Whose prices and trades a report's page shows."""

    variant: str
    seed: int


class ReportProvenance(Settings):
    """`provenance.json` of a report: every bundle that it was made from; it may say more.

    Attributes:
        experiment: its name.
        dataset: what backtests and baselines ran on.
        backtests: by trial.
        policies: by trial.
        shown: the policy in the page's foreground.
        settings: of the experiment as JSON, defaults filled in.
        inputs: content hash of each input of the dataset.
        implementations: part to the number that rises when it computes something else.
    """

    model_config = ConfigDict(extra="ignore")

    experiment: str
    dataset: Made
    backtests: dict[str, Made]
    policies: dict[str, Made]
    shown: Shown
    settings: dict[str, Any]
    inputs: dict[str, str]
    implementations: dict[str, int]

    def experiment_settings(self) -> ExperimentSettings:
        """The experiment. Raises `SettingsError` where this code refuses what was recorded."""
        origin = f"settings recorded with {self.experiment}/report"
        return parse_settings(self.settings, ExperimentSettings, origin)


@dataclass(frozen=True)
class BacktestSources:
    """A trial's backtest and the policy that ran in it.

    Attributes:
        backtest, policy: versions' folders, verified.
        known: `provenance.json` of the backtest.
        specification: `spec.json` of the policy.
        training: `provenance.json` of the policy.
    """

    backtest: ArtifactLocation
    policy: ArtifactLocation
    known: dict[str, Any]
    specification: dict[str, Any]
    training: dict[str, Any]


def key_of(location: ArtifactLocation) -> str:
    """Key of the bundle whose version lies there."""
    return location.path.parent.relative_to(location.store).as_posix()


def is_report(location: ArtifactLocation) -> bool:
    """Whether a version's folder is that of an experiment's report, by what it holds."""
    return location.child(leaderboard.MEMBER).path.is_file()


def is_backtest(location: ArtifactLocation) -> bool:
    """Whether a version's folder is that of a backtest, by what it holds."""
    return location.child(EQUITY).path.is_file()


def report_provenance(report: ArtifactLocation) -> ReportProvenance:
    """What a report was made from.

    Raises:
        SourceError: it does not say so, since it is too old.
        SettingsError: what it says cannot be understood.
    """
    document = report.child(PROVENANCE)
    if not document.path.is_file():
        raise SourceError(
            f"{report}: has no {PROVENANCE}, so nothing says which backtests and policies it "
            f"shows; materialize {key_of(report)} again."
        )
    return parse_settings(read_json(document), ReportProvenance, str(document))


def median_trials(report: ArtifactLocation, settings: ExperimentSettings) -> tuple[str, ...]:
    """The trials behind a report's rows of policies: of each variant those of its median seed."""
    table = read_frame(report.child(leaderboard.MEMBER)).filter(pl.col("kind") == "policy")
    seeds = dict(zip(table["name"], table["median_seed"], strict=True))
    return tuple(
        key for key, trial in settings.trials().items() if seeds.get(trial.variant) == trial.seed
    )


def backtest_sources(backtest: ArtifactLocation) -> BacktestSources:
    """A backtest and its policy, all of both verified.

    Args:
        backtest: folder of one version.

    Raises:
        SourceError: it is no backtest of a policy, or the policy's version is no longer stored.
        BundleError: a byte of either was changed.
    """
    bundles.verify(backtest)
    document = backtest.child(PROVENANCE)
    known = read_json(document) if document.path.is_file() else {}
    if not is_backtest(backtest) or "policy" not in known:
        raise SourceError(
            f"{backtest}: is no backtest that names its policy in {PROVENANCE}; give the key of "
            "one, such as aapl_ppo/backtest/base.f0.s0, materialized again if it is old."
        )
    made = parse_settings(known["policy"], Made, f"{document}: policy")
    policy, _ = verified(made, backtest.store, key_of(backtest))
    return BacktestSources(
        backtest,
        policy,
        known,
        read_json(policy.child(SPECIFICATION)),
        read_json(policy.child(PROVENANCE)),
    )


def verified(made: Made, store: Path, wanted_by: str) -> tuple[ArtifactLocation, dict[str, str]]:
    """Where a version lies, and the SHA-256 of its members, after hashing them all.

    Raises:
        SourceError: it is not stored; the message says who wanted it.
        BundleError: it is not what its index says.
    """
    location = made.location(store)
    if not location.path.is_dir():
        raise SourceError(
            f"{wanted_by} was made from {made.key} version {made.version}, which is no longer "
            "stored; bring it back from a copy of the store, or materialize "
            f"{made.key} and then {wanted_by} again."
        )
    index = bundles.verify(location)
    if index["version"] != made.version:
        raise bundles.BundleError(
            f"{location}: holds version {index['version']}; materialize {made.key} again."
        )
    return location, {member["name"]: member["sha256"] for member in index["members"]}


def configuration(sources: BacktestSources) -> dict[str, Any]:
    """Flattened settings of a trial; those of the training's environment where they differed."""
    configured = sources.specification["configuration"]
    environment = flattened(sources.known["environment"], "environment")
    trained_in = flattened(configured["environment"], "environment")
    recipe = sources.training.get("recipe") or {}
    settings = recipe.get("settings", {})
    regimes = sources.specification.get("regimes")
    return {
        "trial": sources.known["trial"],
        "fold": sources.specification["fold"],
        "seed": sources.specification["seed"],
        "threads": sources.specification["threads"],
        **flattened({key: settings[key] for key in OF_DATA if key in settings}),
        **flattened(recipe.get("feature_set", {}), "feature_set"),
        **(flattened(regimes["settings"], "regimes") if regimes else {}),
        **environment,
        **{
            f"training.{key}": value
            for key, value in trained_in.items()
            if environment.get(key) != value
        },
        **flattened(configured["algorithm"], "algorithm"),
    }


def flattened(content: Any, path: str = "") -> dict[str, Any]:
    """Nested settings as one level: keys joined by dots, entries of a list by their number.

    Lists of plain values stay whole, as JSON text.

    >>> flattened({"costs": {"fee": {"bps": 5}}, "sizes": [0.5, 1], "reward": [{"term": "x"}]})
    {'costs.fee.bps': 5, 'sizes': '[0.5, 1]', 'reward.0.term': 'x'}
    """
    return dict(_leaves(content, path))


def _leaves(content: Any, path: str) -> Iterator[tuple[str, Any]]:
    parts: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        parts = list(content.items())
    elif isinstance(content, list) and any(isinstance(one, dict) for one in content):
        parts = list(enumerate(content))
    elif isinstance(content, list):
        content = json.dumps(content)
    for key, value in parts:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))
    if not parts:
        yield path, "{}" if content == {} else content
