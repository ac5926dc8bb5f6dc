"""Plug-ins in the code location: stale when their code changes, harmless when broken."""

import shutil
from functools import partial
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from trade_pipeline.cli import app
from trade_pipeline.defs import build
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.features.plugins.loading import load_plugins
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.project import INDICATORS_VARIABLE
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import read_frame
from trade_pipeline_tests.defs.staleness import stale, version
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.features.plugin_files import drop_in, write
from trade_pipeline_tests.small_project import ALPHA, BETA, EXPERIMENT, materialize, write_yaml

RETURN = "np.append(np.nan, close[1:] / close[:-1] - 1)[: close.size]"
FILE = "configs/indicators/change.py"


@pytest.fixture
def plugged(imported: Deployment) -> Deployment:
    """The small project with a drop-in indicator, a set of it, and an experiment on that."""
    configs = imported.places.configs
    write(configs / "indicators", change=drop_in("change", RETURN))
    entries = [{"name": "change"}, {"name": "sma_ratio", "params": {"period": 10}}]
    write_yaml(configs / "features" / "own.yaml", {"indicators": entries})
    experiment = {**EXPERIMENT, "features": "own", "baselines": [{"kind": "flat"}]}
    write_yaml(configs / "experiments" / "mine.yaml", experiment)
    return imported


def materialize_features(deployment: Deployment) -> None:
    done = materialize(
        deployment.places, deployment.instance, "features/own", first=ALPHA, last=BETA
    )
    assert done.success


def why_failed(deployment: Deployment, asset: str, partition: str | None = None) -> str:
    """Description of the failure of an asset's step."""
    done = materialize(deployment.places, deployment.instance, asset, first=partition)
    assert not done.success
    step = next(event for event in done.all_events if event.is_step_failure)
    return str(step.step_failure_data.user_failure_data.description)


def test_a_set_with_a_drop_in_indicator_is_computed_and_stale_when_its_formula_changes(
    plugged: Deployment,
) -> None:
    materialize_features(plugged)
    table = read_frame(layout.features(plugged.places.store, "own", ALPHA))
    shipped = read_frame(layout.features(plugged.places.store, "tiny", ALPHA))
    both = table.join(shipped, on="ts", how="inner")
    assert both.height > 900
    assert both["change"].equals(both["return_1"])
    assert materialize(plugged.places, plugged.instance, "mine/dataset").success
    assert {name for name in stale(plugged) if name.startswith(("features", "mine/d"))} == set()

    plugged.edit(FILE, "def compute", "# of one bar\n\n\ndef compute")
    plugged.edit(FILE, '"""None."""', '"""There are none."""')
    assert {name for name in stale(plugged) if name.startswith(("features", "mine/d"))} == set()

    before = version(plugged, "features/own", ALPHA)
    plugged.edit(FILE, "close[:-1] - 1", "close[:-1] - 1.5")
    found = {name for name in stale(plugged) if name.startswith(("features", "mine/d"))}
    assert found == {f"features/own|{ALPHA}", f"features/own|{BETA}", "mine/dataset"}
    materialize_features(plugged)
    assert version(plugged, "features/own", ALPHA) != before
    changed = read_frame(layout.features(plugged.places.store, "own", ALPHA))
    assert (
        (table["change"] - changed["change"])
        .round(4)
        .equals(pl.Series("change", [0.5] * table.height, pl.Float32))
    )


def test_reproduce_names_a_plug_in_that_differs_or_is_missing(
    plugged: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize_features(plugged)
    assert materialize(plugged.places, plugged.instance, "mine/dataset").success
    folder = plugged.places.configs / "indicators"
    monkeypatch.setenv(INDICATORS_VARIABLE, str(folder))
    words = ["reproduce", "mine/dataset", "--store", str(plugged.places.store)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output

    plugged.edit(FILE, "close[:-1] - 1", "close[:-1] - 1.5")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "is not reproduced: implementation plugin.change was source " in done.stderr

    shutil.rmtree(folder)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "plug-in indicator 'change' (source " in done.stderr
    assert INDICATORS_VARIABLE in done.stderr


def test_a_broken_plug_in_fails_its_set_and_dataset_and_nothing_else(plugged: Deployment) -> None:
    plugged.edit(FILE, "import numpy as np", "import nump as np")
    definitions = build_definitions(plugged.places)
    graph = definitions.resolve_asset_graph()
    broken = [dg.AssetKey(["features", "own"]), dg.AssetKey(["mine", "dataset"])]
    for key in broken:
        said = graph.get(key).description
        for words in ("own.yaml: indicators.0 names", "'change'", "change.py", "'nump'"):
            assert words in str(said)
    assert graph.get(broken[1]).parent_keys == {broken[0]}
    names = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert {"alone/policy", "alone/report", "leaderboard", "features/tiny"} <= names
    assert not names & {"mine/policy", "mine/report"}

    assert "No module named 'nump'" in why_failed(plugged, "features/own", ALPHA)
    assert "No module named 'nump'" in why_failed(plugged, "mine/dataset")
    assert materialize(plugged.places, plugged.instance, "storage_use").success

    plugged.edit(FILE, "import nump as np", "import numpy as np")
    materialize_features(plugged)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("__import__('os')._exit(3)", "ended the process with exit code 3"),
        ("[0 for _ in iter(int, 1)]", "does not end within 3 s"),
    ],
)
def test_a_plug_in_that_kills_at_a_sets_parameters_leaves_the_code_location_alive(
    plugged: Deployment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, words: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "load_plugins", partial(load_plugins, limit_s=3.0))
    plugged.edit(FILE, '"""None."""', "level: int = 1")
    plugged.edit(
        FILE,
        'parameters: ("change",)',
        f'parameters: ("change",) if parameters.level < 7 else {how}',
    )
    plugged.edit("configs/features/own.yaml", "name: change", "{name: change, params: {level: 7}}")
    graph = build_definitions(plugged.places).resolve_asset_graph()
    said = str(graph.get(dg.AssetKey(["features", "own"])).description)
    for each in (
        "own.yaml: indicators.0 (change) is broken at these parameters",
        "change.py",
        words,
    ):
        assert each in said
    names = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert {"alone/policy", "features/tiny", "mine/dataset"} <= names


def test_an_unknown_name_without_a_broken_plug_in_stops_as_ever(plugged: Deployment) -> None:
    plugged.edit("configs/features/own.yaml", "name: change", "name: chnge")
    with pytest.raises(SettingsError, match=r"unknown indicator 'chnge'.*'change'"):
        build_definitions(plugged.places)


def test_the_indicators_asset_lists_what_is_known_and_what_is_broken(
    plugged: Deployment, tmp_path: Path
) -> None:
    write(plugged.places.configs / "indicators", wrong="1 / 0\n")
    graph = build_definitions(plugged.places).resolve_asset_graph()
    node = graph.get(dg.AssetKey("indicators"))
    assert not node.is_materializable
    rows = {row.data["name"]: row.data for row in node.metadata["indicators"].records}
    assert rows["rsi"]["origin"] == "shipped"
    assert rows["rsi"]["parameters"] == "period=14"
    assert str(rows["change"]["origin"]).endswith("/configs/indicators/change.py")
    assert "broken, as" in str(node.description)
    (record,) = node.metadata["broken plug-ins"].records
    assert "line 1: ZeroDivisionError" in str(record.data["error"])


def test_an_experiment_cannot_take_the_name_of_the_list(plugged: Deployment) -> None:
    folder = plugged.places.configs / "experiments"
    shutil.copy(folder / "mine.yaml", folder / "indicators.yaml")
    with pytest.raises(SettingsError, match="'indicators' is a reserved name"):
        build_definitions(plugged.places)
