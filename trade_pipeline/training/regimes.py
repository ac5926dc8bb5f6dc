"""Regimes of an experiment: fitted on a fold's training part, filtered causally over all rows.

A model travels twice: as the bundle of `<experiment>/regime_model`, and inside each policy's
`spec.json`, so that a policy needs nothing else to know the regime it is in. Start at `fit_fold`
and `with_regimes`.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trade_pipeline.features.regimes.filtering import filter_regimes, labels
from trade_pipeline.features.regimes.model import RegimeModel
from trade_pipeline.settings.base import parse_settings
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline.storage.bundles import BundleReference, seal, verify
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import StorageError, write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset

if TYPE_CHECKING:
    from trade_pipeline.features.regimes.fit import Fitted

IMPLEMENTATION = 1
DOCUMENT = "regime_model.json"
TRIALS = "trials.parquet"
TS = pl.Datetime("ms", "UTC")
LABEL = "regime"  # what `starts.label` calls it


@dataclass(frozen=True)
class Regimes:
    """A fitted model and the settings it was fitted with.

    Attributes:
        model: of one fold.
        settings: of the experiment; they say whose features it reads and who sees its states.
    """

    model: RegimeModel
    settings: RegimeSettings

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns that policies see, `regime_0` the calmest; none if they do not."""
        states = self.model.states if self.settings.as_features else 0
        return tuple(f"{LABEL}_{state}" for state in range(states))

    def document(self) -> dict[str, Any]:
        """As `spec.json` holds it."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "model": self.model.document(),
        }

    @classmethod
    def parse(cls, document: dict[str, Any], origin: str) -> "Regimes":
        """The inverse of `document`.

        Raises:
            SettingsError: the settings are not those of regimes.
            RegimeError: the model is not usable.
        """
        settings = parse_settings(document["settings"], RegimeSettings, origin)
        return cls(RegimeModel.parse(document["model"]), settings)


def fit_fold(dataset: Dataset, settings: RegimeSettings, fold: int, origin: str) -> "Fitted":
    """Fit the model of a fold on its training part alone.

    Args:
        dataset: unscaled features.
        settings: inputs, states and how to fit.
        fold: its number.
        origin: the experiment, as errors name it.

    Raises:
        ValueError: an input is no feature, or nothing could be fitted.
    """
    from trade_pipeline.features.regimes.fit import fit_regimes  # hmmlearn takes a second

    try:
        seen = _observations(dataset, settings)
        return fit_regimes(seen, dataset.folds[fold].train, settings.inputs, settings)
    except ValueError as error:
        raise ValueError(f"{origin}, fold {fold}: {error}") from error


def write_regime_model(
    fitted: "Fitted",
    dataset: Dataset,
    settings: RegimeSettings,
    fold: int,
    staging: ArtifactLocation,
) -> BundleReference:
    """Write a fitted model and the trials it was chosen from, and seal the bundle."""
    staging.path.mkdir(parents=True, exist_ok=True)
    document = {
        **Regimes(fitted.model, settings).document(),
        "dataset_version": dataset.version,
        "fold": fold,
        "implementation": IMPLEMENTATION,
    }
    write_json(staging.child(DOCUMENT), document)
    write_frame(staging.child(TRIALS), fitted.trials)
    return seal(staging, [DOCUMENT, TRIALS])


def load_regimes(location: ArtifactLocation, dataset: Dataset, fold: int) -> Regimes:
    """Open the bundle of a fold's model.

    Raises:
        BundleError: a member is missing or changed.
        StorageError: it was fitted on another version of the dataset, or another fold.
        ValueError: the model is not usable.
    """
    verify(location)
    document = read_json(location.child(DOCUMENT))
    made_with = {"dataset_version": dataset.version, "fold": fold}
    if (found := {name: document.get(name) for name in made_with}) != made_with:
        raise StorageError(
            f"{location.key}: was fitted on {found}, but {made_with} is needed; materialize "
            "regime_model of this fold again."
        )
    return Regimes.parse(document, location.key)


def with_regimes(dataset: Dataset, regimes: Regimes | None) -> Dataset:
    """The dataset with a fold's regimes, and with their probabilities beside its features.

    Every instrument gets the same columns. A dataset that has regimes already is left as it is.

    Raises:
        ValueError: an input is no feature of the dataset, or its series is absent.
    """
    if regimes is None or dataset.regimes is not None:
        return dataset
    found = probabilities(dataset, regimes)
    known = replace(dataset, regimes=regimes, regime_labels=labels(found))
    if not regimes.settings.as_features:
        return known
    rows, instruments = dataset.features.shape[:2]
    beside = np.broadcast_to(
        found.astype(np.float32)[:, np.newaxis], (rows, instruments, found.shape[1])
    )
    return replace(
        known,
        features=np.concatenate([dataset.features, beside], axis=2),
        feature_names=(*dataset.feature_names, *regimes.feature_names),
    )


def probabilities(dataset: Dataset, regimes: Regimes) -> NDArray[np.float64]:
    """How likely each state is at each row, by what was known then: [T, K].

    Raises:
        ValueError: see `with_regimes`.
    """
    seen = _observations(dataset, regimes.settings)
    return filter_regimes(regimes.model, seen, dataset.segments)


def regime_table(dataset: Dataset, regimes: Regimes) -> pl.DataFrame:
    """Each row's time, likeliest state (Int8) and the probability of each (Float32).

    Raises:
        ValueError: see `with_regimes`.
    """
    found = probabilities(dataset, regimes)
    return pl.DataFrame(
        {
            "ts": pl.Series(np.asarray(dataset.ts), dtype=pl.Int64).cast(TS),
            LABEL: labels(found),
            **{f"{LABEL}_{k}": found[:, k].astype(np.float32) for k in range(found.shape[1])},
        }
    )


def series_of(dataset: Dataset, settings: RegimeSettings) -> str:
    """Key of the series whose regimes they are."""
    return settings.series or dataset.instruments[0]


def _observations(dataset: Dataset, settings: RegimeSettings) -> NDArray[np.float64]:
    """The inputs of the model: float64 [T, D]."""
    series, inputs = series_of(dataset, settings), settings.inputs
    if series not in dataset.instruments:
        raise ValueError(
            f"regimes are those of {series}, which is none of {', '.join(dataset.instruments)}"
        )
    absent = [name for name in inputs if name not in dataset.feature_names]
    if absent:
        raise ValueError(
            f"regimes read {absent[0]!r}, which is no feature; known are "
            f"{', '.join(dataset.feature_names)}"
        )
    columns = [dataset.feature_names.index(name) for name in inputs]
    of_series = dataset.features[:, dataset.instruments.index(series)]
    return np.ascontiguousarray(of_series[:, columns], np.float64)
