"""Regimes are shaded where they are, and never so finely that a page cannot hold them."""

import numpy as np

from trade_pipeline.backtest.report.regime_shading import MOST_RUNS, regime_name, runs, shading


def test_runs_cover_the_bars_of_their_label_and_leave_out_bars_without_one():
    ts = np.arange(8, dtype=np.int64) * 10
    found = runs(ts, np.array([-1, 0, 0, 2, 2, 2, -1, 1]))
    assert found.start.tolist() == [10, 30, 70]
    assert found.end.tolist() == [30, 60, 80]
    assert found.label.tolist() == [0, 2, 1]
    assert found.together == 1


def test_regimes_that_change_all_the_time_become_the_most_frequent_of_some_bars():
    size = 3 * MOST_RUNS
    labels = np.tile([1, 0, 1], MOST_RUNS)
    found = runs(np.arange(size, dtype=np.int64), labels)
    assert found.together == 3
    assert (found.start.tolist(), found.end.tolist(), found.label.tolist()) == ([0], [size], [1])


def test_a_tie_goes_to_the_calmer_regime():
    size = 2 * MOST_RUNS
    found = runs(np.arange(size, dtype=np.int64), np.tile([1, 0], MOST_RUNS))
    assert found.together == 2
    assert found.label.tolist() == [0]


def test_shades_are_named_from_calm_to_wild_whatever_comes_first():
    ts = np.arange(6, dtype=np.int64)
    traces = shading(runs(ts, np.array([2, 2, 0, 0, 1, 1])), "y4")
    names = [trace["name"] for trace in traces]
    assert names == ["regime 0 (calmest)", "regime 1", "regime 2 (wildest)"]
    assert len({trace["fillcolor"] for trace in traces}) == 3
    assert traces[0]["x"].tolist() == [2, 4]
    assert traces[0]["y"].tolist() == [1, 0]
    assert [trace["legendrank"] for trace in traces] == sorted(t["legendrank"] for t in traces)


def test_a_single_regime_is_neither_calm_nor_wild():
    assert regime_name(0, 0) == "regime 0"


def test_bars_without_any_regime_shade_nothing():
    assert shading(runs(np.arange(3, dtype=np.int64), np.full(3, -1)), "y4") == []
