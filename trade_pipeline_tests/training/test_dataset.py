from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from trade_pipeline.backtest.bundle import figures, notes_of_dataset
from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.strategies import baseline
from trade_pipeline.settings.baselines import EqualWeightBaseline
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage.bundles import BundleError
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import (
    ARRAYS,
    Dataset,
    SeriesInput,
    build_dataset,
    load_dataset,
    write_dataset,
)
from trade_pipeline.training.splits import SplitError
from trade_pipeline_tests.training import synthetic

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")


def build(inputs: list[SeriesInput], experiment: ExperimentSettings) -> Dataset:
    return build_dataset(inputs, experiment, synthetic.FEATURES, {}, "experiment demo")  # type: ignore[arg-type]


def test_each_slice_becomes_a_segment_without_the_rows_of_the_lookback() -> None:
    dataset = synthetic.dataset(lengths=(120, 60, 50))
    assert dataset.segments.tolist() == [[0, 117], [117, 174], [174, 221]]
    assert dataset.features.shape == (221, 1, 2)
    assert dataset.features.dtype == np.float32
    grid = synthetic.inputs(ONE, (120, 60, 50))[0].grids[1]
    np.testing.assert_array_equal(dataset.close[117:174, 0], grid["close"].to_numpy()[3:])
    np.testing.assert_array_equal(
        dataset.traded[117:174, 0], (grid["state"] == "traded").to_numpy()[3:]
    )
    assert dataset.bars_per_year == 365 * 24
    assert dataset.days_per_year == 365


def test_instruments_share_rows_and_a_gap_in_one_ends_the_segment_of_all() -> None:
    first, second = synthetic.inputs(TWO, (120,))
    grid = second.grids[0]
    parts = [grid[:50], grid[60:]]
    broken = SeriesInput(second.settings, parts, synthetic.features(parts))
    dataset = build([first, broken], synthetic.experiment(TWO))
    # 50 - 3 rows, then 60 - 3: the lookback begins again after the gap.
    assert dataset.segments.tolist() == [[0, 47], [47, 104]]
    assert dataset.instruments == TWO
    np.testing.assert_array_equal(dataset.close[47:, 0], first.grids[0]["close"].to_numpy()[63:])
    np.testing.assert_array_equal(dataset.close[47:, 1], grid["close"].to_numpy()[63:])


def test_rows_outside_the_experiments_dates_are_left_out() -> None:
    inputs = synthetic.inputs(ONE, (400,))
    dataset = build(inputs, synthetic.experiment().model_copy(update={"end": date(2021, 1, 9)}))
    assert len(dataset.ts) == 8 * 24 - 3


def test_a_written_dataset_is_read_back_memory_mapped_with_its_version(tmp_path: Path) -> None:
    dataset = synthetic.dataset(TWO)
    reference = write_dataset(dataset, ArtifactLocation(tmp_path, "staging/one"))
    read = load_dataset(reference.location)
    assert read.version == reference.version
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(read, name), getattr(dataset, name))
    assert isinstance(read.features, np.memmap)
    assert read.document() == dataset.document()
    np.testing.assert_array_equal(read.folds[0].test, dataset.folds[0].test)
    again = write_dataset(dataset, ArtifactLocation(tmp_path, "staging/two"))
    assert again.version == reference.version


def test_a_changed_member_is_refused(tmp_path: Path) -> None:
    reference = write_dataset(synthetic.dataset(), ArtifactLocation(tmp_path, "staging/one"))
    member = reference.location.path / "close.npy"
    content = bytearray(member.read_bytes())
    content[-1] ^= 1
    member.write_bytes(content)
    with pytest.raises(BundleError, match=r"close\.npy"):
        load_dataset(reference.location)


def test_the_longest_window_of_all_variants_must_fit() -> None:
    experiment = synthetic.experiment(
        variants={"base": {}, "long": {"environment": {"window": 90}}}
    )
    with pytest.raises(SplitError, match=r"experiment demo: .* window of 90 needs 92"):
        build(synthetic.inputs(ONE, (120, 60, 50)), experiment)


def test_series_without_a_common_bar_are_named_with_their_sizes() -> None:
    first, second = synthetic.inputs(TWO, (60,))
    empty = replace(second, features=second.features.clear())
    with pytest.raises(SplitError, match=r"demo\.B\.1h 60 bars in 1 slice\(s\), 0 with features"):
        build([first, empty], synthetic.experiment(TWO))


def test_features_newer_than_the_slices_are_refused() -> None:
    (one,) = synthetic.inputs(ONE, (60, 60))
    stale = replace(one, grids=one.grids[:1])
    with pytest.raises(SplitError, match=r"demo\.A\.1h: its features have bars"):
        build([stale], synthetic.experiment())


def stored_as(given: SeriesInput, factor: float, unit: str) -> SeriesInput:
    """The same market, as a source stores it that splits 1 to `factor` half-way."""
    (grid,) = given.grids
    split = pl.int_range(pl.len()) >= grid.height // 2
    rate = pl.when(split).then(factor).otherwise(1.0)
    prices = [pl.col(name) / rate for name in ("open", "high", "low", "close")]
    stored = grid.with_columns(*prices, volume=pl.col("volume") * rate, adj_factor=rate)
    if unit == "quote":
        stored = stored.with_columns(volume=pl.col("volume") * pl.col("close"))
    settings = given.settings.model_copy(update={"volume_unit": unit})
    return SeriesInput(settings, [stored], given.features)


@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("unit", ["base", "shares", "quote"])
def test_volume_counts_units_of_the_price_however_it_is_stored(factor: float, unit: str) -> None:
    (one,) = synthetic.inputs(ONE, (400,))
    experiment = synthetic.experiment()
    usual, found = (build([given], experiment) for given in (one, stored_as(one, factor, unit)))
    for name in ("open", "high", "low", "close", "volume"):
        np.testing.assert_allclose(getattr(found, name), getattr(usual, name), rtol=1e-12)
    # What an account does in it is the same, too: impact, participation, capacity.
    environment = experiment.environment.model_dump(mode="json")
    environment["actions"] = {"kind": "weights"}
    environment["costs"] |= {
        "slippage": {"kind": "impact", "bps": 1.0, "impact_bps": 30.0},
        "participation": 0.02,
    }
    limited = EnvironmentSettings.model_validate(environment)
    even = baseline(EqualWeightBaseline(kind="equal_weight"))
    results = [backtest(data, data.segments, limited, even) for data in (usual, found)]
    np.testing.assert_allclose(results[1].equity, results[0].equity, rtol=1e-9)
    shares = [
        figures(result, data)["capacity"]["values"]["largest_share"]
        for result, data in zip(results, (usual, found), strict=True)
    ]
    assert shares[0] == pytest.approx(0.02)  # the cap binds: without it an order takes a bar's all
    assert shares[1] == pytest.approx(shares[0])


def test_units_are_told_where_they_are_not_the_sources(tmp_path: Path) -> None:
    (one,) = synthetic.inputs(ONE, (400,))
    plain = build([one], synthetic.experiment())
    assert plain.units == ""
    assert notes_of_dataset(plain)[0] == "1 instrument(s) in bars of 1h."
    told = build([stored_as(one, 4.0, "quote")], synthetic.experiment())
    read = load_dataset(write_dataset(told, ArtifactLocation(tmp_path, "staging/one")).location)
    (first, *_) = notes_of_dataset(read)
    assert "prices of demo.A.1h are adjusted" in first and "fees per share are too low" in first
    assert "volumes of demo.A.1h, in quote currency, are divided by the close" in first
    # A factor of 1 adjusts nothing.
    assert build([stored_as(one, 1.0, "shares")], synthetic.experiment()).units == ""
