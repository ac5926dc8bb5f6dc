"""What was promoted: `promotion.json` of the bundles under `<experiment>/promoted`.

None of these bundles is ever pruned: together they say how often the final period was looked at,
and they hold the policy versions they name. Start at `promoted` and `pinned`.
"""

from pathlib import Path
from typing import Any

from trade_pipeline.settings.base import Settings, SettingsError, parse_settings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleError
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.location import ArtifactLocation

RECORD = "promotion.json"
FINAL = "final"  # folder of the bundle that holds the backtest of the final period


class PromotedPolicy(Settings):
    """The policy that a promotion points to: its bundle, and the trial that made it."""

    key: str
    version: str
    trial: str
    variant: str
    fold: int
    seed: int
    trained_until: str

    def location(self, store: Path) -> ArtifactLocation:
        """Folder of the policy's bundle."""
        return ArtifactLocation(store, f"{self.key}/{self.version}")


def policy_of(promotion: ArtifactLocation) -> PromotedPolicy:
    """The policy of one promotion bundle.

    Raises:
        BundleError: its record is missing or damaged.
    """
    try:
        document: Any = read_json(promotion.child(RECORD))
        return parse_settings(document.get("policy"), PromotedPolicy, str(promotion))
    except (AttributeError, SettingsError) as error:
        raise BundleError(f"{promotion}: {RECORD} is no record of a promotion: {error}") from error


def promoted(store: Path, experiment: str) -> PromotedPolicy | None:
    """The policy that is promoted now, or None. Raises `BundleError`."""
    home = layout.experiment_bundle(store, experiment, "promoted")
    if bundles.current_version(home) is None:
        return None
    return policy_of(bundles.current(home))


def promotions(home: ArtifactLocation) -> list[ArtifactLocation]:
    """Every promotion bundle of `<experiment>/promoted`, by version."""
    return [home.child(path.parent.name) for path in sorted(home.path.glob(f"*/{RECORD}"))]


def finals(home: ArtifactLocation) -> dict[str, ArtifactLocation]:
    """Policy version to a promotion that holds its backtest of the final period."""
    return {
        policy_of(one).version: one
        for one in promotions(home)
        if one.child(FINAL, "summary.json").path.is_file()
    }


def pinned(location: ArtifactLocation) -> set[str]:
    """Versions of a bundle that pruning must leave: those of promotions, and promotions."""
    own = {one.path.name for one in promotions(location)}
    homes = sorted(location.store.glob("*/promoted"))
    keys = [str(home.relative_to(location.store)) for home in homes]
    policies = [
        policy_of(one) for key in keys for one in promotions(ArtifactLocation(location.store, key))
    ]
    return own | {policy.version for policy in policies if policy.key == location.key}
