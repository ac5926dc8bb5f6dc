"""Proof that the environments show nothing of the future: the audit of foreign work, on our own.

Start at `check_observations`.
"""

from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.features.audit import Audit, audit_environment
from trade_pipeline.settings.environment import EnvironmentSettings, UniformStarts
from trade_pipeline.simulator.env import PortfolioEnv, SimulatedEnv, TradingEnv
from trade_pipeline.simulator.kernel import Market
from trade_pipeline.training.dataset import PRICES, Dataset

STEPS = 256


def check_observations(dataset: Dataset, environment: EnvironmentSettings) -> Audit:
    """Change all rows from one on, and compare what the agent is shown before.

    One episode over the dataset's longest segment, at most `STEPS` steps, with random actions;
    prices, volume and features change from eight rows on.

    Args:
        dataset: as loaded from its bundle.
        environment: of a variant; how starts are drawn and what is rewarded plays no part.
    """
    lengths = dataset.segments[:, 1] - dataset.segments[:, 0]
    first = int(dataset.segments[np.argmax(lengths), 0])
    rows = min(int(lengths.max()), environment.window + STEPS)
    part = slice(first, first + rows)
    plain = {
        "starts": UniformStarts(),
        "reward": EnvironmentSettings.model_fields["reward"].default,
    }
    settings = environment.model_copy(update=plain)
    kind = TradingEnv if environment.actions.kind == "brackets" else PortfolioEnv
    close_ts = np.asarray(dataset.close_ts[part])
    instruments, width = len(dataset.instruments), len(dataset.feature_names)

    def make(frame: pl.DataFrame) -> SimulatedEnv:
        def columns(name: str, count: int) -> Any:
            chosen = [frame[f"{name}_{number}"].to_numpy() for number in range(count)]
            return np.ascontiguousarray(np.stack(chosen, axis=1))

        market = Market(
            ts=frame["ts"].to_numpy(),
            close_ts=close_ts,
            traded=columns("traded", instruments),
            **{name: columns(name, instruments) for name in PRICES},
        )
        features = columns("feature", instruments * width).astype(np.float32)
        return kind(market, features, np.array([[0, rows]]), settings)

    frame = pl.DataFrame(
        {
            "ts": np.asarray(dataset.ts[part]),
            **_columns("feature", dataset.features[part].reshape(rows, -1)),
            **_columns("traded", dataset.traded[part]),
            **{
                column: values
                for name in PRICES
                for column, values in _columns(name, getattr(dataset, name)[part]).items()
            },
        }
    )
    return audit_environment(
        make, frame, lambda env: int(env.row[0]) + 1, STEPS, options={"segment": (0, rows)}
    )


def _columns(name: str, values: Any) -> dict[str, Any]:
    """Columns of [rows, count] by number."""
    return {f"{name}_{number}": np.array(values[:, number]) for number in range(values.shape[1])}
