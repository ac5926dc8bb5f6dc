"""One experiment: its trials, its variants, and values that contradict each other."""

from typing import Any

import pytest

from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.experiment import MOST_TRIALS, ExperimentSettings, Trial
from trade_pipeline_tests.small_project import ALPHA, BETA, EXPERIMENT, PAIR


def experiment(base: dict[str, Any] = EXPERIMENT, **changes: Any) -> ExperimentSettings:
    return parse_settings({**base, **changes}, ExperimentSettings, "some.yaml")


def test_trials_are_variants_by_folds_by_seeds() -> None:
    settings = experiment(seeds=[7, 3], variants={"base": {}, "wide": {"environment": {}}})
    assert list(settings.trials()) == [
        f"{variant}.f{fold}.s{seed}"
        for variant in ("base", "wide")
        for fold in (0, 1)
        for seed in (7, 3)
    ]
    assert settings.trials()["wide.f1.s3"] == Trial("wide.f1.s3", "wide", 1, 3)


def test_a_holdout_has_one_fold() -> None:
    assert list(experiment(PAIR).trials()) == ["base.f0.s0"]
    calendar = {"kind": "calendar", "validation_from": "2021-01-01", "test_from": "2022-01-01"}
    assert list(experiment(splits=calendar, seeds=[5]).trials()) == ["base.f0.s5"]


def test_more_trials_than_staleness_sees_are_refused_with_their_number() -> None:
    assert len(experiment(PAIR, seeds=list(range(MOST_TRIALS))).trials()) == 99
    with pytest.raises(SettingsError, match=r"100 trials; at most 99"):
        experiment(PAIR, seeds=list(range(100)))


def test_a_variant_changes_what_it_names_and_nothing_else() -> None:
    overrides = {
        "environment": {"window": 8, "costs": {"participation": 0.5}},
        "algorithm": {"gamma": 0.9, "network": {"activation": "relu"}},
    }
    settings = experiment(variants={"base": {}, "other": overrides})
    base_environment, base_algorithm = settings.variant("base")
    assert (base_environment, base_algorithm) == (settings.environment, settings.algorithm)
    environment, algorithm = settings.variant("other")
    costs = base_environment.costs.model_copy(update={"participation": 0.5})
    assert environment == base_environment.model_copy(update={"window": 8, "costs": costs})
    network = base_algorithm.network.model_copy(update={"activation": "relu"})
    assert network.hidden == (16,)
    assert algorithm == base_algorithm.model_copy(update={"gamma": 0.9, "network": network})


def test_a_variant_replaces_lists_whole() -> None:
    reward = [{"term": "cost", "weight": 2.0}]
    overrides = {"environment": {"reward": reward}, "algorithm": {"network": {"hidden": [8]}}}
    environment, algorithm = experiment(variants={"other": overrides}).variant("other")
    assert [term.term for term in environment.reward] == ["cost"]
    assert algorithm.network.hidden == (8,)


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "variant of something else": (
        {"variants": {"other": {"seeds": [1]}}},
        ["'other'", "seeds", "environment"],
    ),
    "variant's misspelt key": (
        {"variants": {"other": {"algorithm": {"gama": 0.9}}}},
        ["variants.other", "'algorithm.gama'", "gamma"],
    ),
    "variant's impossible value": (
        {"variants": {"other": {"algorithm": {"batch_size": 100}}}},
        ["variants.other", "algorithm", "100", "256"],
    ),
    "variant's name": ({"variants": {"a.b": {}}}, ["'a.b'", "underscores"]),
    "no variants": ({"variants": {}}, ["'variants'"]),
    "no seeds": ({"seeds": []}, ["'seeds'"]),
    "a seed twice": ({"seeds": [1, 1]}, ["'seeds'", "unique"]),
    "a series twice": ({"series": [ALPHA, ALPHA]}, ["'series'", "unique"]),
    "brackets on two series": ({"series": [ALPHA, BETA]}, ["brackets", "2 series", "weights"]),
    "a variant's brackets on two series": (
        {
            "series": [ALPHA, BETA],
            "environment": PAIR["environment"],
            "variants": {"one": {"environment": {"actions": EXPERIMENT["environment"]["actions"]}}},  # type: ignore[index]
        },
        ["variant one", "brackets", "2 series", "weights"],
    ),
    "from after to": ({"from": "2023-01-01"}, ["2023-01-01", "2022-09-01"]),
    "final before from": ({"final_from": "2019-01-01"}, ["final_from", "2019-01-01"]),
    "fractions": (
        {"splits": {"kind": "fraction", "train": 0.6, "validation": 0.3, "test": 0.2}},
        ["splits", "1.1"],
    ),
    "dates of a holdout": (
        {
            "splits": {
                "kind": "calendar",
                "validation_from": "2022-01-01",
                "test_from": "2021-01-01",
            }
        },
        ["validation_from", "test_from"],
    ),
    "averages": (
        {"baselines": [{"kind": "sma_cross", "fast": 50, "slow": 20}]},
        ["baselines", "50", "20"],
    ),
    "unknown algorithm": ({"algorithm": {"kind": "pop"}}, ["algorithm", "ppo"]),
    "unknown retrain rule": ({"retrain": "daily"}, ["'retrain'", "'daily'", "monthly"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_contradict_each_other_are_named(case: str) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(SettingsError) as caught:
        experiment(**changes)
    text = str(caught.value)
    assert all(word in text for word in ["some.yaml", *words]), text


def test_a_portfolio_takes_weights_on_several_series() -> None:
    assert experiment(PAIR).series == (ALPHA, BETA)


def test_training_is_started_by_hand_and_locally_unless_said() -> None:
    settings = experiment()
    assert (settings.retrain, settings.auto_remote, settings.compute) == ("manual", False, "local")
