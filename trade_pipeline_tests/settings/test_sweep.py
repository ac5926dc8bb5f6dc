"""Sweeps of an experiment's file, and overrides of one of its variants."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trade_pipeline.settings.base import SettingsError, parse_settings, read_settings
from trade_pipeline.settings.experiment import MOST_TRIALS, ExperimentSettings
from trade_pipeline_tests.small_project import EXPERIMENT, write_yaml

DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "experiments.md"
RATES = {"algorithm.learning_rate": [0.001, 0.0003]}


def experiment(**changes: Any) -> ExperimentSettings:
    return parse_settings({**EXPERIMENT, **changes}, ExperimentSettings, "some.yaml")


def test_lists_become_variants_by_every_combination() -> None:
    settings = experiment(
        variants={"base": {}, "slow": {"algorithm": {"gamma": 0.9}}},
        sweep={**RATES, "algorithm.network.hidden": [[64, 64], [256]]},
    )
    found = {
        name: (algorithm.gamma, algorithm.learning_rate, algorithm.network.hidden)
        for name in settings.variants
        for algorithm in [settings.variant(name)[1]]
    }
    assert found == {
        "base_learning_rate_0p001_hidden_64_64": (0.99, 0.001, (64, 64)),
        "base_learning_rate_0p001_hidden_256": (0.99, 0.001, (256,)),
        "base_learning_rate_0p0003_hidden_64_64": (0.99, 0.0003, (64, 64)),
        "base_learning_rate_0p0003_hidden_256": (0.99, 0.0003, (256,)),
        "slow_learning_rate_0p001_hidden_64_64": (0.9, 0.001, (64, 64)),
        "slow_learning_rate_0p001_hidden_256": (0.9, 0.001, (256,)),
        "slow_learning_rate_0p0003_hidden_64_64": (0.9, 0.0003, (64, 64)),
        "slow_learning_rate_0p0003_hidden_256": (0.9, 0.0003, (256,)),
    }


def test_a_swept_trial_is_a_partition_of_letters_digits_and_underscores() -> None:
    sweep = {
        "algorithm.learning_rate": [1e-5, {"kind": "linear", "start": 0.001}],
        "environment.reward": [[{"term": "log_return"}], [{"term": "turnover", "weight": 0.5}]],
        "algorithm.target_kl": [None, 0.02],
    }
    for key, trial in experiment(sweep=sweep).trials().items():
        assert key == f"{trial.variant}.f{trial.fold}.s{trial.seed}"
        assert trial.variant.isascii()
        assert trial.variant.replace("_", "").isalnum()
        assert len(key) < 120


@pytest.mark.parametrize(
    "more", [[0.001, 0.0003, 0.01], [0.01, 0.001, 0.0003], [0.0003, 0.001]], ids=str
)
def test_another_value_in_a_list_renames_no_trial(more: list[float]) -> None:
    before = experiment(sweep=RATES)
    after = experiment(sweep={"algorithm.learning_rate": more})
    assert set(before.trials()) <= set(after.trials())
    for name in before.variants:
        assert after.variant(name) == before.variant(name)


def test_two_places_of_one_name_are_told_apart() -> None:
    settings = experiment(
        sweep={"environment.costs.fee.bps": [1], "environment.costs.slippage.bps": [3]},
        environment={
            **EXPERIMENT["environment"],  # type: ignore[dict-item]
            "costs": {"fee": {"kind": "flat", "bps": 5}, "slippage": {"kind": "fixed", "bps": 5}},
        },
    )
    name = "base_environment_costs_fee_bps_1_environment_costs_slippage_bps_3"
    assert list(settings.variants) == [name]
    costs = settings.variant(name)[0].costs
    assert (costs.fee.bps, costs.slippage.bps) == (1, 3)  # type: ignore[union-attr]


def test_values_that_belong_together_are_swept_as_mappings() -> None:
    pairs = [{"environments": 8, "batch_size": 128}, {"environments": 4, "batch_size": 64}]
    settings = experiment(sweep={"algorithm": pairs})
    chosen = [settings.variant(name)[1] for name in settings.variants]
    assert [(one.environments, one.batch_size, one.rollout_steps) for one in chosen] == [  # type: ignore[union-attr]
        (8, 128, 32),
        (4, 64, 32),
    ]


def test_what_a_task_is_told_has_the_same_trials() -> None:
    settings = experiment(sweep=RATES)
    told = ExperimentSettings.model_validate(settings.model_dump(mode="json", by_alias=True))
    assert told.trials() == settings.trials()
    assert [told.variant(name) for name in told.variants] == [
        settings.variant(name) for name in settings.variants
    ]


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "misspelt path": (
        {"sweep": {"algorithm.lerning_rate": [0.1]}},
        ["sweep", "lerning_rate", "Did you mean 'learning_rate'?"],
    ),
    "path into a number": ({"sweep": {"algorithm.gamma.start": [0.9]}}, ["sweep", "gamma"]),
    "path of something else": (
        {"sweep": {"seeds": [1, 2]}},
        ["'sweep'", "'seeds'", "algorithm.learning_rate"],
    ),
    "no values": ({"sweep": {"algorithm.gamma": []}}, ["'sweep'", "'algorithm.gamma'", "no value"]),
    "a value twice": (
        {"sweep": {"algorithm.learning_rate": [0.001, "1e-3"]}},
        ["'sweep'", "'algorithm.learning_rate'", "twice"],
    ),
    "no list": ({"sweep": {"algorithm.gamma": 0.9}}, ["sweep.algorithm.gamma"]),
    "impossible value": (
        {"sweep": {"algorithm.gamma": [0.9, 7]}},
        ["sweep", "gamma_7", "less than or equal to 1"],
    ),
    "value that is no setting": (
        {"sweep": {"algorithm.gamma": [float("nan")]}},
        ["sweep", "gamma_nan"],
    ),
    "set by the variant as well": (
        {"sweep": RATES, "variants": {"base": {"algorithm": {"learning_rate": 0.1}}}},
        ["'base'", "algorithm.learning_rate", "sweep"],
    ),
    "a path inside another": (
        {"sweep": {"algorithm.network.hidden": [[8]], "algorithm.network": [{"kind": "mlp"}]}},
        ["'algorithm.network.hidden'", "inside"],
    ),
    "too many": (
        {"sweep": {"algorithm.epochs": list(range(1, 200)), "algorithm.gamma": [0.9, 0.99]}},
        ["sweep gives 398 variants", str(MOST_TRIALS)],
    ),
    "too many with folds and seeds": (
        {"sweep": {"algorithm.epochs": list(range(1, 31))}},
        ["120 trials", str(MOST_TRIALS)],
    ),
    "network that the algorithm cannot use": (
        {"sweep": {"algorithm.network": [{"kind": "mlp"}, {"kind": "lstm"}]}},
        ["base_network_", "lstm", "recurrent_ppo"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_sweep_that_cannot_be_is_refused_by_file_and_key(case: str, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    path = tmp_path / "some.yaml"
    write_yaml(path, {**EXPERIMENT, **changes})
    with pytest.raises(SettingsError) as caught:
        read_settings(path, ExperimentSettings)
    text = str(caught.value)
    assert all(word in text for word in [str(path), *words]), text


def test_a_tried_variant_stands_alone_and_is_named_by_its_overrides() -> None:
    settings = experiment(variants={"base": {}, "slow": {"algorithm": {"gamma": 0.9}}})
    overrides = {"algorithm": {"epochs": 2}}
    changed = settings.tried("slow", overrides, [7], "some.yaml")
    (variant,) = changed.variants
    assert variant.startswith("slow_x")
    assert len(variant) == len("slow_x") + 8
    assert list(changed.trials()) == [f"{variant}.f0.s7", f"{variant}.f1.s7"]
    environment, algorithm = changed.variant(variant)
    listed_environment, listed_algorithm = settings.variant("slow")
    assert environment == listed_environment
    assert algorithm == listed_algorithm.model_copy(update={"epochs": 2})

    again = settings.tried("slow", overrides, [0], "some.yaml")
    other = settings.tried("slow", {"algorithm": {"epochs": 3}}, [0], "some.yaml")
    assert list(again.variants) == [variant]
    assert list(other.variants) != [variant]


def test_another_algorithm_is_tried_with_its_own_defaults() -> None:
    changed = experiment().tried("base", {"algorithm": {"kind": "a2c"}}, [0], "some.yaml")
    (variant,) = changed.variants
    algorithm = changed.variant(variant)[1]
    assert (algorithm.kind, algorithm.environments) == ("a2c", 64)
    assert algorithm.network.hidden == (64, 64)


@pytest.mark.parametrize(
    ("variant", "overrides", "words"),
    [
        ("bass", {"algorithm": {"gamma": 0.5}}, ["'bass'", "Did you mean 'base'?"]),
        ("base", {"algorithm": {"gama": 0.5}}, ["'base_x", "gama'", "gamma"]),
        ("base", {"environment": {"window": 0}}, ["window", "greater than 0"]),
        ("base", {"algorithm": [1]}, ["algorithm", "mapping"]),
    ],
    ids=str,
)
def test_wrong_overrides_are_refused_with_the_file(
    variant: str, overrides: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        experiment().tried(variant, overrides, [0], "configs/some.yaml")
    text = str(caught.value)
    assert all(word.strip("'") in text for word in ["configs/some.yaml", *words]), text


@pytest.mark.parametrize("key", ["variants", "sweep", "search"])
def test_what_the_documentation_shows_can_be_pasted(key: str) -> None:
    lines = DOCUMENTED.read_text(encoding="utf-8").splitlines()
    start = lines.index(f"    {key}:")
    end = next(n for n in range(start, len(lines)) if not lines[n].startswith("    "))
    settings = experiment(**yaml.safe_load("\n".join(lines[start:end])))
    if key == "sweep":
        assert "`base_learning_rate_0p001_hidden_64_64`" in DOCUMENTED.read_text(encoding="utf-8")
        assert next(iter(settings.variants)) == "base_learning_rate_0p001_hidden_64_64"
        assert len(settings.variants) == 4
