import random
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.features.audit import Audit, audit_environment
from trade_pipeline.simulator.env import TradingEnv
from trade_pipeline.simulator.market import Market
from trade_pipeline_tests.simulator.environments import environment_settings

ROWS, WINDOW = 90, 4
HONEST = "honest"


class WindowEnv(gymnasium.Env[dict[str, Any], int]):
    """Shows the last four closes, the account, and whatever its `leak` adds."""

    def __init__(self, frame: pl.DataFrame, leak: str = HONEST) -> None:
        self.close = frame["close"].to_numpy()
        self.leak = leak
        self.action_space = gymnasium.spaces.Discrete(3)
        self.row = 0
        self.buffer = np.zeros((WINDOW, 2))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.leak == "raises at reset":
            raise RuntimeError("no data")
        self.row, self.held, self.equity = WINDOW - 1, 0, 1.0
        if self.leak == "starts at random":
            self.row += random.randrange(5) + int(np.random.randint(5))
        return self.seen(), {}

    def step(self, action: int) -> Any:
        self.row += 1
        self.equity *= 1 + (self.held - 1) * (self.close[self.row] / self.close[self.row - 1] - 1)
        self.held = action
        ended = self.row == self.close.size - 1
        if self.leak == "ends before a fall" and self.row < self.close.size - 1:
            ended |= bool(self.close[self.row + 1] < 0.8 * self.close[self.row])
        if self.leak == "raises at step 30" and self.row == WINDOW + 29:
            raise RuntimeError("lost")
        if self.leak == "ends early" and self.row == 20:
            ended = True
        return self.seen(), 0.0, False, ended, {}

    def seen(self) -> dict[str, Any]:
        close, row = self.close, self.row
        self.buffer[:, 0] = close[row - WINDOW + 1 : row + 1]
        self.buffer[:, 1] = self.buffer[:, 0] / self.buffer[0, 0]
        account: tuple[Any, ...] = (np.array([self.equity, self.held]), 0.5)
        following = close[min(row + 1, close.size - 1)]
        if self.leak == "window one ahead":
            self.buffer[:, 0] = np.append(self.buffer[1:, 0], following)
        if self.leak == "three ahead":
            account = (np.array([self.equity, close[min(row + 3, close.size - 1)]]), 0.5)
        if self.leak == "scaled":
            self.buffer[:, 1] = (self.buffer[:, 0] - close.mean()) / close.std()
        if self.leak == "scalar":
            account = (account[0], float(following > close[row]))
        if self.leak == f"once, at {row}":
            self.buffer[0, 0] = following
        if self.leak == "chance":
            self.buffer[0, 1] = np.random.default_rng().random()
        if self.leak == "seeded chance":
            self.buffer[0, 1] = self.np_random.random() + np.random.random() + random.random()
        seen: dict[str, Any] = {"window": self.buffer, "account": account}
        if self.leak == "shape" and following > close[row]:
            seen["rising"] = 1
        return seen


def bars() -> pl.DataFrame:
    generator = np.random.default_rng(4)
    close = 100 * np.exp(np.cumsum(generator.normal(0, 1e-2, ROWS)))
    return pl.DataFrame({"ts": np.arange(ROWS), "close": close})


def audit(leak: str, **others: Any) -> Audit:
    return audit_environment(
        lambda frame: WindowEnv(frame, leak), bars(), lambda env: int(env.row) + 1, **others
    )


@pytest.mark.parametrize("leak", [HONEST, "seeded chance", "starts at random"])
def test_an_honest_environment_is_clean(leak: str) -> None:
    found = audit(leak, rows=range(ROWS))
    assert (found.verdict, found.findings) == ("clean", ()), found.report()
    assert "known" in found.report()


@pytest.mark.parametrize(
    ("leak", "component", "step", "row"),
    [
        ("window one ahead", "window[..., 0]", 0, 4),
        ("three ahead", "account[0][1]", 0, 6),
        ("scaled", "window[..., 1]", 0, 4),
        ("shape", "rising", 0, 4),
    ],
)
def test_a_leak_is_found_with_step_component_and_row(
    leak: str, component: str, step: int, row: int
) -> None:
    found = audit(leak)
    assert found.verdict == "looks ahead"
    (finding,) = found.findings
    assert (finding.component, finding.step, finding.row) == (component, step, row)
    assert f"- {component} after reset depends on row {row}, when 4 rows (0 to 3)" in found.report()


def test_a_leak_in_a_single_number_is_found() -> None:
    (finding,) = audit("scalar", rows=range(ROWS)).findings
    assert finding.component == "account[1]"
    # It was seen with the row that comes next.
    assert finding.row == WINDOW + (finding.step or 0)


@settings(max_examples=5)
@given(row=st.integers(WINDOW, ROWS - 2))
def test_a_leak_at_one_row_is_found_when_all_rows_are_tried(row: int) -> None:
    (finding,) = audit(f"once, at {row}", rows=range(ROWS)).findings
    assert (finding.component, finding.step) == ("window[..., 0]", row - WINDOW + 1)
    assert finding.row == row + 1


def test_an_episode_that_ends_because_of_the_future_is_found() -> None:
    (finding,) = audit("ends before a fall", rows=range(ROWS)).findings
    assert finding.component == "the end of the episode"


def test_an_environment_that_ends_early_says_what_was_not_tried() -> None:
    found = audit("ends early")
    assert found.verdict == "clean"
    assert found.notes == (
        "The episode ended at step 17, 21 of 90 rows known; what comes after was not tried.",
    )


def test_chance_is_reported_as_such_and_never_as_looking_ahead() -> None:
    found = audit("chance")
    assert (found.verdict, found.findings) == ("not deterministic", ())
    assert "window[..., 1] is another after step 0" in found.report()


def test_an_environment_that_raises_has_failed_or_is_judged_until_then() -> None:
    found = audit("raises at reset")
    assert found.verdict == "failed"
    assert "raised RuntimeError: no data before the first observation" in found.report()
    found = audit("raises at step 30")
    assert found.verdict == "clean"
    assert "raised RuntimeError: lost at step 30" in found.report()


def test_an_environment_that_knows_all_rows_cannot_be_judged() -> None:
    found = audit_environment(WindowEnv, bars(), lambda env: ROWS)
    assert found.verdict == "failed"
    assert "No row was tried" in found.report()


def test_global_generators_are_left_as_they_were() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = (random.random(), np.random.random())
    random.seed(1)
    np.random.seed(1)
    audit("seeded chance")
    assert (random.random(), np.random.random()) == expected


def test_frames_may_be_of_pandas() -> None:
    frame = pd.DataFrame({"close": bars()["close"].to_numpy()})
    found = audit_environment(
        lambda frame: WindowEnv(frame, "scaled"), frame, lambda env: int(env.row) + 1
    )
    assert [finding.component for finding in found.findings] == ["window[..., 1]"]


def ohlc(rows: int = 200) -> pl.DataFrame:
    generator = np.random.default_rng(6)
    close = 100 * np.exp(np.cumsum(generator.normal(0, 1e-2, rows)))
    opened = np.concatenate([close[:1], close[:-1]])
    return pl.DataFrame(
        {
            "ts": np.arange(rows) * 3_600_000,
            "open": opened,
            "high": np.maximum(opened, close) * 1.002,
            "low": np.minimum(opened, close) / 1.002,
            "close": close,
            "volume": generator.uniform(10, 1_000, rows),
        }
    )


def trading_env(frame: pl.DataFrame, leak: bool = False, **others: Any) -> TradingEnv:
    """Ours, with two features of the close, one of which may read the next bar."""
    close = frame["close"].to_numpy()
    change = np.append(0.0, close[1:] / close[:-1] - 1)
    features = np.stack([change, np.roll(change, -1) if leak else change**2], axis=1)
    ts = frame["ts"].to_numpy()
    names = ("open", "high", "low", "close", "volume")
    columns = [frame[name].to_numpy()[:, np.newaxis] for name in names]
    market = Market(ts, ts + 3_600_000, *columns, np.ones((len(ts), 1), np.bool_))
    segments = np.array([[0, len(ts)]])
    settings_ = environment_settings(episode_bars=60, window=8)
    return TradingEnv(market, features.astype(np.float32), segments, settings_, **others)


@pytest.mark.parametrize("options", [None, {"segment": (0, 200)}], ids=["drawn", "slice"])
def test_our_environment_shows_nothing_of_the_future(options: Any) -> None:
    found = audit_environment(
        trading_env, ohlc(), lambda env: int(env.row[0]) + 1, rows=range(8, 200, 5), options=options
    )
    assert found.verdict == "clean", found.report()


def test_our_environment_fails_when_it_is_fed_a_feature_that_leaks() -> None:
    found = audit_environment(
        lambda frame: trading_env(frame, leak=True),
        ohlc(),
        lambda env: int(env.row[0]) + 1,
        options={"segment": (0, 200)},
    )
    (finding,) = found.findings
    assert (finding.component, finding.step, finding.row) == ("window[..., 1]", 0, 8)
