"""What bad input gets: a sentence that names it, and a store that stays as it was."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.storage import layout
from trade_pipeline_tests.defs.staleness import version
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import (
    ALPHA,
    BETA,
    COLUMNS,
    import_bars,
    materialize,
    series_entry,
    write_yaml,
)


def stored_bytes(deployment: Deployment) -> dict[str, bytes]:
    """Every stored artefact; lock files, verdicts and staging aside."""
    store = deployment.places.store
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
        and not path.name.endswith(".lock")
        and path.relative_to(store).parts[0] not in ("verdicts", "staging")
    }


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    """Everything that the failed steps of a run said."""
    texts = []
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None:
                texts.append(error.message)
                error = error.cause
            described = event.step_failure_data.user_failure_data
            texts.append(described.description or "" if described else "")
    return "\n".join(texts)


def spoil(path: Path, row: int, **values: object) -> None:
    """Write other values into one row of a CSV (0 is the first bar)."""
    frame = pl.read_csv(path)
    at = pl.int_range(pl.len()) == row
    frame.with_columns(
        pl.when(at).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    ).write_csv(path)


def swap_rows(path: Path) -> None:
    frame = pl.read_csv(path)
    order = list(range(frame.height))
    order[100], order[101] = order[101], order[100]
    frame[order].write_csv(path)


def repeat_row(path: Path) -> None:
    frame = pl.read_csv(path)
    pl.concat([frame.head(101), frame.slice(100, 1), frame.slice(101)]).write_csv(path)


ROW_DEFECTS = {
    "close below low": (lambda path: spoil(path, 100, close=0.01), ["102", "close"]),
    "NaN": (lambda path: spoil(path, 100, open=float("nan")), ["102", "open"]),
    "negative price": (lambda path: spoil(path, 100, low=-1.0), ["102", "low"]),
    "negative volume": (lambda path: spoil(path, 100, volume=-1.0), ["102", "volume"]),
    "descending": (swap_rows, ["103", "ts"]),
    "duplicated timestamp": (repeat_row, ["103", "ts"]),
    "off the grid": (lambda path: spoil(path, 100, ts="2020-04-10T00:00:01"), ["102", "ts"]),
}


@pytest.mark.parametrize("defect", ROW_DEFECTS)
def test_a_bad_row_is_named_and_what_is_stored_stays(imported: Deployment, defect: str) -> None:
    before = stored_bytes(imported)
    version_before = version(imported, "ohlcv", f"{ALPHA}|2020")
    break_file, named = ROW_DEFECTS[defect]
    break_file(imported.root / "data" / "alpha.csv")

    result = materialize(imported.places, imported.instance, "ohlcv", first=f"{ALPHA}|2020")

    assert not result.success
    text = failure_text(result)
    assert all(word in text for word in ("alpha.csv", ALPHA, *named)), text
    assert stored_bytes(imported) == before
    assert version(imported, "ohlcv", f"{ALPHA}|2020") == version_before


def test_the_check_holds_a_table_of_the_bad_rows(imported: Deployment) -> None:
    spoil(imported.root / "data" / "alpha.csv", 100, close=0.01)
    result = materialize(imported.places, imported.instance, "ohlcv", first=f"{ALPHA}|2020")
    (evaluation,) = [
        one for one in result.get_asset_check_evaluations() if one.check_name == "valid_bars"
    ]
    assert not evaluation.passed
    assert evaluation.metadata["partitions_refused"].value == [f"{ALPHA}|2020"]
    records = evaluation.metadata["first_bad_rows"].records
    assert records[0].data["row"] == "102"
    assert records[0].data["column"] in ("close", "low")


def test_in_a_range_the_good_series_commits_and_the_bad_is_named(empty: Deployment) -> None:
    spoil(empty.root / "data" / "alpha.csv", 500, high=0.01)
    result = import_bars(empty.places, empty.instance)
    assert not result.success
    assert f"{ALPHA}|2021" in failure_text(result)
    found = empty.instance.get_materialized_partitions(dg.AssetKey("ohlcv"))
    assert {f"{BETA}|2021", f"{BETA}|2022", f"{ALPHA}|2020", f"{ALPHA}|2022"} <= found
    assert f"{ALPHA}|2021" not in found
    assert version(empty, "ohlcv", f"{BETA}|2021") != version(empty, "ohlcv", f"{BETA}|2022")


def test_refusals_of_different_kinds_stand_beside_each_other(imported: Deployment) -> None:
    spoil(imported.root / "data" / "alpha.csv", 100, close=0.01)
    (imported.root / "data" / "beta.csv").unlink()
    result = import_bars(imported.places, imported.instance)
    text = failure_text(result)
    assert all(word in text for word in ("alpha.csv", "beta.csv", "102")), text
    records = [
        record
        for one in result.get_asset_check_evaluations()
        if one.check_name == "valid_bars"
        for record in one.metadata["first_bad_rows"].records
    ]
    assert {record.data["rule"] for record in records} >= {"source"}
    again = materialize(imported.places, imported.instance, "ohlcv", first=f"{ALPHA}|2021")
    assert again.success, "a good partition imports whatever else was refused before"


@pytest.mark.parametrize("asset", ["ohlcv", "manifest"])
def test_a_range_that_ends_before_it_starts_is_refused(imported: Deployment, asset: str) -> None:
    first, last = (f"{BETA}|2021", f"{ALPHA}|2020") if asset == "ohlcv" else (BETA, ALPHA)
    result = materialize(imported.places, imported.instance, asset, first=first, last=last)
    assert not result.success
    assert "range" in failure_text(result)


def test_a_changed_byte_in_stored_bars_goes_no_further(imported: Deployment) -> None:
    path = layout.ohlcv(imported.places.store, ALPHA, 2021).path
    frame, metadata = pl.read_parquet(path), pl.read_parquet_metadata(path)
    metadata.pop("ARROW:schema")
    frame.with_columns(volume=pl.col("volume") + 1).write_parquet(path, metadata=metadata)
    result = materialize(imported.places, imported.instance, "manifest", first=ALPHA)
    assert not result.success
    assert "2021.parquet: its content is not what was written" in failure_text(result)


def test_a_verdict_stands_until_its_partition_is_imported_well(imported: Deployment) -> None:
    path = imported.root / "data" / "alpha.csv"
    good = path.read_bytes()

    def passed(partition: str) -> bool:
        result = materialize(imported.places, imported.instance, "ohlcv", first=partition)
        (one,) = [x for x in result.get_asset_check_evaluations() if x.check_name == "valid_bars"]
        return one.passed

    spoil(path, 100, close=0.01)
    assert not passed(f"{ALPHA}|2020")
    assert not passed(f"{BETA}|2021"), "another partition's success must not hide the bad one"
    path.write_bytes(good)
    assert passed(f"{ALPHA}|2020")


def test_a_file_that_cannot_be_read_is_named(imported: Deployment) -> None:
    path = imported.root / "data" / "alpha.csv"
    content, before = path.read_bytes(), stored_bytes(imported)

    def refusal() -> str:
        result = materialize(imported.places, imported.instance, "ohlcv", first=f"{ALPHA}|2020")
        assert not result.success
        assert stored_bytes(imported) == before
        return failure_text(result)

    path.unlink()
    assert "alpha.csv" in refusal()
    path.write_bytes(content.replace(b"close", b"last", 1))
    assert "close" in refusal()
    imported.edit("configs/series.yaml", "data/alpha.csv", "data/alpha.csv.gz")
    (path.parent / "alpha.csv.gz").write_bytes(gzip.compress(content)[:-2000])
    text = refusal()
    assert "alpha.csv.gz" in text
    assert ALPHA in text


def test_real_data_with_close_below_low_is_refused(empty: Deployment, shared_data: Path) -> None:
    (archive,) = (shared_data / "stocks_daily").glob("finrl*.csv.gz")
    entry = series_entry("dow.AAPL.1d", "x", 2020)
    entry["calendar"] = "XNYS"
    entry["source"] = {
        "kind": "file",
        "path": str(archive),
        "columns": {**COLUMNS, "ts": "date"},
        "row_filter": {"tic": "AAPL"},
        "time_format": "%Y-%m-%d",
    }
    write_yaml(empty.places.configs / "series.yaml", {"series": [entry]})
    for file in (empty.places.configs / "experiments").glob("*.yaml"):
        file.unlink()
    result = materialize(
        empty.places, empty.instance, "ohlcv", first="dow.AAPL.1d|2020", last="dow.AAPL.1d|2021"
    )
    assert not result.success
    text = failure_text(result)
    assert all(f"dow.AAPL.1d|{year}: " in text for year in (2020, 2021)), text
    assert archive.name in text
    assert "close" in text
    assert stored_bytes(empty) == {}


CONFIG_ERRORS = {
    "misspelt key of an experiment": (
        "experiments/alone.yaml",
        "seeds:",
        "sedes:",
        ["alone.yaml", "sedes", "seeds"],
    ),
    "misspelt nested key": (
        "experiments/alone.yaml",
        "rollout_steps",
        "rolout_steps",
        ["alone.yaml", "algorithm", "rolout_steps", "rollout_steps"],
    ),
    "unknown series": (
        "experiments/alone.yaml",
        ALPHA,
        "made.ALPA.1d",
        ["alone.yaml", "made.ALPA.1d", ALPHA],
    ),
    "unknown feature set": (
        "experiments/alone.yaml",
        "features: tiny",
        "features: tini",
        ["alone.yaml", "tini", "tiny"],
    ),
    "misspelt key of a series": (
        "series.yaml",
        "calendar:",
        "calender:",
        ["series.yaml", "calender", "calendar"],
    ),
    "misspelt indicator": (
        "features/tiny.yaml",
        "sma_ratio",
        "sma_ration",
        ["tiny.yaml", "sma_ration", "sma_ratio"],
    ),
    "misspelt parameter": (
        "features/tiny.yaml",
        "period",
        "perod",
        ["tiny.yaml", "perod", "period"],
    ),
    "misspelt compute key": (
        "compute/local.yaml",
        "kind: local",
        "kind: local\ntimeuot_s: 5",
        ["local.yaml", "timeuot_s", "timeout_s"],
    ),
    "unknown calendar": (
        "series.yaml",
        "calendar: 24/7",
        "calendar: XNYZ",
        ["series.yaml", "calendar", ALPHA, "XNYZ"],
    ),
    "impossible date": (
        "experiments/alone.yaml",
        "'2022-09-01'",
        "2022-02-31",
        ["alone.yaml", "impossible date"],
    ),
    "span that ends before it starts": (
        "experiments/alone.yaml",
        "'2022-09-01'",
        "'2019-09-01'",
        ["alone.yaml", "from 2020-01-01 must come before to 2019-09-01"],
    ),
    "impossible value": (
        "experiments/alone.yaml",
        "batch_size: 128",
        "batch_size: 100",
        ["alone.yaml", "100", "256"],
    ),
    "starts stratified by no feature": (
        "experiments/alone.yaml",
        "environment:",
        "environment:\n  starts: {kind: stratified, label: regime}",
        ["alone.yaml", "starts.label", "'regime'", "tiny"],
    ),
    "lot sizes for another number of series": (
        "experiments/alone.yaml",
        "environment:",
        "environment:\n  costs: {lot_size: [1, 2]}",
        ["alone.yaml", "costs.lot_size lists 2 numbers for 1 instruments"],
    ),
    "a size beyond the leverage": (
        "experiments/alone.yaml",
        "environment:",
        "environment:\n  max_leverage: 0.25",
        ["alone.yaml", "max_leverage", "0.25"],
    ),
    "a reward term's module that does not exist": (
        "experiments/alone.yaml",
        "environment:",
        "environment:\n  reward: [{term: custom, function: 'no_such.terms:holding'}]",
        ["alone.yaml", "reward", "'no_such.terms'", "PYTHONPATH"],
    ),
    "a reward term without a function": (
        "experiments/alone.yaml",
        "environment:",
        "environment:\n  reward: [{term: custom, function: my_terms}]",
        ["alone.yaml", "my_terms", "write module:function, such as my_terms:holding"],
    ),
    "a kind written as a word": (
        "experiments/alone.yaml",
        "environment:",
        "environment:\n  starts: uniform",
        ["alone.yaml", "environment.starts", "'uniform'", "a mapping is needed"],
    ),
    "unknown reward term": (
        "experiments/alone.yaml",
        "environment:",
        "environment:\n  reward: [{term: log_returns}]",
        ["alone.yaml", "reward", "log_returns", "log_return"],
    ),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_a_wrong_configuration_is_named_before_anything_runs(empty: Deployment, case: str) -> None:
    file, old, new, words = CONFIG_ERRORS[case]
    empty.edit(f"configs/{file}", old, new)
    with pytest.raises(SettingsError) as caught:
        build_definitions(empty.places)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_file_that_would_be_overlooked_is_an_error(empty: Deployment) -> None:
    folder = empty.places.configs / "experiments"
    (folder / "alone.yaml").rename(folder / "alone.yml")
    with pytest.raises(SettingsError, match=r"alone\.yml.*rename"):
        build_definitions(empty.places)


def test_a_key_written_twice_is_an_error(empty: Deployment) -> None:
    path = empty.places.configs / "compute" / "local.yaml"
    path.write_text("kind: local\nkind: local\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"local\.yaml.*twice"):
        build_definitions(empty.places)


@pytest.mark.parametrize(
    "name", ["leaderboard", "ohlcv", "features", "pods", "pod_costs", "volume_storage"]
)
def test_an_experiment_cannot_take_a_reserved_name(empty: Deployment, name: str) -> None:
    folder = empty.places.configs / "experiments"
    (folder / "alone.yaml").rename(folder / f"{name}.yaml")
    with pytest.raises(SettingsError, match=f"{name}.*reserved"):
        build_definitions(empty.places)


def test_slices_shorter_than_the_window_are_refused_with_the_numbers(imported: Deployment) -> None:
    imported.edit("configs/experiments/alone.yaml", "window: 4", "window: 200")
    result = materialize(imported.places, imported.instance, "alone/dataset")
    assert not result.success
    text = failure_text(result)
    assert all(word in text for word in ("alone.yaml", "200", "202")), text


def test_features_are_not_computed_from_bars_that_the_manifest_does_not_know(
    imported: Deployment,
) -> None:
    spoil(imported.root / "data" / "beta.csv", 100, volume=7.0)
    assert import_bars(imported.places, imported.instance).success
    result = materialize(imported.places, imported.instance, "features/tiny", first=BETA)
    assert not result.success
    text = failure_text(result)
    assert all(word in text for word in (BETA, "2021", "materialize manifest")), text


def test_a_policy_of_another_dataset_is_not_backtested(trained: Deployment) -> None:
    trained.edit("configs/experiments/alone.yaml", "train_days: 400", "train_days: 420")
    assert materialize(trained.places, trained.instance, "alone/dataset").success
    result = materialize(trained.places, trained.instance, "alone/backtest", first="base.f0.s0")
    assert not result.success
    assert "materialize the policy again" in failure_text(result)


def command_line(deployment: Deployment, *options: str) -> subprocess.CompletedProcess[str]:
    """`dagster asset materialize` as a user runs it."""
    home = deployment.root / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}}))
    module = ["-m", "trade_pipeline.definitions"]
    return subprocess.run(
        [sys.executable, "-m", "dagster", "asset", "materialize", *module, *options],
        env={
            **os.environ,
            "DAGSTER_HOME": str(home),
            "TRADE_PIPELINE_CONFIGS": str(deployment.places.configs),
            "TRADE_PIPELINE_STORE": str(deployment.places.store),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_line_names_what_does_not_exist(empty: Deployment) -> None:
    asked = {
        ("--select", "nowhere/policy"): "nowhere",
        ("--select", "alone/policy", "--partition", "base.f9.s0"): "base.f9.s0",
        ("--select", "ohlcv", "--partition", "made.GAMMA.1d|2020"): "made.GAMMA.1d",
    }
    for options, named in asked.items():
        done = command_line(empty, *options)
        assert done.returncode != 0
        assert named in done.stdout + done.stderr


def test_the_command_line_materializes_a_partition(empty: Deployment) -> None:
    done = command_line(empty, "--select", "ohlcv", "--partition", f"{ALPHA}|2020")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (empty.places.store / "ohlcv" / ALPHA / "2020.parquet").exists()
