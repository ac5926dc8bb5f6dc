"""Which key each artefact has in the store; nothing else in the project spells a key out."""

from pathlib import Path

from trade_pipeline.storage.location import ArtifactLocation


def ohlcv(store: Path, series: str, year: int) -> ArtifactLocation:
    """Bars of one series and year: a parquet file."""
    return ArtifactLocation(store, f"ohlcv/{series}/{year}.parquet")


def manifest(store: Path, series: str) -> ArtifactLocation:
    """Coverage manifest of a series: a JSON document."""
    return ArtifactLocation(store, f"manifest/{series}.json")


def features(store: Path, feature_set: str, series: str) -> ArtifactLocation:
    """Feature table of a series: a parquet file."""
    return ArtifactLocation(store, f"features/{feature_set}/{series}.parquet")


def leaderboard(store: Path) -> ArtifactLocation:
    """One row a policy variant or baseline of every experiment: a parquet file."""
    return ArtifactLocation(store, "leaderboard.parquet")


def storage_use(store: Path) -> ArtifactLocation:
    """Bytes of each part of the store: a parquet file."""
    return ArtifactLocation(store, "storage_use.parquet")


def pod_costs(store: Path) -> ArtifactLocation:
    """What each pod cost: a parquet file."""
    return ArtifactLocation(store, "pod_costs.parquet")


def volume_storage(store: Path) -> ArtifactLocation:
    """Size and price of network volumes: a parquet file."""
    return ArtifactLocation(store, "volume_storage.parquet")


def experiment_bundle(
    store: Path, experiment: str, kind: str, trial: str | None = None
) -> ArtifactLocation:
    """Folder of a bundle's versions; `kind` is the asset's name, such as policy."""
    key = f"{experiment}/{kind}" if trial is None else f"{experiment}/{kind}/{trial}"
    return ArtifactLocation(store, key)


def adhoc_backtest(store: Path, request: str) -> ArtifactLocation:
    """Folder of the versions of one ad-hoc backtest; `request` is the hash of what was asked."""
    return ArtifactLocation(store, f"adhoc_backtest/{request}")


def checkpoint(store: Path, experiment: str, trial: str) -> ArtifactLocation:
    """Folder of a training's state while it runs, or after it was killed: a bundle."""
    return ArtifactLocation(store, f"checkpoints/{experiment}/{trial}")


def ledger(store: Path, experiment: str) -> ArtifactLocation:
    """Folder of the trials ever begun of an experiment: JSON documents that never change."""
    return ArtifactLocation(store, f"ledger/{experiment}")


def verdict(store: Path, check: str, series: str, year: int) -> ArtifactLocation:
    """What a check found in a partition of `ohlcv`: a JSON document, absent while it is good."""
    return ArtifactLocation(store, f"verdicts/{check}/{series}/{year}.json")


def causal_verdict(store: Path, feature_set: str, series: str) -> ArtifactLocation:
    """What looks ahead in a feature table: a JSON document, absent while nothing does."""
    return ArtifactLocation(store, f"verdicts/causal/{feature_set}/{series}.json")


def leases(store: Path) -> Path:
    """Ledger of the pods that this host asked for: an SQLite file."""
    return store / "pods" / "ledger.sqlite"


def pod_plan(store: Path, pod: str) -> ArtifactLocation:
    """What was, or would have been, sent for a pod, without secrets: a JSON document."""
    return ArtifactLocation(store, f"pods/plans/{pod}.json")


def pod_lock(store: Path, job: str) -> ArtifactLocation:
    """What a run holds while it waits for a pod of a job; ends with its process."""
    return ArtifactLocation(store, f"pods/{job}")


def failed_bundle(store: Path, pod: str) -> ArtifactLocation:
    """What a task had sealed in a pod before it failed: a bundle that nothing reads."""
    return ArtifactLocation(store, f"pods/failed/{pod}")
