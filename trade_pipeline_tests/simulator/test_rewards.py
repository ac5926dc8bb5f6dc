"""Reward terms by hand, and finite at ruin."""

import numpy as np
import pytest

from trade_pipeline.settings.experiment import RewardTerm
from trade_pipeline.simulator.kernel import Account, Market
from trade_pipeline.simulator.rewards import TERMS, reward
from trade_pipeline_tests.simulator.markets import flat_bar, market

BARS = market([[flat_bar(100), flat_bar(50)]])
ROW = np.zeros(3, np.int64)
BEFORE = np.array([1000.0, 1000.0, 0.0])


def accounts() -> Account:
    """One that lost, one just ruined, one ruined before."""
    account = Account.start(3, 2, 1000.0)
    account.equity[:] = [900.0, 0.0, 0.0]
    account.peak_equity[:] = 1200.0
    account.quantity[0] = [2.0, -3.0]
    account.fees[:] = [1.0, 2.0, 0.0]
    account.slippage[:] = [2.0, 0.0, 0.0]
    account.financing[:] = [3.0, 0.0, 0.0]
    account.traded_notional[:] = [500.0, 0.0, 0.0]
    return account


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("log_return", [np.log(0.9), np.log(1e-3), 0.0]),
        ("cost", [-0.006, -0.002, 0.0]),
        ("drawdown", [-0.25, -1.0, -1.0]),
        ("exposure", [-350 / 900, 0.0, 0.0]),
        ("turnover", [-0.5, 0.0, 0.0]),
    ],
)
def test_each_term(term: str, expected: list[float]) -> None:
    np.testing.assert_allclose(TERMS[term](accounts(), BEFORE, BARS, ROW), expected)


def test_terms_are_summed_with_their_weights() -> None:
    terms = [RewardTerm(term="log_return"), RewardTerm(term="cost", weight=2.0)]
    total = reward(terms, accounts(), BEFORE, BARS, ROW)
    np.testing.assert_allclose(total, [np.log(0.9) - 0.012, np.log(1e-3) - 0.004, 0.0])


def test_every_setting_has_a_function() -> None:
    assert set(TERMS) == set(RewardTerm.model_fields["term"].annotation.__args__)


def test_a_term_can_be_added_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def patience(account: Account, before: np.ndarray, bars: Market, row: np.ndarray) -> np.ndarray:
        return (account.traded_notional == 0) * 1.0

    monkeypatch.setitem(TERMS, "patience", patience)
    term = RewardTerm.model_construct(term="patience", weight=0.5)
    assert reward([term], accounts(), BEFORE, BARS, ROW).tolist() == [0.0, 0.5, 0.5]
