"""The trial ledger: every training ever begun, for judging a figure by how many were tried.

Append-only, one document an event: a beginning is written before the training starts, so one that
is killed counts; its end is another document beside it. What was tried is told by the content
(dataset version, configuration, seed, fold): the same training again is no other trial. Names are
drawn, so processes and machines that write at once never meet.

    ledger/<experiment>/<16 hex>.begun.json
    ledger/<experiment>/<16 hex>.ended.json

Start at `begin`, `end` and `trials_tried`.
"""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import polars as pl
from pydantic import AwareDatetime

from trade_pipeline.settings.algorithm import AlgorithmSettings
from trade_pipeline.settings.base import Settings, SettingsError, parse_settings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import Trial
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import json_hash, read_json, write_json
from trade_pipeline.storage.location import ArtifactLocation, StorageError

Outcome = Literal["begun", "finished", "failed", "cancelled"]

BEGUN, ENDED = ".begun.json", ".ended.json"
SCHEMA: dict[str, pl.DataType] = {
    "experiment": pl.String(),
    "trial": pl.String(),
    "dataset_version": pl.String(),
    "configuration": pl.String(),  # hash of environment and algorithm
    "seed": pl.Int64(),
    "fold": pl.Int64(),
    "run": pl.String(),
    "began": pl.Datetime("ms", "UTC"),
    "outcome": pl.String(),  # begun, also of one that was killed; finished, failed, cancelled
    "version": pl.String(),  # of the policy, where it finished
}


class Entry(Settings):
    """A training that is about to begin."""

    experiment: str
    trial: str
    dataset_version: str
    configuration: str
    seed: int
    fold: int
    run: str
    began: AwareDatetime


class _End(Settings):
    outcome: Outcome
    version: str | None


Document = TypeVar("Document", Entry, _End)


class Attempt(NamedTuple):
    """A training that was entered; `end` needs it."""

    began: ArtifactLocation


class Tried(NamedTuple):
    """How much was ever tried, each once however often it was trained."""

    trials: int  # dataset version, configuration, seed, fold
    configurations: int  # dataset version, configuration


def configuration_hash(
    environment: EnvironmentSettings,
    algorithm: AlgorithmSettings,
    regimes: RegimeSettings | None = None,
) -> str:
    """Hash of a resolved configuration: 64 hexadecimal digits."""
    parts = [environment, algorithm] if regimes is None else [environment, algorithm, regimes]
    return json_hash([part.model_dump(mode="json") for part in parts])


def entry(
    experiment: str,
    trial: Trial,
    environment: EnvironmentSettings,
    algorithm: AlgorithmSettings,
    dataset_version: str,
    run: str,
    began: datetime,
    regimes: RegimeSettings | None = None,
) -> Entry:
    """What to enter for a trial.

    Args:
        experiment: its name.
        trial: key, fold and seed.
        environment: of the trial's variant.
        algorithm: of the trial's variant.
        dataset_version: that it trains on.
        run: who trains it, such as a run's id; for people who look it up.
        began: now, with a time zone.
        regimes: of the experiment, where it has them.
    """
    return Entry(
        experiment=experiment,
        trial=trial.key,
        dataset_version=dataset_version,
        configuration=configuration_hash(environment, algorithm, regimes),
        seed=trial.seed,
        fold=trial.fold,
        run=run,
        began=began.astimezone(UTC),
    )


def begin(store: Path, entry: Entry) -> Attempt:
    """Enter a training before it starts; it outlives a kill or power loss from here on.

    Raises:
        StorageError: the store cannot be written.
    """
    home = layout.ledger(store, entry.experiment)
    location = home.child(f"{secrets.token_hex(8)}{BEGUN}")
    write_json(location, entry.model_dump(mode="json"))
    return Attempt(location)


def end(attempt: Attempt, outcome: Outcome, version: str | None = None) -> None:
    """Enter how a training ended: finished with a policy's version, failed or cancelled."""
    write_json(_ended(attempt.began), {"outcome": outcome, "version": version})


def entries(store: Path, experiment: str | None = None) -> pl.DataFrame:
    """Every attempt of an experiment or, without one, of all that the store ever saw.

    Returns:
        `SCHEMA`, the oldest first.

    Raises:
        StorageError: a document of the ledger is damaged.
    """
    rows = []
    for location in _begun(store, experiment):
        one = _read(location, Entry)
        ended = _ended(location)
        done = _read(ended, _End) if ended.path.exists() else _End(outcome="begun", version=None)
        rows.append({**one.model_dump(), **done.model_dump()})
    return pl.DataFrame(rows, schema=SCHEMA).sort("began", "trial", maintain_order=True)


def trials_tried(
    store: Path, experiment: str | None = None, dataset_version: str | None = None
) -> Tried:
    """How many different trainings were ever begun, whatever became of them.

    Args:
        store: root folder of the store.
        experiment: count those of one experiment; None: of all.
        dataset_version: count those on one version of a dataset; None: on any.

    Raises:
        StorageError: a document of the ledger is damaged.
    """
    found = entries(store, experiment)
    if dataset_version is not None:
        found = found.filter(pl.col("dataset_version") == dataset_version)
    configurations = found.select("dataset_version", "configuration").n_unique()
    trials = found.select("dataset_version", "configuration", "seed", "fold").n_unique()
    return Tried(trials, configurations)


def _begun(store: Path, experiment: str | None) -> Iterator[ArtifactLocation]:
    root = store / "ledger"
    names = [experiment] if experiment else sorted(path.name for path in root.glob("*"))
    for name in names:
        home = layout.ledger(store, name)
        for path in sorted(home.path.glob(f"*{BEGUN}")):
            yield home.child(path.name)


def _ended(began: ArtifactLocation) -> ArtifactLocation:
    return ArtifactLocation(began.store, began.key.removesuffix(BEGUN) + ENDED)


def _read(location: ArtifactLocation, model: type[Document]) -> Document:
    try:
        return parse_settings(read_json(location), model, str(location))
    except (StorageError, SettingsError) as error:
        raise StorageError(f"{error} Restore the file: the count of trials needs it.") from error
