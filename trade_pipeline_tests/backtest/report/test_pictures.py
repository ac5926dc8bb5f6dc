import numpy as np
import pytest

from trade_pipeline.backtest.report.pictures import equity_png


def walk(seed: int, steps: int = 30_000) -> tuple[np.ndarray, np.ndarray]:
    moves = np.random.default_rng(seed).normal(0, 0.01, steps)
    return np.arange(steps, dtype=np.int64) * 3_600_000, 1e5 * np.exp(np.cumsum(moves))


@pytest.mark.parametrize("count", [1, 6])
def test_a_preview_is_small_and_repeats_to_the_byte(count):
    curves = {f"base.f0.s{n} $x_1$ <i>": walk(n) for n in range(count)}
    picture = equity_png(curves, "title $x_1$ <i>")
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 100_000
    assert picture == equity_png(curves, "title $x_1$ <i>")


def test_an_unusable_curve_is_named():
    with pytest.raises(ValueError, match=r"equity \(0,\).* of base"):
        equity_png({"base": (np.empty(0, dtype=np.int64), np.empty(0))}, "title")
    with pytest.raises(ValueError, match="no curve"):
        equity_png({}, "title")
