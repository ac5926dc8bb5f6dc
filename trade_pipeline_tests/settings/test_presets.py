"""Presets: what an experiment takes from one, what wins, which file is named when it is wrong."""

from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.settings.base import SettingsError, parse_settings, read_yaml, yaml_text
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.presets import PresetSettings, read_experiment
from trade_pipeline.settings.project import read_project
from trade_pipeline_tests.small_project import EXPERIMENT, PAIR, write_project, write_yaml

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "presets"
PRESET: dict[str, Any] = {
    "environment": {
        "window": 8,
        "costs": {"fee": {"kind": "flat", "bps": 3}, "slippage": {"kind": "fixed", "bps": 1}},
        "actions": {"kind": "brackets", "sizes": [0.25, 0.75]},
        "reward": [{"term": "log_return"}, {"term": "cost", "weight": 0.5}],
    },
    "algorithm": {"kind": "ppo", "gamma": 0.9, "network": {"kind": "mlp", "hidden": [24, 24]}},
}
PARTS = ("environment", "algorithm")
REST = {key: value for key, value in EXPERIMENT.items() if key not in PARTS}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A project whose preset `calm` no experiment uses yet."""
    folder = write_project(tmp_path / "project").configs
    write_yaml(folder / "presets" / "calm.yaml", PRESET)
    return folder


def read(configs: Path, **own: Any) -> ExperimentSettings:
    """The experiment `alone` with these keys in place of its environment and algorithm."""
    write_yaml(configs / "experiments" / "alone.yaml", {**REST, **own})
    return read_project(configs).experiments["alone"]


def refusal(configs: Path, **own: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        read(configs, **own)
    return str(caught.value)


def written_out(**parts: Any) -> ExperimentSettings:
    return parse_settings({**REST, **parts}, ExperimentSettings, "some.yaml")


def test_an_experiment_on_a_preset_is_the_one_with_all_of_it_written_out(configs: Path) -> None:
    settings = read(configs, preset="calm")
    assert settings == written_out(**PRESET)
    # What is hashed, stored and sent to other machines does not know of presets either.
    dumped = settings.model_dump(mode="json", by_alias=True)
    assert "preset" not in dumped
    assert dumped == written_out(**PRESET).model_dump(mode="json", by_alias=True)


def test_the_experiments_own_keys_win_one_by_one(configs: Path) -> None:
    settings = read(
        configs,
        preset="calm",
        environment={"costs": {"fee": {"bps": 7}}},
        algorithm={"network": {"activation": "relu"}, "total_frames": 4096},
    )
    environment, algorithm = settings.environment, settings.algorithm
    assert environment.window == 8
    assert environment.costs.model_dump(include={"fee", "slippage"}) == {
        "fee": {"kind": "flat", "bps": 7.0},
        "slippage": {"kind": "fixed", "bps": 1.0},
    }
    assert (algorithm.gamma, algorithm.total_frames) == (0.9, 4096)
    assert algorithm.network.model_dump(include={"hidden", "activation"}) == {
        "hidden": (24, 24),
        "activation": "relu",
    }


def test_lists_and_other_kinds_replace_what_the_preset_has(configs: Path) -> None:
    settings = read(
        configs,
        preset="calm",
        environment={"reward": [{"term": "drawdown"}]},
        algorithm={"kind": "a2c"},
    )
    assert [term.term for term in settings.environment.reward] == ["drawdown"]
    # Nothing of another algorithm is left over.
    assert settings.algorithm == written_out(**PRESET | {"algorithm": {"kind": "a2c"}}).algorithm


def test_variants_and_sweeps_vary_what_came_out(configs: Path) -> None:
    settings = read(
        configs,
        preset="calm",
        variants={"wide": {"environment": {"window": 16}}},
        sweep={"algorithm.network.hidden": [[16]]},
    )
    environment, algorithm = settings.variant("wide_hidden_16")
    assert (environment.window, algorithm.gamma) == (16, 0.9)
    assert algorithm.network.hidden == (16,)


def test_without_a_preset_nothing_changes(configs: Path) -> None:
    parts = {part: EXPERIMENT[part] for part in PARTS}
    assert read(configs, **parts) == written_out(**parts)


@pytest.mark.parametrize("name", ["clam", 7, None, ["calm"]], ids=str)
def test_a_preset_that_is_not_there_is_refused_with_those_that_are(
    configs: Path, name: Any
) -> None:
    text = refusal(configs, preset=name)
    assert all(word in text for word in ["alone.yaml", "'preset'", repr(name), "calm"]), text


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"algorithm": {"gama": 0.9}}, ["algorithm", "gama", "Did you mean 'gamma'"]),
        ({"environment": {"window": 0}}, ["environment.window", "is 0"]),
        ({"environment": None}, ["environment", "a mapping is needed"]),
        ({"algorithm": {"network": {"kind": "lstm"}}}, ["algorithm ppo", "network lstm"]),
        ({"environment": 5}, ["environment", "is 5"]),
    ],
    ids=str,
)
def test_a_wrong_key_of_the_experiment_names_its_file(
    configs: Path, own: dict[str, Any], words: list[str]
) -> None:
    text = refusal(configs, preset="calm", **own)
    assert all(word in text for word in ["alone.yaml (on calm.yaml)", *words]), text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PRESET | {"seeds": [0]}, ["unknown key 'seeds'"]),
        ({"environment": PRESET["environment"]}, ["'algorithm' is missing"]),
        (PRESET | {"algorithm": {"kind": "ppo", "gama": 1}}, ["gama", "Did you mean 'gamma'"]),
        (PRESET | {"algorithm": {"kind": "recurrent_ppo", "network": {"kind": "mlp"}}}, ["lstm"]),
        (None, ["the whole file"]),
        ("calm", ["the whole file"]),
    ],
    ids=["more", "less", "misspelt", "unfit", "empty", "text"],
)
def test_a_wrong_preset_is_refused_as_its_own_file_whether_used_or_not(
    configs: Path, content: Any, words: list[str]
) -> None:
    path = configs / "presets" / "calm.yaml"
    path.write_text(yaml_text(content), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        read_project(configs)
    text = str(caught.value)
    assert all(word in text for word in [str(path), *words]), text
    assert "alone.yaml" not in text


def test_a_preset_cannot_build_on_another(configs: Path) -> None:
    write_yaml(configs / "presets" / "windy.yaml", {**PRESET, "preset": "calm"})
    with pytest.raises(SettingsError, match=r"windy\.yaml: unknown key 'preset'"):
        read_project(configs)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_preset_makes_an_experiment(path: Path, tmp_path: Path) -> None:
    content = read_yaml(path)
    environment = parse_settings(content, PresetSettings, path.name).environment
    kind = environment.actions.kind
    configs = write_project(tmp_path / "project").configs
    write_yaml(configs / "presets" / path.name, content)
    base = EXPERIMENT if kind == "brackets" else PAIR
    own = {key: value for key, value in base.items() if key not in PARTS}
    write_yaml(configs / "experiments" / "mine.yaml", {**own, "preset": path.stem})
    project = read_project(configs)
    assert project.experiments["mine"].environment == environment
    assert read_experiment(configs / "experiments" / "mine.yaml", project.presets).trials()


def test_there_is_a_preset_for_each_kind_of_market() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == {"minutes", "days", "portfolio"}
