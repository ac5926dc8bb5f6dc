"""Markets whose regimes are known, for the tests of regimes."""

import numpy as np

from trade_pipeline.features.regimes.model import RegimeModel

TRANSITION = np.array([[0.98, 0.015, 0.005], [0.02, 0.97, 0.01], [0.01, 0.04, 0.95]])
MEANS = np.array([[1e-3, 0.1], [0.0, 1.0], [-2e-3, 3.0]])  # a return, and how much it varies
DEVIATIONS = np.array([[5e-3, 0.2], [1.2e-2, 0.4], [3e-2, 0.8]])
INPUTS = ("log_return_1", "realised_volatility_20")


def planted(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Regimes [rows] of the market above, calmest first, and its inputs [rows, 2]."""
    generator = np.random.default_rng(seed)
    draws = generator.random(rows)
    regimes = np.zeros(rows, np.int64)
    for row in range(1, rows):
        chances = np.cumsum(TRANSITION[regimes[row - 1]])
        regimes[row] = np.searchsorted(chances, draws[row] * chances[-1], side="right")
    noise = generator.normal(size=(rows, 2))
    return regimes, MEANS[regimes] + DEVIATIONS[regimes] * noise


def known_model() -> RegimeModel:
    """Two inputs that vary together, three regimes, and a scale that is not 1."""
    return RegimeModel(
        INPUTS,
        center=np.array([1e-3, 2.0]),
        scale=np.array([0.02, 1.5]),
        start=np.array([0.5, 0.3, 0.2]),
        transition=TRANSITION,
        means=np.array([[0.1, -1.0], [0.0, 0.0], [-0.2, 1.5]]),
        covariances=np.array(
            [[[0.1, 0.05], [0.05, 0.2]], [[0.6, -0.1], [-0.1, 0.5]], [[4.0, 1.0], [1.0, 2.0]]]
        ),
    )


def one_segment(rows: int) -> np.ndarray:
    """All rows, without a gap."""
    return np.array([[0, rows]])
