"""Leaderboard rows: chained test parts, and the median seed instead of the best."""

from pathlib import Path

import numpy as np
import pytest

from trade_pipeline.backtest.curve import Curve, stitch
from trade_pipeline.backtest.leaderboard import MEMBER, combine, markdown, median_seed, row, table
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import write_frame

DAY_MS = 86_400_000


def curve(
    first_day: int, equity: list[float], nets: tuple[float, ...] = (), fees: float = 0.0
) -> Curve:
    steps = len(equity) - 1
    return Curve(
        close_ts=(np.arange(len(equity)) + first_day) * DAY_MS,
        equity=np.array(equity),
        exposure=np.ones(steps),
        turnover=np.full(steps, 10.0),
        trade_nets=np.array(nets, np.float64),
        fees=fees,
        slippage=0.0,
        financing=0.0,
    )


def figures(sharpe: float | None, total_return: float = 0.0) -> dict[str, dict[str, float | None]]:
    values = dict.fromkeys(
        ("sharpe_low", "sharpe_high", "max_drawdown", "turnover", "trades"), None
    )
    return {"values": {**values, "sharpe": sharpe, "total_return": total_return}}


def test_test_parts_are_chained_so_that_returns_and_money_keep_their_proportion() -> None:
    whole = stitch([curve(0, [100, 110, 121], (5.0,), 2.0), curve(2, [100, 50, 75], (10.0,), 1.0)])
    assert whole.equity.tolist() == pytest.approx([100, 110, 121, 60.5, 90.75])
    assert (whole.close_ts // DAY_MS).tolist() == [0, 1, 2, 3, 4]
    assert len(whole.exposure) == len(whole.equity) - 1
    assert whole.trade_nets.tolist() == pytest.approx([5.0, 12.1])
    assert whole.fees == pytest.approx(2.0 + 1.21)
    assert whole.turnover.tolist() == pytest.approx([10, 10, 12.1, 12.1])


def test_a_ruined_account_stays_ruined_in_the_next_part() -> None:
    whole = stitch([curve(0, [100, 0]), curve(1, [100, 120])])
    assert whole.equity.tolist() == [100, 0, 0]


def test_test_parts_that_overlap_in_time_are_refused() -> None:
    with pytest.raises(ValueError, match="fold 1 starts before"):
        stitch([curve(0, [100, 110, 121]), curve(1, [100, 50, 75])])


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({0: 1.0, 1: 3.0, 2: 2.0}, 2),
        ({0: 1.0, 1: 3.0}, 0),
        ({7: None, 8: 0.5}, 7),
        ({0: -1.0, 1: None, 2: -2.0}, 2),
        ({4: 1.5}, 4),
    ],
)
def test_the_median_seed_is_the_middle_one_and_of_two_the_worse(
    ratios: dict[int, float | None], expected: int
) -> None:
    assert median_seed({seed: figures(ratio) for seed, ratio in ratios.items()}) == expected


def test_a_policy_row_has_its_range_and_a_baseline_has_none() -> None:
    seeds = {0: figures(1.0, 0.1), 1: figures(3.0, 0.3), 2: figures(None, -0.2)}
    policy = row("demo", "base", "policy", seeds, 2, {"deflated_sharpe": 0.25, "trials_tried": 9})
    assert (policy["sharpe"], policy["sharpe_min"], policy["sharpe_max"]) == (1.0, 1.0, 3.0)
    assert (policy["total_return_min"], policy["total_return_max"]) == (-0.2, 0.3)
    assert policy["median_seed"] == 0
    flat = row("demo", "flat", "baseline", {0: figures(None)}, 2, {})
    assert flat["sharpe_min"] is None
    assert flat["median_seed"] is None

    shown = markdown(table([flat, policy]))
    assert "1.00 (1.00 to 3.00) | 25.0 % (9 trials)" in shown
    assert "| flat (baseline) | – | – | 0.0 % | – | – |" in shown
    assert shown.index("| base ") < shown.index("| flat ")


@pytest.mark.parametrize("broken", [MEMBER, "current.json"])
def test_a_broken_report_is_named_and_takes_no_other_row_along(tmp_path: Path, broken: str) -> None:
    for name in ("first", "second", "third"):
        staging = bundles.staging(tmp_path, name)
        write_frame(
            staging.child(MEMBER),
            table([row(name, "base", "policy", {0: figures(1.0)}, 1, {})]),
        )
        bundles.commit(
            bundles.seal(staging, [MEMBER]), layout.experiment_bundle(tmp_path, name, "report")
        )
    home = layout.experiment_bundle(tmp_path, "second", "report")
    file = bundles.current(home).child(MEMBER) if broken == MEMBER else home.child(broken)
    file.path.chmod(0o644)
    file.path.write_bytes(b"garbage")
    found = combine(tmp_path, ["first", "second", "absent", "third"])
    assert found.table["experiment"].to_list() == ["first", "third"]
    (said,) = found.broken
    assert said.startswith("second/report is left out")
    assert broken in said
    assert "Materialize second/report again" in said
