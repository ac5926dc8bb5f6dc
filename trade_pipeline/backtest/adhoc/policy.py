"""A saved policy by the key of its bundle: what runs it, and what is known of its training.

A bundle may come from elsewhere: what it says of its own origin is read, but only ever used to warn
and to refuse. Start at `find_policy`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trade_pipeline.backtest.promotion_record import policy_of
from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training.policy import SPEC, PolicyRunner
from trade_pipeline.training.policy_documents import read_document
from trade_pipeline.training.recipe import Recipe

PROMOTED = "promoted"
PROVENANCE = "provenance.json"
# Of a store: policies of trials, those from elsewhere, and pointers to promoted ones.
POLICIES = ("*/policy/*/current.json", "imported/*/current.json", f"*/{PROMOTED}/current.json")


@dataclass(frozen=True)
class SavedPolicy:
    """One version of a policy bundle.

    Attributes:
        location: folder of the version.
        runner: the policy, ready to act.
        experiment, trial: what trained it, as its provenance says; None where that is not known.
        recipe: what its dataset was made with; None likewise.
    """

    location: ArtifactLocation
    runner: PolicyRunner
    experiment: str | None
    trial: str | None
    recipe: Recipe | None

    @property
    def key(self) -> str:
        """Of the bundle, such as `aapl_ppo/policy/base.f0.s0`."""
        return self.location.key.rpartition("/")[0]

    @property
    def version(self) -> str:
        """Of the bundle."""
        return self.location.path.name

    @property
    def name(self) -> str:
        """How reports call it."""
        return self.trial or self.key.rpartition("/")[2]

    @property
    def series(self) -> tuple[str, ...]:
        """Keys of the series it was trained on."""
        return tuple(self.runner.specification["observation"]["instruments"])

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What it sees of a feature table: all but the regimes' probabilities."""
        seen = self.runner.specification["observation"]["feature_names"]
        regimes = () if self.runner.regimes is None else self.runner.regimes.feature_names
        return tuple(name for name in seen if name not in regimes)

    @property
    def environment(self) -> EnvironmentSettings:
        """What it was trained in."""
        return EnvironmentSettings.model_validate(
            self.runner.specification["configuration"]["environment"]
        )

    @cached_property
    def settings(self) -> ExperimentSettings | None:
        """Its experiment as recorded; None where that is not known, or is refused by this code."""
        try:
            return None if self.recipe is None else self.recipe.experiment_settings()
        except SettingsError:
            return None


def find_policy(store: Path, key: str, version: str | None, origin: str) -> SavedPolicy:
    """Open a policy by the key of its bundle, every member verified.

    Args:
        store: the store's folder.
        key: of a policy, or `<experiment>/promoted`.
        version: of the bundle; None is the current one.
        origin: who asks, as errors name it.

    Raises:
        SettingsError: there is no such bundle, or it holds no policy.
        StorageError: the version is not stored, or a byte of it was changed.
        PolicyError: it is none that can act.
    """
    try:
        home = ArtifactLocation(store, key)
    except StorageError as error:
        raise SettingsError(f"{origin}: key 'policy': {error}") from None
    if bundles.current_version(home) is None and home.path.name == PROMOTED:
        raise SettingsError(
            f"{origin}: key 'policy': {key.rpartition('/')[0]} has no promoted policy; materialize "
            f"{key}, or name a trial's.{_hint(store, key)}"
        )
    if bundles.current_version(home) is None:
        raise SettingsError(
            f"{origin}: key 'policy': no bundle {key!r} is stored.{_hint(store, key)}"
        )
    location = bundles.stored(home, version)
    if home.path.name == PROMOTED:
        chosen = policy_of(location)
        location = bundles.stored(ArtifactLocation(store, chosen.key), chosen.version)
    if not location.child(SPEC).path.is_file():
        raise SettingsError(
            f"{origin}: key 'policy': {key} is a bundle, but no policy.{_hint(store, key)}"
        )
    runner = PolicyRunner.load(location)
    experiment, trial, recipe = _origins(location)
    return SavedPolicy(location, runner, experiment, trial, recipe)


def _origins(location: ArtifactLocation) -> tuple[str | None, str | None, Recipe | None]:
    """Experiment, trial and recipe as the bundle's provenance has them."""
    if not location.child(PROVENANCE).path.is_file():
        return None, None, None
    known = read_document(location.child(PROVENANCE))
    if not isinstance(known, dict):
        return None, None, None
    try:
        recipe = parse_settings(known.get("recipe"), Recipe, str(location))
    except SettingsError:  # of before there were recipes, or from elsewhere
        recipe = None
    experiment = _text(known.get("experiment")) or (recipe.experiment if recipe else None)
    return experiment, _text(known.get("trial")), recipe


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _hint(store: Path, key: str) -> str:
    """The stored policy with the nearest key, or what there is."""
    found = sorted(
        path.parent.relative_to(store).as_posix() for one in POLICIES for path in store.glob(one)
    )
    if not found:
        return " No policy is stored yet: materialize one, or import one."
    return bundles.near(key, found, "policies")
