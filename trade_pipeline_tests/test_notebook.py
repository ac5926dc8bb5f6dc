"""The notebook face: what assets stored, in a few lines and without Dagster."""

import os
import subprocess
import sys

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import trade_pipeline
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import StorageError, read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, COLUMNS, materialize, series_entry, write_yaml

TRIALS = {"alone": "base.f1.s1", "pair": "base.f0.s0"}


def notebook(deployment: Deployment, *lines: str) -> str:
    """What lines print in a fresh Python, with the deployment's places in the environment."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env={
            **os.environ,
            "TRADE_PIPELINE_CONFIGS": str(deployment.places.configs),
            "TRADE_PIPELINE_STORE": str(deployment.places.store),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored_equity(deployment: Deployment, experiment: str) -> pl.Series:
    home = layout.experiment_bundle(
        deployment.places.store, experiment, "backtest", TRIALS[experiment]
    )
    return read_frame(bundles.current(home).child("equity.parquet"))["equity"]


def test_three_lines_repeat_a_backtest_bit_for_bit(trained: Deployment) -> None:
    for experiment, trial in TRIALS.items():
        printed = notebook(
            trained,
            "import trade_pipeline as tp",
            f"result = tp.backtest(tp.load_policy('{experiment}', '{trial}'))",
            "print(result.equity.tobytes().hex(), result.name)",
        )
        equity = stored_equity(trained, experiment).to_numpy().tobytes().hex()
        assert printed.split() == [equity, trial]


def test_any_range_is_backtested_in_one_line(trained: Deployment) -> None:
    trial = TRIALS["alone"]
    printed = notebook(
        trained,
        "import sys; import trade_pipeline as tp",
        f"asked = {{'policy': 'alone/policy/{trial}', 'start': '2021-08-23', 'end': '2021-12-21'}}",
        "found = tp.adhoc_backtest(**asked)",
        "print(found.result.equity.tobytes().hex(), *found.notes, 'dagster' in sys.modules)",
        "found = tp.adhoc_backtest(**asked, costs={'fee': {'bps': 0}}, initial_equity=500)",
        "print(found.result.equity[0], found.result.fees.sum())",
    )
    equity = stored_equity(trained, "alone").to_numpy().tobytes().hex()
    assert printed.split() == [equity, "False", "500.0", "0.0"]
    assert not (trained.places.store / "adhoc_backtest").exists()


def test_the_notebook_needs_no_dagster(imported: Deployment) -> None:
    printed = notebook(
        imported,
        "import sys; import trade_pipeline as tp",
        f"bars, table = tp.load_bars('{ALPHA}'), tp.load_features('tiny', '{ALPHA}')",
        "print(bars.height, table.height, 'dagster' in sys.modules)",
    )
    table = read_frame(layout.features(imported.places.store, "tiny", ALPHA))
    assert printed.split() == ["1000", str(table.height), "False"]


def test_features_are_as_stored(imported: Deployment) -> None:
    places = imported.places
    loaded = trade_pipeline.load_features(
        "tiny", ALPHA, configs=places.configs, store=str(places.store)
    )
    assert_frame_equal(loaded, read_frame(layout.features(places.store, "tiny", ALPHA)))


def test_prices_come_adjusted_or_as_the_source_has_them(empty: Deployment) -> None:
    path = empty.root / "data" / "alpha.csv"
    frame = pl.read_csv(path)
    factor = pl.int_range(pl.len()) / pl.len() + 1
    frame.with_columns(adj=pl.col("close") * factor).write_csv(path)
    entry = series_entry(ALPHA, "alpha.csv", 2020)
    entry["source"] = {
        "kind": "file", "path": "data/alpha.csv", "columns": COLUMNS | {"adj_close": "adj"}
    }  # fmt: skip
    write_yaml(empty.places.configs / "series.yaml", {"series": [entry]})
    (empty.places.configs / "experiments" / "pair.yaml").unlink()
    assert materialize(empty.places, empty.instance, "ohlcv", first=f"{ALPHA}|2020").success

    configs, store = empty.places.configs, empty.places.store
    raw = trade_pipeline.load_bars(ALPHA, adjust=False, configs=configs, store=store)
    assert raw["close"].to_list() == frame["close"].head(366).to_list()
    adjusted = trade_pipeline.load_bars(ALPHA, configs=configs, store=store)
    expected = frame.head(366).select(pl.col("close") * (pl.int_range(366) / frame.height + 1))
    assert adjusted["close"].to_list() == pytest.approx(expected["close"].to_list())


def test_a_policy_of_another_dataset_is_not_backtested(trained: Deployment) -> None:
    trained.edit("configs/experiments/alone.yaml", "train_days: 400", "train_days: 420")
    assert materialize(trained.places, trained.instance, "alone/dataset").success
    policy = trade_pipeline.load_policy(
        "alone", TRIALS["alone"], configs=trained.places.configs, store=trained.places.store
    )
    with pytest.raises(StorageError, match="materialize the policy again"):
        trade_pipeline.backtest(policy)


def test_a_changed_policy_is_refused_by_the_members_name(trained: Deployment) -> None:
    home = layout.experiment_bundle(trained.places.store, "alone", "policy", TRIALS["alone"])
    spoil(bundles.current(home), "policy.safetensors")
    with pytest.raises(bundles.BundleError, match=r"policy\.safetensors"):
        trade_pipeline.load_policy(
            "alone", TRIALS["alone"], configs=trained.places.configs, store=trained.places.store
        )


def spoil(bundle: ArtifactLocation, member: str) -> None:
    """Change one byte of a member."""
    path = bundle.path / member
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_unknown_names_give_the_closest(empty: Deployment) -> None:
    configs, store = empty.places.configs, empty.places.store
    places = {"configs": configs, "store": store}
    with pytest.raises(SettingsError, match=f"Did you mean '{ALPHA}'"):
        trade_pipeline.load_bars("made.ALPA.1d", configs=configs, store=store)
    with pytest.raises(SettingsError, match=f"Did you mean '{ALPHA}'"):
        trade_pipeline.load_features("tiny", "made.ALPA.1d", **places)
    with pytest.raises(SettingsError, match="Did you mean 'tiny'"):
        trade_pipeline.load_features("tini", ALPHA, **places)
    with pytest.raises(SettingsError, match="Did you mean 'alone'"):
        trade_pipeline.load_policy("alon", "base.f0.s0", **places)
    with pytest.raises(SettingsError, match=r"Did you mean 'base\.f1\.s1'"):
        trade_pipeline.load_policy("alone", "bse.f1.s1", **places)


def test_what_is_not_materialized_is_named(empty: Deployment) -> None:
    places = {"configs": empty.places.configs, "store": empty.places.store}
    with pytest.raises(StorageError, match=f"{ALPHA}.*materialize ohlcv"):
        trade_pipeline.load_bars(ALPHA, configs=places["configs"], store=places["store"])
    with pytest.raises(StorageError, match=f"features/tiny of {ALPHA}.*not materialized"):
        trade_pipeline.load_features("tiny", ALPHA, **places)
    with pytest.raises(bundles.BundleError, match=r"alone/policy/base\.f0\.s0.*materialize"):
        trade_pipeline.load_policy("alone", "base.f0.s0", **places)


def test_backtest_is_the_function_whatever_was_imported_before(empty: Deployment) -> None:
    printed = notebook(
        empty,
        "import trade_pipeline.backtest.trial; import trade_pipeline as tp",
        "names = [tp.backtest.__module__]; tp.load_policy; names.append(tp.backtest.__module__)",
        "print(*names, trade_pipeline.backtest.__module__)",
    )
    assert printed.split() == ["trade_pipeline.notebook"] * 3


def test_the_package_has_nothing_else() -> None:
    assert sorted(trade_pipeline.__all__) == [
        "adhoc_backtest",
        "backtest",
        "compare",
        "load_bars",
        "load_features",
        "load_policy",
    ]
    with pytest.raises(AttributeError, match="load_bar"):
        trade_pipeline.load_bar  # noqa: B018
