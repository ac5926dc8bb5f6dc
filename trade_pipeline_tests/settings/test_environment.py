"""The settings of an environment: their kinds, and values that contradict each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.environment import (
    BracketActions,
    CustomTerm,
    DifferentialSharpe,
    EnvironmentSettings,
    FixedSlippage,
    FlatFee,
    ImpactSlippage,
    MakerTakerFee,
    PerShareFee,
    PlainTerm,
    SequentialStarts,
    StratifiedStarts,
    TurbulenceGate,
    UniformStarts,
)
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline_tests.small_project import EXPERIMENT

WEIGHTS = {"kind": "weights"}
BRACKETS = {"kind": "brackets"}
TIERS = [
    {"volume": 0, "maker_bps": 4, "taker_bps": 10},
    {"volume": 1e6, "maker_bps": 2, "taker_bps": 6},
    {"volume": 1e7, "maker_bps": 0, "taker_bps": 3},
]


def environment(**content: Any) -> EnvironmentSettings:
    return parse_settings({"actions": WEIGHTS, **content}, EnvironmentSettings, "some.yaml")


def tiers(*volumes: float) -> dict[str, Any]:
    listed = [{"volume": volume, "maker_bps": 1, "taker_bps": 2} for volume in volumes]
    return {"costs": {"fee": {"kind": "maker_taker", "tiers": listed}}}


def test_without_words_an_environment_charges_flat_and_starts_anywhere() -> None:
    settings = environment()
    assert settings.costs.fee == FlatFee(bps=10)
    assert settings.costs.slippage == FixedSlippage(bps=2)
    assert settings.starts == UniformStarts()
    assert settings.reward == (PlainTerm(term="log_return"),)
    scales = settings.randomisation.model_dump()
    assert set(scales.values()) == {(1.0, 1.0)}
    assert (settings.largest_position, settings.max_turnover, settings.short) == (1.0, None, False)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ({"kind": "flat", "bps": 5}, FlatFee),
        ({"kind": "flat"}, FlatFee),
        ({"kind": "maker_taker", "tiers": TIERS}, MakerTakerFee),
        ({"kind": "maker_taker", "tiers": TIERS[:1]}, MakerTakerFee),
        ({"kind": "per_share", "per_share": 0.005}, PerShareFee),
        (
            {"kind": "per_share", "per_share": 0.005, "minimum": 1, "maximum_fraction": 0.01},
            PerShareFee,
        ),
    ],
)
def test_each_kind_of_fee_can_be_written(written: dict[str, Any], kind: type) -> None:
    assert isinstance(environment(costs={"fee": written}).costs.fee, kind)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ({"kind": "fixed", "bps": 5}, FixedSlippage),
        ({"kind": "impact", "impact_bps": 50}, ImpactSlippage),
        ({"kind": "impact", "bps": 0, "impact_bps": 50}, ImpactSlippage),
    ],
)
def test_each_kind_of_slippage_can_be_written(written: dict[str, Any], kind: type) -> None:
    assert isinstance(environment(costs={"slippage": written}).costs.slippage, kind)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ({"kind": "uniform"}, UniformStarts),
        ({"kind": "sequential"}, SequentialStarts),
        ({"kind": "sequential", "start_offset_bars": 5}, SequentialStarts),
        ({"kind": "stratified", "label": "regime"}, StratifiedStarts),
    ],
)
def test_each_kind_of_starts_can_be_written(written: dict[str, Any], kind: type) -> None:
    assert isinstance(environment(starts=written).starts, kind)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        *(
            ({"term": term, "weight": -2.0}, PlainTerm)
            for term in ("log_return", "cost", "drawdown", "exposure", "turnover", "inventory")
        ),
        ({"term": "turbulence_gate", "quantile": 0.9}, TurbulenceGate),
        ({"term": "differential_sharpe", "decay": 0.05}, DifferentialSharpe),
        ({"term": "custom", "function": "my.terms:holding", "implementation": 2}, CustomTerm),
    ],
)
def test_each_kind_of_reward_term_can_be_written(written: dict[str, Any], kind: type) -> None:
    (term,) = environment(reward=[written]).reward
    assert isinstance(term, kind)
    assert term.weight == written.get("weight", 1.0)


def test_an_environment_survives_being_written_and_read() -> None:
    settings = environment(
        costs={
            "fee": {"kind": "maker_taker", "tiers": TIERS},
            "slippage": {"kind": "impact", "impact_bps": 50},
            "lot_size": [1, 0.5],
        },
        starts={"kind": "stratified", "label": "regime"},
        randomisation={"fee": [0.5, 2]},
        reward=[{"term": "turbulence_gate"}, {"term": "custom", "function": "a:b"}],
        max_position=0.5,
    )
    assert parse_settings(settings.model_dump(mode="json"), EnvironmentSettings, "x") == settings


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "tiers that fall": (tiers(0, 10, 5), ["costs.fee", "begin at 0 and rise"]),
    "two tiers from the same volume": (tiers(0, 10, 10), ["10.0, 10.0", "rise"]),
    "tiers that do not begin at 0": (tiers(5, 10), ["5.0, 10.0", "begin at 0"]),
    "no tiers": (tiers(), ["tiers", "1 item"]),
    "a negative volume": (tiers(-1, 5), ["tiers.0.volume", "-1", "greater than or equal to 0"]),
    "an unknown kind of fee": ({"costs": {"fee": {"kind": "free"}}}, ["costs.fee", "'free'"]),
    "a fee without its kind": ({"costs": {"fee": {"bps": 5}}}, ["costs.fee", "kind"]),
    "a fee's key of another kind": (
        {"costs": {"fee": {"kind": "per_share", "per_share": 1, "bps": 5}}},
        ["costs.fee.per_share.bps", "unknown key"],
    ),
    "a fee of all that is traded": (
        {"costs": {"fee": {"kind": "per_share", "per_share": 1, "maximum_fraction": 1}}},
        ["maximum_fraction", "less than 1"],
    ),
    "the settings of before": ({"costs": {"fee_bps": 5}}, ["costs.fee_bps", "unknown key"]),
    "slippage beyond the price": (
        {"costs": {"slippage": {"kind": "fixed", "bps": 10_000}}},
        ["bps", "10000"],
    ),
    "slippage and impact beyond the price": (
        {"costs": {"slippage": {"kind": "impact", "bps": 5000, "impact_bps": 5000}}},
        ["bps + impact_bps is 10000", "less than 10000"],
    ),
    "slippage beyond the price when scaled": (
        {
            "costs": {"slippage": {"kind": "impact", "bps": 0, "impact_bps": 4000}},
            "randomisation": {"slippage": [1, 2.5]},
        },
        ["4000 bps times randomisation 2.5", "no price"],
    ),
    "a rate that is no number": ({"costs": {"borrow_rate": float("nan")}}, ["borrow_rate"]),
    "a lot that is infinite": ({"costs": {"lot_size": float("inf")}}, ["lot_size"]),
    "a negative lot": ({"costs": {"lot_size": [1, -1]}}, ["lot_size", "greater than or equal"]),
    "participation above all": ({"costs": {"participation": 1.5}}, ["participation", "1.5"]),
    "funding of everything": ({"costs": {"funding_rate": 1.0}}, ["funding_rate", "less than 1"]),
    "no hours between fundings": ({"costs": {"funding_hours": 0}}, ["funding_hours"]),
    "a negative stop": (
        {"actions": {**BRACKETS, "stops": [None, -0.01]}},
        ["actions.stops.1", "-0.01", "greater than 0"],
    ),
    "a stop of everything": (
        {"actions": {**WEIGHTS, "stop": 1.0}},
        ["actions.stop", "less than 1"],
    ),
    "a negative take": ({"actions": {**WEIGHTS, "take": -0.5}}, ["actions.take", "-0.5"]),
    "no sizes": ({"actions": {**BRACKETS, "sizes": []}}, ["sizes"]),
    "an unknown kind of actions": ({"actions": {"kind": "levels"}}, ["actions", "'levels'"]),
    "leverage below a size": (
        {"actions": {**BRACKETS, "sizes": [0.5, 2]}},
        ["position of 2 times equity needs max_leverage 2", "it is 1"],
    ),
    "leverage below a position": (
        {"max_position": 3, "max_leverage": 2},
        ["position of 3 times equity needs max_leverage 3", "it is 2"],
    ),
    "a size beyond the largest position": (
        {"actions": {**BRACKETS, "sizes": [0.5, 1]}, "max_position": 0.75},
        ["sizes go up to 1", "max_position 0.75"],
    ),
    "margin that liquidates at once": (
        {"max_leverage": 25, "maintenance_margin": 0.05},
        ["max_leverage 25", "maintenance_margin 0.05", "liquidates"],
    ),
    "an unknown reward term": ({"reward": [{"term": "sharpe"}]}, ["reward.0", "'sharpe'"]),
    "a reward term without a name": ({"reward": [{"weight": 1}]}, ["reward.0", "term"]),
    "a term twice": (
        {"reward": [{"term": "cost"}, {"term": "cost"}]},
        ["'cost'", "listed twice", "add their weights"],
    ),
    "a function twice": (
        {"reward": [{"term": "custom", "function": "a:b"}] * 2},
        ["'a:b'", "listed twice"],
    ),
    "no reward": ({"reward": []}, ["reward"]),
    "a function without a module": (
        {"reward": [{"term": "custom", "function": "holding"}]},
        ["reward.0.function", "'holding'"],
    ),
    "a gate that is never shut": (
        {"reward": [{"term": "turbulence_gate", "quantile": 1}]},
        ["quantile", "less than 1"],
    ),
    "stratified by nothing": ({"starts": {"kind": "stratified"}}, ["starts.label"]),
    "an offset backwards": (
        {"starts": {"kind": "sequential", "start_offset_bars": -1}},
        ["start_offset_bars", "-1"],
    ),
    "an unknown kind of starts": ({"starts": {"kind": "random"}}, ["starts", "'random'"]),
    "a range upside down": (
        {"randomisation": {"fee": [2, 1]}},
        ["randomisation.fee", "[2.0, 1.0]"],
    ),
    "a price scale of zero": (
        {"randomisation": {"price": [0, 1]}},
        ["price", "greater than or equal to 0.000001"],
    ),
    "a range of one": ({"randomisation": {"price": [1]}}, ["randomisation.price"]),
    "a turnover of zero": ({"max_turnover": 0}, ["max_turnover", "greater than 0"]),
    "a window of no bars": ({"window": 0}, ["window", "greater than 0"]),
    "episodes of no bars": ({"episode_bars": 0}, ["episode_bars"]),
    "no equity": ({"initial_equity": 0}, ["initial_equity"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_contradict_each_other_are_named(case: str) -> None:
    content, words = REFUSED[case]
    with pytest.raises(SettingsError) as caught:
        environment(**content)
    text = str(caught.value)
    assert all(word in text for word in ["some.yaml", *words]), text


def test_two_functions_of_ones_own_are_two_terms() -> None:
    terms = [{"term": "custom", "function": name} for name in ("a:b", "a:c")]
    assert len(environment(reward=terms).reward) == 2


def test_the_largest_position_is_that_of_the_sizes_unless_said() -> None:
    sized = environment(actions={**BRACKETS, "sizes": [0.25, 0.5]})
    assert (sized.largest_position, sized.short) == (0.5, True)
    assert environment(max_leverage=2, max_position=1.5).largest_position == 1.5
    small = environment(max_position=0.25, max_leverage=0.5)
    assert small.largest_position == 0.25
    capped = environment(actions={**BRACKETS, "sizes": [0.5]}, max_position=0.75)
    assert capped.largest_position == 0.75


# Variants of an experiment


def variant(base: dict[str, Any], change: dict[str, Any]) -> EnvironmentSettings:
    content = {
        **EXPERIMENT,
        "environment": {**EXPERIMENT["environment"], **base},  # type: ignore[dict-item]
        "variants": {"base": {}, "other": {"environment": change}},
    }
    return parse_settings(content, ExperimentSettings, "some.yaml").variant("other")[0]


FEES: list[dict[str, Any]] = [
    {"kind": "flat", "bps": 7},
    {"kind": "maker_taker", "tiers": TIERS},
    {"kind": "per_share", "per_share": 0.005, "minimum": 1},
]


@pytest.mark.parametrize("base", FEES, ids=[fee["kind"] for fee in FEES])
@pytest.mark.parametrize("other", FEES, ids=[fee["kind"] for fee in FEES])
def test_a_variant_can_have_a_fee_of_another_kind(
    base: dict[str, Any], other: dict[str, Any]
) -> None:
    settings = variant({"costs": {"fee": base, "borrow_rate": 0.5}}, {"costs": {"fee": other}})
    assert settings.costs.fee == environment(costs={"fee": other}).costs.fee
    assert settings.costs.borrow_rate == 0.5


def test_a_variant_can_change_one_number_of_a_fee() -> None:
    base = {"costs": {"fee": {"kind": "per_share", "per_share": 0.005, "minimum": 1}}}
    fee = variant(base, {"costs": {"fee": {"minimum": 2}}}).costs.fee
    assert fee == PerShareFee(kind="per_share", per_share=0.005, minimum=2)
    flat = variant({}, {"costs": {"fee": {"bps": 3}}}).costs.fee
    assert flat == FlatFee(bps=3)


def test_a_variant_can_have_other_starts_slippage_actions_and_scales() -> None:
    settings = variant(
        {"starts": {"kind": "sequential", "start_offset_bars": 5}},
        {
            "starts": {"kind": "stratified", "label": "regime"},
            "costs": {"slippage": {"kind": "impact", "impact_bps": 40}},
            "actions": {"kind": "weights", "stop": 0.1},
            "randomisation": {"fee": [0.5, 2]},
        },
    )
    assert settings.starts == StratifiedStarts(kind="stratified", label="regime")
    assert settings.costs.slippage == ImpactSlippage(kind="impact", impact_bps=40)
    assert not isinstance(settings.actions, BracketActions)
    assert settings.randomisation.fee == (0.5, 2.0)
    assert settings.randomisation.price == (1.0, 1.0)


def test_a_variant_that_contradicts_the_base_is_named() -> None:
    with pytest.raises(SettingsError, match=r"variants\.other: key 'environment.*tiers.*missing"):
        variant({}, {"costs": {"fee": {"kind": "maker_taker"}}})
    with pytest.raises(SettingsError, match="needs max_leverage 2"):
        variant({}, {"actions": {"sizes": [2.0]}})


def test_numbers_that_are_not_finite_are_refused_everywhere() -> None:
    for value in (np.nan, np.inf, -np.inf):
        for name in ("initial_equity", "max_leverage", "max_turnover", "no_trade_band"):
            with pytest.raises(SettingsError, match=name):
                environment(**{name: value})


def test_the_example_of_the_documentation_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")
    block = page.partition("```yaml\n")[2].partition("```")[0]
    described = EnvironmentSettings.model_validate(yaml.safe_load(block)["environment"])
    assert isinstance(described.costs.fee, MakerTakerFee)
    assert described.randomisation.price == (0.1, 10.0)
