"""A crawl that is killed anywhere and run again ends with the bytes of one that never was.

Five random points in `make test`, fifty with `SOAK=1` (`make soak`).
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trade_pipeline.market.stored import read_bars
from trade_pipeline_tests.fakes.kraken import Clock, FakeKraken
from trade_pipeline_tests.fakes.market import MadeMarket
from trade_pipeline_tests.soak.crawl import KEY, PHASES

START_MS = int(datetime(2024, 12, 31, 12, tzinfo=UTC).timestamp()) * 1000
NOW_MS = int(datetime(2025, 1, 1, 14, 4, 5, tzinfo=UTC).timestamp()) * 1000
KILLS = 50 if os.environ.get("SOAK") else 5
SEED = 20250102


def crawl(root: Path, url: str, kill_at: int | None) -> subprocess.CompletedProcess[str]:
    asked = {"url": url, "root": str(root), "now_ms": NOW_MS, "kill_at": kill_at}
    return subprocess.run(
        [sys.executable, "-m", "trade_pipeline_tests.soak.crawl", json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def partitions(root: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (root / "store" / "ohlcv" / KEY).glob("*.parquet")
    }


def chosen(passed: list[str]) -> list[int]:
    """Random points, each phase in turn, so that none is left out."""
    rng = random.Random(SEED)
    by_phase = {phase: [n for n, one in enumerate(passed) if one == phase] for phase in PHASES}
    for points in by_phase.values():
        rng.shuffle(points)
    rounds = (by_phase[phase].pop() for _ in range(KILLS) for phase in PHASES if by_phase[phase])
    return [point for point, _ in zip(rounds, range(KILLS), strict=False)]


@pytest.mark.timeout(7200)
def test_a_crawl_killed_anywhere_ends_with_the_same_bytes(tmp_path: Path) -> None:
    market = MadeMarket(seed=3, start_ms=START_MS, end_ms=NOW_MS, trades_per_minute=9.0)
    with FakeKraken(market, Clock(NOW_MS)) as fake:
        whole = crawl(tmp_path / "whole", fake.url, None)
        assert whole.returncode == 0, whole.stderr
        passed = whole.stdout.splitlines()
        assert set(passed) == set(PHASES)
        expected = partitions(tmp_path / "whole")
        assert set(expected) == {"2024.parquet", "2025.parquet"}
        times = read_bars(tmp_path / "whole" / "store", KEY).bars["ts"].dt.epoch("ms")
        truth = market.bars(60_000, START_MS, NOW_MS // 60_000 * 60_000)
        assert times.to_list() == truth["ts"].dt.epoch("ms").to_list()

        killed: collections.Counter[str] = collections.Counter()
        for point in chosen(passed):
            root = tmp_path / f"killed{point}"
            dead = crawl(root, fake.url, point)
            assert dead.returncode == -signal.SIGKILL, dead.stderr
            again = crawl(root, fake.url, None)
            assert again.returncode == 0, again.stderr
            assert partitions(root) == expected, f"killed at point {point}: {passed[point]}"
            killed[passed[point]] += 1
    assert sum(killed.values()) == KILLS
    for phase in PHASES:
        print(f"killed {killed[phase]:2} times: {phase}")
