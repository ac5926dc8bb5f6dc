"""Strategies of installed distributions: found, tried, audited, and named when they are broken."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.plugins import loading as plugins
from trade_pipeline.backtest.plugins.installed import check_strategies, strategy_versions
from trade_pipeline.backtest.strategies import StrategyError, baseline
from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.baselines import (
    BaselineKind,
    BaselineSettings,
    FlatBaseline,
    PluginBaseline,
    SmaCrossBaseline,
)
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline_tests.backtest.plugins.distributions import HEAD, SMA, Install, installing
from trade_pipeline_tests.backtest.test_engine_compiled import check
from trade_pipeline_tests.small_project import EXPERIMENT
from trade_pipeline_tests.training import synthetic

DOCS = Path(__file__).parents[3] / "docs" / "strategies.md"
DATASET = synthetic.dataset()
ENVIRONMENT = synthetic.experiment().environment
SEGMENTS = DATASET.folds[0].test


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs distributions into folders on the path, for one test."""
    monkeypatch.setattr(plugins, "_TRIED", {})
    monkeypatch.setattr(plugins, "_TRIED_ON", set())
    with installing(tmp_path, monkeypatch) as install:
        yield install


def plugin(name: str, **parameters: Any) -> PluginBaseline:
    return PluginBaseline(kind="plugin", name=name, parameters=parameters)


def without_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that tries first takes a second; what follows it is what is tested."""
    monkeypatch.setattr(plugins, "_failure", lambda found, parameters: None)


def test_a_strategy_of_a_distribution_trades_like_the_rule_that_it_is(install: Install) -> None:
    install(HEAD + SMA, {"average": "Average"})
    strategy = baseline(plugin("average", period=9))
    assert strategy.name == "average_period_9"
    found = check(DATASET, ENVIRONMENT, strategy)
    ours = baseline(SmaCrossBaseline(kind="sma_cross", fast=3, slow=9))
    expected = backtest(DATASET, SEGMENTS, ENVIRONMENT, ours)
    assert found.fills.height > 5
    assert found.fills.rows() == expected.fills.rows()
    assert found.equity.tobytes() == expected.equity.tobytes()
    defaults = baseline(plugin("average"))
    assert defaults.name == "average"
    again = backtest(DATASET, SEGMENTS, ENVIRONMENT, defaults)
    assert again.equity.tobytes() == found.equity.tobytes()


def test_wrong_parameters_name_distribution_key_and_what_is_near(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_trying(monkeypatch)
    install(
        HEAD + SMA + "\nclass Plain(Asked):\n    def __init__(self, level): ...\n",
        {
            "average": "Average",
            "plain": "Plain",
        },
    )
    with pytest.raises(SettingsError) as refused:
        baseline(plugin("average", period="long"))
    for word in ("'average' of made-up 1.2.3 (entry point made_up_strategies:Average)", "'period'"):
        assert word in str(refused.value)
    with pytest.raises(SettingsError, match=r"unknown parameter 'perod'\. Did you mean 'period'"):
        baseline(plugin("average", perod=5))
    with pytest.raises(SettingsError, match=r"wrong param.*'high': 3.*It takes \(level\)\.$"):
        baseline(plugin("plain", high=3))


def test_an_unknown_name_says_what_is_near(install: Install) -> None:
    install(HEAD + SMA, {"average": "Average"})
    with pytest.raises(SettingsError, match=r"no strategy 'avrage' .*Did you mean 'average'"):
        baseline(plugin("avrage"))
    with pytest.raises(SettingsError, match=r"^mine\.yaml: there is no strategy 'avrage'"):
        check_strategies([plugin("avrage")], "mine.yaml")
    check_strategies([plugin("average"), FlatBaseline(kind="flat")], "mine.yaml")


def test_a_name_that_two_distributions_give_is_used_of_neither(install: Install) -> None:
    install(HEAD + SMA, {"average": "Average"})
    install(
        HEAD + SMA, {"average": "Average"}, name="other", version="0.1", module="made_up_others"
    )
    check_strategies([plugin("average")], "mine.yaml")
    with pytest.raises(StrategyError, match=r"given by other 0\.1 .*and made-up 1\.2\.3 .*remove"):
        baseline(plugin("average"))


def test_the_version_of_its_distribution_is_known_without_an_import(install: Install) -> None:
    install(HEAD + "1 / 0", {"average": "Average"}, version="4.5")
    assert strategy_versions([plugin("average"), plugin("gone"), FlatBaseline(kind="flat")]) == {
        "average": "made-up 4.5",
        "gone": "not installed",
    }
    assert "made_up_strategies" not in sys.modules


BROKEN = {
    "import": ("1 / 0", "Wrong", "importing it fails: ZeroDivisionError"),
    "exit": ("raise SystemExit(3)", "Wrong", "importing it fails: SystemExit: 3"),
    "missing": ("", "Wrong", "importing it fails: AttributeError"),
    "instance": ("wrong = Asked()", "wrong", "it is Asked; let the entry"),
    "nameless": ("class Wrong(Asked):\n    name = None", "Wrong", "its name is None; a strategy"),
    "no orders": (
        "class Wrong:\n    name = 'a'\n    def start(self, d, e): ...",
        "Wrong",
        "it has no method orders; write `orders(self, row, account)`",
    ),
    "raises": (
        "class Wrong(Asked):\n    def __init__(self):\n        raise KeyError('a')",
        "Wrong",
        "cannot be made with parameters {}: KeyError: 'a' (",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_strategy_fails_with_a_sentence(
    case: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case != "import":
        without_trying(monkeypatch)
    text, value, why = BROKEN[case]
    install(HEAD + text, {"wrong": value})
    with pytest.raises(StrategyError) as refused:
        baseline(plugin("wrong"))
    opening = f"strategy 'wrong' of made-up 1.2.3 (entry point made_up_strategies:{value}): "
    assert str(refused.value).startswith(opening)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("text", "limit_s", "words"),
    [
        ("__import__('os')._exit(3)", 60.0, "ended the process with exit code 3"),
        ("while True: pass", 1.0, "does not end within 1 s"),
    ],
    ids=["exit", "loop"],
)
def test_what_ends_or_holds_a_process_does_so_in_another_one(
    text: str, limit_s: float, words: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "LIMIT_S", limit_s)
    install(text, {"wrong": "Wrong"})
    with pytest.raises(StrategyError, match=words):
        baseline(plugin("wrong"))
    with pytest.raises(StrategyError, match=words):
        baseline(plugin("wrong"))


METHODS = {"start": "self, dataset, environment", "orders": "self, row, account"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("deed", "limit_s", "words"),
    [
        ("__import__('os')._exit(0)", 120.0, "ended the process with exit code 0"),
        ("__import__('time').sleep(60)", 3.0, "does not end within 3 s"),
    ],
    ids=["exit", "hang"],
)
def test_what_ends_or_holds_a_run_does_so_in_another_process(
    deed: str,
    limit_s: float,
    words: str,
    method: str,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_trying(monkeypatch)
    monkeypatch.setattr(plugins, "DATA_LIMIT_S", limit_s)
    text = f"def {method}({METHODS[method]}): {deed}"
    install(HEAD + f"class Wrong(Asked):\n    {text}\n", {"wrong": "Wrong"})
    with pytest.raises(StrategyError, match=f"deciding on the data {words}"):
        backtest(DATASET, SEGMENTS, ENVIRONMENT, baseline(plugin("wrong")))


CHEATS = {
    "plan": """
class Cheat(PlannedRule):
    name = "cheat"

    def decide(self, dataset, environment):
        close = dataset.close[:, 0]
        return plan_of(np.append(close[1:] > close[:-1], False)[:, None].astype(float))
""",
    "orders": """
class Cheat(Asked):
    def wanted(self, row):
        return self.close[min(row + 1, len(self.close) - 1), 0] > self.close[row, 0]
""",
}


@pytest.mark.parametrize("how", CHEATS)
def test_one_that_looks_ahead_is_refused_with_row_and_instrument(
    how: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_trying(monkeypatch)
    install(HEAD + CHEATS[how], {"cheat": "Cheat"})
    with pytest.raises(StrategyError) as refused:
        backtest(DATASET, SEGMENTS, ENVIRONMENT, baseline(plugin("cheat")))
    for word in (
        "strategy 'cheat' of made-up 1.2.3",
        "it looks ahead: on row ",
        "of demo.A.1h is 0 when the data ends at row",
        "but 1 when later bars follow",
    ):
        assert word in str(refused.value)


ANSWERS = {
    "not Orders": ("return None", "are NoneType; give Orders"),
    "shape": ("return given._replace(hold=np.zeros(3, bool))", "hold has shape (3,); (1, 1) is"),
    "dtype": ("return given._replace(hold=given.target_weight)", "hold has dtype float64; bool is"),
    "nan": (
        "return given._replace(target_weight=given.target_weight * np.nan)",
        "target_weight of demo.A.1h is nan; it must be a finite number",
    ),
    "stop": (
        "return given._replace(stop_fraction=np.full((1, 1), -0.5))",
        "stop_fraction of demo.A.1h is -0.5; it must be zero or more",
    ),
    "raises": ("return 1 / 0", "its orders fail on row 200 (2021-01-09T"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_wrong_orders_are_told_with_their_row(
    case: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_trying(monkeypatch)
    line, words = ANSWERS[case]
    install(
        HEAD + "class Wrong(Asked):\n    def orders(self, row, account):\n"
        "        given = super().orders(row, account)\n"
        f"        if row == 200:\n            {line}\n"
        "        return given\n",
        {"wrong": "Wrong"},
    )
    monkeypatch.setattr(plugins.TriedStrategy, "_failure", lambda *given: None)
    with pytest.raises(StrategyError) as refused:
        backtest(DATASET, np.array([[180, 240]]), ENVIRONMENT, baseline(plugin("wrong")))
    assert "row 200 (2021-01-09T" in str(refused.value)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("weights[77] = np.inf", "its plan of row 77 (2021-01-04T"),
        ("weights = weights[1:]", "weights has shape (557, 1); (558, 1) is needed"),
        ("weights = weights.astype(np.float32)", "weights has dtype float32; float64 is"),
        ("return weights", "its plan is ndarray; give a Plan, or None"),
    ],
)
def test_a_wrong_plan_is_told(
    line: str, words: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_trying(monkeypatch)
    install(
        HEAD + "class Wrong(Asked):\n    def plan(self, dataset, environment):\n"
        f"        weights = np.zeros(dataset.close.shape)\n        {line}\n"
        "        return plan_of(weights)\n",
        {"wrong": "Wrong"},
    )
    with pytest.raises(StrategyError) as refused:
        backtest(DATASET, SEGMENTS, ENVIRONMENT, baseline(plugin("wrong")))
    assert words in str(refused.value)


def test_orders_that_are_newer_than_the_plan_are_asked(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_trying(monkeypatch)
    install(
        HEAD + SMA + "\nclass Never(Average):\n    def orders(self, row, account):\n"
        "        given = super().orders(row, account)\n"
        "        return given._replace(target_weight=given.target_weight * 0, hold=~given.hold & "
        "False)\n",
        {"never": "Never"},
    )
    result = backtest(DATASET, SEGMENTS, ENVIRONMENT, baseline(plugin("never")))
    assert result.fills.is_empty()
    expected = backtest(DATASET, SEGMENTS, ENVIRONMENT, baseline(FlatBaseline(kind="flat")))
    assert result.equity.tobytes() == expected.equity.tobytes()


def documented(language: str) -> list[str]:
    """The examples of docs/strategies.md in a language, in order."""
    parts = DOCS.read_text(encoding="utf-8").split(f"```{language}\n")[1:]
    return [part.partition("```")[0] for part in parts]


@pytest.mark.parametrize(
    ("position", "name", "value"), [(0, "reversal", "Reversal"), (1, "fade", "Fade")]
)
def test_the_strategies_of_the_docs_trade(
    position: int, name: str, value: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_trying(monkeypatch)
    install(documented("python")[position], {name: value})
    result = check(DATASET, ENVIRONMENT, baseline(plugin(name)))
    assert result.fills.height > 10
    pair = synthetic.dataset(("demo.A.1h", "demo.B.1h"))
    weights = synthetic.experiment(("demo.A.1h", "demo.B.1h")).environment
    assert backtest(pair, pair.folds[0].test, weights, baseline(plugin(name))).fills.height > 10


def test_the_list_of_the_docs_is_one(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    without_trying(monkeypatch)
    install(documented("python")[0], {"reversal": "Reversal"})
    (listed,) = documented("yaml")
    experiment = parse_settings(
        {**EXPERIMENT, **yaml.safe_load(listed)}, ExperimentSettings, "x.yaml"
    )
    names = [baseline(one).name for one in experiment.baselines]
    assert names == [
        "buy_and_hold",
        "sma_cross_20_50",
        "donchian_55_20_short",
        "donchian_20_10",
        "reversal_bars_5",
    ]


def test_the_audit_of_the_docs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(documented("python")[2], {"dataset": DATASET, "environment": ENVIRONMENT})
    assert capsys.readouterr().out == ""


def test_the_table_of_the_docs_is_what_ships() -> None:
    rows = DOCS.read_text(encoding="utf-8").partition("|---|")[2].partition("\n\n")[0].splitlines()
    written = {row.split("|")[1].strip(" `"): row.split("|")[3].strip() for row in rows[1:]}
    expected = {}
    for model in get_args(get_args(BaselineSettings)[0]):
        fields = {name: one for name, one in model.model_fields.items() if name != "kind"}
        (kind,) = get_args(model.model_fields["kind"].annotation)
        defaults = {
            name: one.get_default(call_default_factory=True) for name, one in fields.items()
        }
        listed = [
            f"{name}={'required' if one.is_required() else defaults[name]}"
            for name, one in fields.items()
        ]
        expected[kind] = ", ".join(listed) or "none"
    assert written == expected
    assert set(expected) == set(get_args(BaselineKind))
