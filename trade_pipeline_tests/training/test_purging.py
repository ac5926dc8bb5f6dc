"""Purging and embargo, by proof: what one part of a fold learned or saw holds nothing of another.

Bars of some parts are made other bars, everything is computed anew, and what hangs on the other
parts must stay as it was: features and bars to the last bit, weights of a trained policy, too.
"""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.features.registry import resolve
from trade_pipeline.features.table import feature_table
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline.training.dataset import Dataset, SeriesInput, build_dataset
from trade_pipeline.training.policy import Normalizer
from trade_pipeline.training.splits import Rows, SplitError
from trade_pipeline_tests.training import synthetic

INDICATORS = [
    {"name": "returns", "params": {"horizons": [5]}},
    {"name": "sma_ratio", "params": {"period": 12}},
    {"name": "realised_volatility", "params": {"period": 8}},
]
SET = resolve(FeatureSetSettings.model_validate({"indicators": INDICATORS}), "purging")
KEY = "demo.A.1h"
PRICES = ["open", "high", "low", "close", "volume"]
SPLITS = (
    {"kind": "fraction", "train": 0.5, "validation": 0.25, "test": 0.25},
    {"kind": "calendar", "validation_from": "2021-01-12", "test_from": "2021-01-18"},
    {
        "kind": "walk_forward",
        "folds": 2,
        "train_days": 8,
        "validation_days": 4,
        "test_days": 4,
    },
    {
        "kind": "walk_forward",
        "folds": 2,
        "mode": "rolling",
        "train_days": 8,
        "validation_days": 4,
        "test_days": 4,
    },
)


def market(lengths: tuple[int, ...], seed: int) -> list[pl.DataFrame]:
    """Slices of hourly bars, ten hours apart."""
    rng = np.random.default_rng(seed)
    grids, start = [], synthetic.START_MS
    for rows in lengths:
        grids.append(synthetic.bars(rng, start, rows, price=100.0))
        start += (rows + 10) * synthetic.HOUR_MS
    return grids


def built(
    grids: list[pl.DataFrame], splits: dict[str, object], lookback: int = SET.lookback
) -> Dataset:
    content = synthetic.experiment((KEY,)).model_dump(mode="json", by_alias=True)
    experiment = synthetic.ExperimentSettings.model_validate({**content, "splits": splits})
    one = SeriesInput(synthetic.series(KEY), grids, feature_table(grids, SET))
    said = SimpleNamespace(names=SET.names, lookback=lookback, scaling="standard")
    return build_dataset([one], experiment, said, {}, "purging")  # type: ignore[arg-type]


def with_other_bars(
    grids: list[pl.DataFrame], from_ms: int, to_ms: int, most: float
) -> list[pl.DataFrame]:
    """Each bar from one time to before another times a factor of its own, up to `most`."""
    changed = []
    for number, grid in enumerate(grids):
        times = grid["ts"].dt.epoch("ms").to_numpy()
        drawn = np.random.default_rng(number).uniform(*sorted((1.0, most)), len(times))
        factor = np.where((times >= from_ms) & (times < to_ms), drawn, 1.0)
        changed.append(grid.with_columns(pl.col(name) * factor for name in PRICES))
    return changed


def seen(dataset: Dataset, part: Rows) -> bytes:
    """All that episodes of a part can see: features and bars of its rows."""
    return b"".join(
        np.ascontiguousarray(getattr(dataset, name)[a:b]).tobytes()
        for a, b in part.tolist()
        for name in ("features", *PRICES, "traded")
    )


@settings(max_examples=25, deadline=None)
@given(
    splits=st.sampled_from(SPLITS),
    lengths=st.lists(st.integers(60, 400), min_size=2, max_size=4),
    seed=st.integers(0, 10),
    most=st.sampled_from([0.5, 1.001, 3.0]),
)
def test_no_part_sees_anything_of_another(
    splits: dict[str, object], lengths: list[int], seed: int, most: float
) -> None:
    grids = market((200, *lengths), seed)
    try:
        honest = built(grids, splits)
    except SplitError:  # too short for these splits
        return
    end = int(honest.ts[-1]) + synthetic.HOUR_MS
    for number, fold in enumerate(honest.folds):
        last_train = int(honest.ts[fold.train[-1, 1] - 1])
        last_validation = int(honest.ts[fold.validation[-1, 1] - 1])
        after_train = built(with_other_bars(grids, last_train + 1, end, most), splits)
        assert seen(after_train, fold.train) == seen(honest, fold.train)
        after = built(with_other_bars(grids, last_validation + 1, end, most), splits)
        for name in ("train", "validation"):
            part = getattr(fold, name)
            np.testing.assert_array_equal(getattr(after.folds[number], name), part)
            assert seen(after, part) == seen(honest, part)
        before = built(with_other_bars(grids, 0, last_train + 1, most), splits)
        for part in (fold.validation, fold.test):
            assert seen(before, part) == seen(honest, part)
        before = built(with_other_bars(grids, 0, last_validation + 1, most), splits)
        assert seen(before, fold.test) == seen(honest, fold.test)


@pytest.mark.parametrize("splits", SPLITS, ids=lambda one: f"{one['kind']}-{one.get('mode', '')}")
def test_without_an_embargo_the_test_part_does_see_what_came_before(
    splits: dict[str, object],
) -> None:
    """The proof above can fail: it is the embargo that keeps the parts apart."""
    grids = market((700,), 0)
    honest = built(grids, splits, lookback=0)
    for fold in honest.folds:
        last_validation = int(honest.ts[fold.validation[-1, 1] - 1])
        changed = built(with_other_bars(grids, 0, last_validation + 1, 3.0), splits, lookback=0)
        assert seen(changed, fold.test) != seen(honest, fold.test)


def test_scaling_is_of_the_training_part_alone() -> None:
    grids = market((300, 300), 1)
    for splits in SPLITS:
        honest = built(grids, splits)
        for number, fold in enumerate(honest.folds):
            last_train = int(honest.ts[fold.train[-1, 1] - 1])
            changed = built(with_other_bars(grids, last_train + 1, 2**60, 3.0), splits)
            for scaling in ("standard", "robust", "rank"):
                found, expected = (
                    Normalizer.fit(one.features, one.folds[number].train, scaling)
                    for one in (changed, honest)
                )
                np.testing.assert_equal(asdict(found), asdict(expected))
            other = built(with_other_bars(grids, 0, last_train, 3.0), splits)
            fitted = Normalizer.fit(other.features, other.folds[number].train, "standard")
            expected = Normalizer.fit(honest.features, fold.train, "standard")
            assert not np.array_equal(fitted.mean, expected.mean)
