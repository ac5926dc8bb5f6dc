"""A configs folder as a whole: the shipped one loads, and files agree with each other."""

from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.features.registry import resolve
from trade_pipeline.settings.base import SettingsError, read_yaml, yaml_text
from trade_pipeline.settings.project import Places, read_project
from trade_pipeline_tests.small_project import ALPHA, EXPERIMENT, series_entry, write_project

SHIPPED = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project").configs


def change(path: Path, **values: Any) -> None:
    """Set top-level keys of a YAML file."""
    path.write_text(yaml_text(read_yaml(path) | values), encoding="utf-8")


def test_the_shipped_configs_load() -> None:
    project = read_project(SHIPPED)
    files = {path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.yaml")}
    read = {
        "series.yaml",
        *(f"features/{name}.yaml" for name in project.feature_sets),
        *(f"experiments/{name}.yaml" for name in project.experiments),
        *(f"compute/{name}.yaml" for name in project.compute),
        *(f"presets/{name}.yaml" for name in project.presets),
    }
    assert read == {file for file in files if not file.startswith("deploy/")}
    assert {"aapl_ppo", "tech_portfolio_ppo"} <= set(project.experiments)
    for name, settings in project.feature_sets.items():
        assert resolve(settings, f"{name}.yaml").names


@pytest.mark.parametrize("path", sorted((SHIPPED / "deploy").glob("*.yaml")), ids=lambda p: p.stem)
def test_dagster_takes_the_shipped_deployments(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    (tmp_path / "dagster.yaml").write_bytes(path.read_bytes())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_settings("telemetry") == {"enabled": False}
        assert instance.get_settings("concurrency")["runs"]["max_concurrent_runs"] >= 2


def test_paths_are_relative_to_the_folder_that_holds_configs(configs: Path) -> None:
    assert read_project(configs).base == configs.parent


def test_series_keep_the_order_of_the_file(configs: Path) -> None:
    entries = [series_entry(f"made.{name}.1d", "x.csv", 2020) for name in ("Z", "A", "M")]
    change(configs / "series.yaml", series=entries)
    for path in (configs / "experiments").glob("*.yaml"):
        path.unlink()
    assert list(read_project(configs).series) == ["made.Z.1d", "made.A.1d", "made.M.1d"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"series": ["made.ALPA.1d"]}, ["made.ALPA.1d", f"Did you mean {ALPHA!r}"]),
        ({"features": "tini"}, ["'features'", "'tini'", "Did you mean 'tiny'"]),
        ({"compute": "locl"}, ["'compute'", "'locl'", "Did you mean 'local'"]),
    ],
)
def test_what_an_experiment_names_must_exist(
    configs: Path, values: dict[str, Any], words: list[str]
) -> None:
    change(configs / "experiments" / "alone.yaml", **values)
    with pytest.raises(SettingsError) as caught:
        read_project(configs)
    assert all(word in str(caught.value) for word in ["alone.yaml", *words]), str(caught.value)


def test_an_experiment_has_one_timeframe(configs: Path) -> None:
    entries = read_yaml(configs / "series.yaml")["series"]
    entries[1]["timeframe"] = "1h"
    change(configs / "series.yaml", series=entries)
    with pytest.raises(SettingsError, match=r"pair\.yaml.*'1d', '1h'"):
        read_project(configs)


@pytest.mark.parametrize("second", [ALPHA, ALPHA.lower()])
def test_series_keys_are_unique_also_without_their_case(configs: Path, second: str) -> None:
    entries = [series_entry(ALPHA, "a.csv", 2020), series_entry(second, "b.csv", 2020)]
    change(configs / "series.yaml", series=entries)
    with pytest.raises(SettingsError, match=rf"series\.yaml.*not unique: {ALPHA}"):
        read_project(configs)


@pytest.mark.parametrize("key", ["AAPL", "../x.1d", "a/b.1d", "a|b.1d", ".1d", "a..1d", ""])
def test_a_series_key_must_be_a_plain_name(configs: Path, key: str) -> None:
    change(configs / "series.yaml", series=[series_entry(key, "a.csv", 2020)])
    with pytest.raises(SettingsError, match=r"series\.yaml: key 'series\.0\.key'"):
        read_project(configs)


@pytest.mark.parametrize("name", ["Alone", "alone-2", "2alone", "al one"])
@pytest.mark.parametrize("folder", ["experiments", "features", "compute"])
def test_a_file_name_that_cannot_be_an_assets_is_refused(
    configs: Path, folder: str, name: str
) -> None:
    path = next((configs / folder).glob("*.yaml"))
    (configs / folder / f"{name}.yaml").write_bytes(path.read_bytes())
    with pytest.raises(SettingsError, match=rf"{name}\.yaml.*lower case"):
        read_project(configs)


def test_places_come_from_the_environment_or_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Places.from_environment({}) == Places(tmp_path / "configs", tmp_path / "store")
    given = {"TRADE_PIPELINE_CONFIGS": "/a/configs", "TRADE_PIPELINE_STORE": "there"}
    assert Places.from_environment(given) == Places(Path("/a/configs"), tmp_path / "there")


def test_the_experiment_that_tests_start_from_is_valid(configs: Path) -> None:
    assert read_project(configs).experiments["alone"].seeds == tuple(EXPERIMENT["seeds"])  # type: ignore[arg-type]
