"""The dataset of an experiment: aligned market arrays, features and folds, as one bundle.

Arrays are `.npy` files, memory-mapped when loaded; `dataset.json` says what they are. Features are
unscaled: scaling statistics belong to a fold and travel with the policy. Knows nothing of
policies. Start at `build_dataset`, `write_dataset` and `load_dataset`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.market.calendars import find_calendar
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.simulator.kernel import Market
from trade_pipeline.storage.bundles import BundleReference, seal, verify
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.splits import Fold, Rows, Span, SplitError, final_period, folds

if TYPE_CHECKING:
    from trade_pipeline.training.regimes import Regimes

# Raised when `splits` cuts other rows, too.
IMPLEMENTATION = 2
DOCUMENT = "dataset.json"
INPUTS = "inputs.json"
PRICES = ("open", "high", "low", "close", "volume")
ARRAYS = ("ts", "close_ts", *PRICES, "traded", "features", "segments")


@dataclass(frozen=True)
class SeriesInput:
    """One series as the dataset takes it.

    Attributes:
        settings: the series.
        grids: one grid a slice as stored, in time order (`market.coverage.grid`).
        features: `ts` and one Float32 column a feature (`features.table.feature_table`).
    """

    settings: SeriesSettings
    grids: Sequence[pl.DataFrame]
    features: pl.DataFrame


@dataclass(frozen=True)
class Dataset:
    """T rows, N instruments, F features. Rows are bars on which every instrument has features.

    Attributes:
        ts, close_ts: int64 [T], ms UTC: when a bar opens, and when it is known.
        open, high, low, close: float64 [T, N], adjusted prices.
        volume: float64 [T, N], in units that these prices are of (`tradable`).
        traded: bool [T, N].
        features: float32 [T, N, F], unscaled.
        segments: int64 [S, 2]: rows [a, b) without a gap in any instrument.
        final: int64 [K, 2]: segments of the period that no fold touches.
        units: what prices and volume count, where that is not what the source says; may be empty.
        version: the bundle's version; empty before it is written.
        regimes: the model of a fold, see `regimes.with_regimes`; part of no bundle.
        regime_labels: int8 [T] most likely state of each row, with it.
    """

    ts: NDArray[np.int64]
    close_ts: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    traded: NDArray[np.bool_]
    features: NDArray[np.float32]
    segments: Rows
    instruments: tuple[str, ...]
    feature_names: tuple[str, ...]
    folds: tuple[Fold, ...]
    final: Rows
    lookback: int
    scaling: str
    timeframe: str
    bars_per_year: float
    days_per_year: float
    input_versions: Mapping[str, str]
    units: str = ""
    version: str = ""
    regimes: "Regimes | None" = None
    regime_labels: NDArray[np.int8] | None = None

    @cached_property
    def market(self) -> Market:
        """What the simulator steps through; its checks run once. Raises `MarketError`."""
        return Market(
            ts=self.ts,
            close_ts=self.close_ts,
            open=self.open,
            high=self.high,
            low=self.low,
            close=self.close,
            volume=self.volume,
            traded=self.traded,
        )

    def document(self) -> dict[str, Any]:
        """Everything but the arrays, as `dataset.json` holds it."""
        return {
            "instruments": list(self.instruments),
            "feature_names": list(self.feature_names),
            "rows": len(self.ts),
            "first_bar": _iso(self.ts[0]),
            "last_bar": _iso(self.ts[-1]),
            "lookback": self.lookback,
            "scaling": self.scaling,
            "timeframe": self.timeframe,
            "bars_per_year": self.bars_per_year,
            "days_per_year": self.days_per_year,
            "folds": [
                {name: part.tolist() for name, part in fold._asdict().items()}
                for fold in self.folds
            ],
            "final": self.final.tolist(),
            "units": self.units,
            "implementation": IMPLEMENTATION,
        }


def build_dataset(
    inputs: Sequence[SeriesInput],
    experiment: ExperimentSettings,
    feature_set: FeatureSet,
    input_versions: Mapping[str, str],
    origin: str,
) -> Dataset:
    """Align the series on the rows that all of them have, and cut the folds.

    Args:
        inputs: the experiment's series, in its order; they become the instruments.
        experiment: dates, splits and, for the check of lengths, the variants' windows.
        feature_set: what the features are.
        input_versions: name of each input (`features/<set>|<series>`) to its content hash.
        origin: the experiment, as errors name it.

    Raises:
        SplitError: no common rows, or a part of a fold is too short for the window.
    """
    dataset = align(
        inputs,
        feature_set.names,
        lookback=feature_set.lookback,
        scaling=feature_set.scaling,
        span_ms=(_day_ms(experiment.start), _day_ms(experiment.end)),
        input_versions=input_versions,
        origin=origin,
    )
    span = Span(
        dataset.ts,
        dataset.segments,
        experiment.start,
        experiment.end,
        experiment.final_from,
        origin,
    )
    window = max(experiment.variant(name)[0].window for name in experiment.variants)
    return replace(
        dataset,
        folds=tuple(folds(experiment.splits, span, feature_set.lookback, window)),
        final=final_period(span, window),
    )


def align(
    inputs: Sequence[SeriesInput],
    names: Sequence[str],
    *,
    lookback: int,
    scaling: str,
    span_ms: tuple[int, int],
    input_versions: Mapping[str, str],
    origin: str,
) -> Dataset:
    """Align series on the rows that all of them have, without folds.

    Args:
        inputs: the series; they become the instruments.
        names: columns of the features that are taken; none are fine.
        lookback: bars of each slice that have no features.
        scaling: of the policies that train on it.
        span_ms: [start, end) of the bars' opens.
        input_versions: name of each input to its content hash.
        origin: who asks, as errors name it.

    Raises:
        SplitError: no common rows.
    """
    ts = reduce(np.intersect1d, [_times(one.features) for one in inputs])
    ts = ts[slice(*np.searchsorted(ts, span_ms))]
    if not len(ts):
        held = ", ".join(
            f"{one.settings.key} {sum(grid.height for grid in one.grids)} bars in "
            f"{len(one.grids)} slice(s), {one.features.height} with features"
            for one in inputs
        )
        first, end = (_iso(ms)[:10] for ms in span_ms)
        raise SplitError(
            f"{origin}: no bar from {first} to {end} has features of every "
            f"series ({held}; lookback {lookback}). Widen the span, or choose series "
            "whose slices overlap and are longer than the lookback."
        )
    columns = [_aligned(one, ts, names) for one in inputs]

    def beside(name: str) -> NDArray[Any]:
        return np.stack([one[name] for one in columns], axis=1)

    first_series = inputs[0].settings
    calendar = find_calendar(first_series.calendar)
    return Dataset(
        ts=ts,
        # A row is known when the last of its bars has closed.
        close_ts=np.max([one["close_ts"] for one in columns], axis=0),
        open=beside("open"),
        high=beside("high"),
        low=beside("low"),
        close=beside("close"),
        volume=beside("volume"),
        traded=beside("traded"),
        features=beside("features"),
        segments=_segments(np.stack([one["ordinal"] for one in columns])),
        instruments=tuple(one.settings.key for one in inputs),
        feature_names=tuple(names),
        folds=(),
        final=_rows([]),
        lookback=lookback,
        scaling=scaling,
        timeframe=first_series.timeframe,
        bars_per_year=calendar.bars_per_year(
            first_series.timeframe_ms, first_series.is_daily_session
        ),
        days_per_year=365.0 if first_series.calendar == "24/7" else 252.0,
        input_versions=dict(input_versions),
        units=_units(inputs, beside("adj_factor")),
    )


def write_dataset(dataset: Dataset, staging: ArtifactLocation) -> BundleReference:
    """Write all members into a staging folder and seal it.

    The version hangs on the rows that were selected, not on what else the inputs hold: bars added
    outside the experiment's span leave it, and with it every policy, as it is. `inputs.json` is
    therefore hashed for integrity only.

    Raises:
        MarketError: a bar is not one that the simulator can step through.
    """
    _ = dataset.market  # refuses what the simulator could not step through
    folder = staging.path
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(dataset, name), allow_pickle=False)
    write_json(staging.child(DOCUMENT), dataset.document())
    write_json(staging.child(INPUTS), dict(dataset.input_versions))
    return seal(staging, [f"{name}.npy" for name in ARRAYS] + [DOCUMENT])


def load_dataset(location: ArtifactLocation, check: bool = True) -> Dataset:
    """Open a dataset bundle; its arrays are memory-mapped.

    Args:
        location: the bundle's folder.
        check: hash every member first; without it only the index is read.

    Raises:
        BundleError: a member is missing or differs from the bundle's index.
    """
    index = verify(location) if check else read_json(location.child("bundle.json"))
    document = read_json(location.child(DOCUMENT))
    arrays = {
        name: np.load(location.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ARRAYS
    }
    return Dataset(
        **arrays,
        instruments=tuple(document["instruments"]),
        feature_names=tuple(document["feature_names"]),
        folds=tuple(
            Fold(**{name: _rows(fold[name]) for name in Fold._fields}) for fold in document["folds"]
        ),
        final=_rows(document["final"]),
        lookback=document["lookback"],
        scaling=document["scaling"],
        timeframe=document["timeframe"],
        bars_per_year=document["bars_per_year"],
        days_per_year=document["days_per_year"],
        input_versions=read_json(location.child(INPUTS)),
        units=document["units"],
        version=index["version"],
    )


def tradable(grid: pl.DataFrame, volume_unit: str) -> pl.DataFrame:
    """A grid as it is traded: prices times `adj_factor`, volume in units of that price.

    One unit at such a price stands for `adj_factor` units of the instrument, so as many fewer of
    them were traded. What was traded in quote currency is divided by the bar's close first.

    Args:
        grid: prices and volume as stored.
        volume_unit: of the series: base, quote or shares.
    """
    factor = pl.col("adj_factor").fill_null(1.0)
    units = pl.col("volume") / pl.col("close") if volume_unit == "quote" else pl.col("volume")
    prices = (pl.col(name) * factor for name in PRICES if name != "volume")
    return grid.with_columns(*prices, volume=units / factor)


def _aligned(one: SeriesInput, ts: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """A series' columns on the rows `ts`; `ordinal` rises by one where no bar is missing."""
    grid = tradable(pl.concat(one.grids), one.settings.volume_unit)
    slice_numbers = np.repeat(np.arange(len(one.grids)), [part.height for part in one.grids])
    rows = np.searchsorted(_times(grid), ts)
    feature_rows = np.searchsorted(_times(one.features), ts)
    if not np.array_equal(_times(grid)[np.minimum(rows, grid.height - 1)], ts):
        raise SplitError(
            f"{one.settings.key}: its features have bars that its slices do not; materialize its "
            "features again from the current manifest."
        )
    # Without names: a selection of no columns would have no rows either.
    table = one.features.select(names).to_numpy() if names else np.empty((one.features.height, 0))
    features = table[feature_rows]
    return {
        "ordinal": (np.arange(grid.height) + slice_numbers)[rows],
        "close_ts": grid["close_ts"].dt.epoch("ms").to_numpy()[rows],
        **{name: grid[name].to_numpy()[rows] for name in PRICES},
        "adj_factor": grid["adj_factor"].fill_null(1.0).to_numpy()[rows],
        "traded": (grid["state"] == "traded").to_numpy()[rows],
        "features": features.astype(np.float32),
    }


def _units(inputs: Sequence[SeriesInput], factors: NDArray[np.float64]) -> str:
    """What was done to prices and volumes; `factors` are the adj_factor [T, N] of the rows."""
    said = []
    adjusted = [one.settings.key for n, one in enumerate(inputs) if (factors[:, n] != 1).any()]
    if adjusted:
        said.append(
            f"prices of {', '.join(adjusted)} are adjusted (each multiplied by adj_factor, 1 at "
            "the series' first bar) and volumes divided by it, so participation, impact and "
            "capacity are shares of what was traded; quantities, lots and fees per share count "
            "adjusted shares, each of which stands for adj_factor real ones: fees per share are "
            "too low by that factor"
        )
    quoted = [one.settings.key for one in inputs if one.settings.volume_unit == "quote"]
    if quoted:
        said.append(f"volumes of {', '.join(quoted)}, in quote currency, are divided by the close")
    return "; ".join(said)


def _segments(ordinals: NDArray[np.int64]) -> Rows:
    """Segments [S, 2] of rows in which no instrument misses a bar; `ordinals` is [N, T]."""
    gaps = np.flatnonzero((np.diff(ordinals, axis=1) != 1).any(axis=0)) + 1
    edges = np.concatenate([[0], gaps, [ordinals.shape[1]]])
    return _rows(np.stack([edges[:-1], edges[1:]], axis=1))


def _times(frame: pl.DataFrame) -> NDArray[np.int64]:
    return frame["ts"].dt.epoch("ms").to_numpy()


def _rows(pairs: Any) -> Rows:
    return np.ascontiguousarray(np.asarray(pairs, np.int64).reshape(-1, 2))


def _day_ms(day: Any) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def _iso(ms: Any) -> str:
    return datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat()
