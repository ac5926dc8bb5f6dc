"""`features/<set>`: other series beside a series, sets for one timeframe, and the causal check."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from trade_pipeline.cli import app
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.market.stored import read_grids
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.project import read_project
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import read_frame
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA, EXPERIMENT, materialize, write_yaml

BESIDE = {
    "indicators": [
        {"name": "returns", "params": {"horizons": [1]}},
        {"name": "relative_strength", "params": {"reference": BETA, "horizons": [3]}},
        {"name": "turbulence", "params": {"series": [BETA], "period": 20}},
    ]
}


def write_set(deployment: Deployment, name: str, content: object) -> None:
    write_yaml(deployment.places.configs / "features" / f"{name}.yaml", content)


def made(deployment: Deployment, *select: str, **where: str) -> dg.ExecuteInProcessResult:
    return materialize(deployment.places, deployment.instance, *select, **where)


def table_of(deployment: Deployment, name: str, series: str) -> pl.DataFrame:
    return read_frame(layout.features(deployment.places.store, name, series))


def causal(found: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    return next(one for one in found.get_asset_check_evaluations() if one.check_name == "causal")


def test_another_series_stands_beside_where_both_have_bars(imported: Deployment) -> None:
    write_set(imported, "beside", BESIDE)
    done = made(imported, "features/beside", first=ALPHA, last=BETA)
    assert done.success
    assert causal(done).passed

    series = read_project(imported.places.configs).series
    close = {}
    for key in (ALPHA, BETA):
        grid = pl.concat(read_grids(imported.places.store, series[key]))
        close[key] = dict(zip(grid["ts"], grid["close"], strict=True))
    days = sorted(close[ALPHA].keys() & close[BETA].keys())
    table = table_of(imported, "beside", ALPHA)
    assert table["ts"][0] >= datetime(2021, 3, 6, tzinfo=UTC), "BETA has no bar before"
    for ts, value in zip(table["ts"], table["relative_strength_3_made.BETA.1d"], strict=True):
        ago = days[days.index(ts) - 3]
        own, other = (np.log(close[key][ts] / close[key][ago]) for key in (ALPHA, BETA))
        assert value == pytest.approx(own - other, abs=1e-6)
    assert set(table_of(imported, "beside", BETA)["relative_strength_3_made.BETA.1d"]) == {0.0}


def test_all_series_hang_on_the_manifest_of_the_one_beside(imported: Deployment) -> None:
    write_set(imported, "beside", BESIDE)
    graph = build_definitions(imported.places).resolve_asset_graph()
    node = graph.get(dg.AssetKey(["features", "beside"]))
    mapping = node.partition_mappings[dg.AssetKey("manifest")]
    assert node.partitions_def is not None
    found = mapping.get_upstream_mapped_partitions_result_for_partitions(
        node.partitions_def.subset_with_partition_keys([ALPHA]),
        node.partitions_def,
        node.partitions_def,
        current_time=datetime.now(UTC),
        dynamic_partitions_store=imported.instance,
    )
    assert set(found.partitions_subset.get_partition_keys()) == {ALPHA, BETA}


def test_a_backtest_over_two_series_is_rebuilt(imported: Deployment) -> None:
    write_set(imported, "beside", BESIDE)
    write_yaml(
        imported.places.configs / "experiments" / "alone.yaml",
        {
            **EXPERIMENT,
            "features": "beside",
            "from": "2021-04-06",
            "splits": {"kind": "fraction", "train": 0.6, "validation": 0.2, "test": 0.2},
        },
    )
    assert made(imported, "features/beside", first=ALPHA, last=BETA).success
    assert made(imported, "alone/dataset").success
    store = str(imported.places.store)
    done = CliRunner().invoke(app, ["reproduce", "alone/dataset", "--store", store])
    assert done.exit_code == 0, done.output
    assert f"manifest|{BETA} as recorded" in done.output


def test_a_series_that_does_not_exist_stops_at_load(imported: Deployment) -> None:
    write_set(
        imported,
        "beside",
        {"indicators": [{"name": "relative_strength", "params": {"reference": "made.BETTA.1d"}}]},
    )
    with pytest.raises(SettingsError, match=r"beside.yaml.*made.BETTA.1d.*made.BETA.1d"):
        build_definitions(imported.places)


def test_a_set_for_another_timeframe_gives_an_empty_table_and_no_experiment(
    imported: Deployment,
) -> None:
    hourly: dict[str, Any] = {
        "timeframe": "1h",
        "indicators": [{"name": "rsi"}, {"name": "rsi", "timeframe": "1d"}],
    }
    write_set(imported, "hourly", hourly)
    done = made(imported, "features/hourly", first=ALPHA)
    assert done.success
    assert table_of(imported, "hourly", ALPHA).columns == ["ts", "rsi_14", "rsi_14_1d"]
    assert table_of(imported, "hourly", ALPHA).is_empty()
    content = {**EXPERIMENT, "features": "hourly"}
    write_yaml(imported.places.configs / "experiments" / "alone.yaml", content)
    with pytest.raises(SettingsError, match="'hourly', which is for bars of 1h"):
        build_definitions(imported.places)


LEAK = '''
"""Reads the next bar on one row in a thousand."""

import numpy as np

from trade_pipeline.features.indicator import Indicator
from trade_pipeline.settings.base import Settings


class Parameters(Settings):
    """None."""


def _leak(bars, parameters):
    """The change of the close; of the next bar on every thousandth."""
    close = bars["close"]
    change = np.append(np.nan, close[1:] / close[:-1] - 1)
    rare = np.flatnonzero(np.arange(close.size) % 1000 == 700)
    rare = rare[rare + 1 < close.size]
    change[rare] = change[rare + 1]
    return {"sly": change}


SLY = Indicator("sly", Parameters, ("close",), lambda _: ("sly",), lambda _: 1, _leak)
'''


def test_an_indicator_that_looks_ahead_on_one_row_in_a_thousand_stops_what_follows(
    imported: Deployment,
) -> None:
    folder = imported.places.configs / "indicators"
    folder.mkdir()
    (folder / "sly.py").write_text(LEAK, encoding="utf-8")
    write_set(imported, "tiny", {"indicators": [{"name": "returns"}, {"name": "sly"}]})
    done = made(imported, "features/tiny", first=ALPHA)
    check = causal(done)
    assert not check.passed
    rows = check.metadata["violations"].records
    (record,) = [one.data for one in rows if one.data["kind"] == "look-ahead"]
    assert (record["series"], record["column"]) == (ALPHA, "sly")
    grid = read_grids(imported.places.store, read_project(imported.places.configs).series[ALPHA])
    assert record["ts"] == str(grid[0]["ts"][700])
    assert not done.success, "it blocks what depends on it in the run"
    assert "sly, look-ahead" in (check.description or "")

    # Nor is anything built on it in a run of its own, or while other series are checked.
    later = made(imported, "alone/dataset")
    assert not later.success
    failure = next(event for event in later.all_events if event.is_step_failure)
    said = failure.step_failure_data.error_display_string
    assert "column sly failed the check `causal`" in said
    assert not causal(made(imported, "features/tiny", first=BETA)).passed
    # A set that is for other bars holds nothing of this series any more, and nothing against it.
    sly = [{"name": "returns"}, {"name": "sly"}]
    write_set(imported, "tiny", {"timeframe": "1h", "indicators": sly})
    write_yaml(imported.places.configs / "features" / "daily.yaml", {"indicators": sly[:1]})
    for name in ("alone", "pair"):
        imported.edit(f"configs/experiments/{name}.yaml", "features: tiny", "features: daily")
    assert causal(made(imported, "features/tiny", first=ALPHA)).passed
    for name in ("alone", "pair"):
        imported.edit(f"configs/experiments/{name}.yaml", "features: daily", "features: tiny")
    write_set(imported, "tiny", {"indicators": sly})

    (folder / "sly.py").write_text(LEAK.replace("== 700", "== 1700"), encoding="utf-8")
    mended = made(imported, "features/tiny", first=ALPHA, last=BETA)
    assert causal(mended).passed, "neither series has 1,700 rows"
    assert made(imported, "alone/dataset").success
