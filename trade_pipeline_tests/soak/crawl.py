"""A crawl in a process of its own, which kills itself at a chosen point; see `test_kill`.

    python -m trade_pipeline_tests.soak.crawl '{"url": ..., "root": ..., "now_ms": ..., ...}'

Prints the phases it passed, one a line, so that the caller knows how many points there are.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trade_pipeline.market.importing import SeriesYear, import_bars
from trade_pipeline.market.sources.base import Surroundings
from trade_pipeline.market.sources.transport import Line
from trade_pipeline.settings.series import SeriesSettings

KEY = "kraken.BTC-USD.1m"
ASKING = "before a request"
ANSWERED = "answer not yet stored"
WRITING = "half of the temporary file written"
WRITTEN = "temporary file written, not replaced"
REPLACED = "replaced, cursor not moved"
PHASES = (ASKING, ANSWERED, WRITING, WRITTEN, REPLACED)


def series(url: str) -> SeriesSettings:
    """The pair of the fake venue."""
    return SeriesSettings.model_validate(
        {
            "key": KEY,
            "source": {
                "kind": "kraken",
                "symbol": "BTC/USD",
                "base_url": url,
                "calls_per_minute": 1e9,
            },
            "timeframe": "1m",
            "first_year": 2024,
            "volume_unit": "base",
        }
    )


class Points:
    """Counts the points that the crawl passes, and ends the process at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.passed: list[str] = []

    def reach(self, phase: str, spoil: Callable[[], object] = lambda: None) -> None:
        self.passed.append(phase)
        if len(self.passed) - 1 == self.kill_at:
            spoil()
            os.kill(os.getpid(), signal.SIGKILL)


def watch(points: Points) -> None:
    """Put a point before and after everything that touches the venue or the disk."""
    paced, replace, write = Line._paced, os.replace, Path.write_bytes

    def asking(line: Line, call: Callable[[], Any]) -> Any:
        points.reach(ASKING)
        answer = paced(line, call)
        points.reach(ANSWERED)
        return answer

    def writing(path: Path, content: bytes) -> int:
        points.reach(WRITING, lambda: write(path, content[: len(content) // 2]))
        return write(path, content)

    def replacing(temporary: Path, path: Path) -> None:
        points.reach(WRITTEN)
        replace(temporary, path)
        points.reach(REPLACED)

    Line._paced = asking  # type: ignore[method-assign]
    Path.write_bytes = writing  # type: ignore[method-assign,assignment]
    os.replace = replacing


def main(asked: dict[str, Any]) -> None:
    """Crawl both years of the fake market."""
    points = Points(asked["kill_at"])
    watch(points)
    root = Path(asked["root"])
    around = Surroundings(
        base=root,
        store=root / "store",
        environment={},
        now_ms=lambda: int(asked["now_ms"]),
        sleep=lambda seconds: None,
        log=lambda line: None,
        batch_answers=1,
    )
    partitions = [SeriesYear(KEY, year) for year in (2024, 2025)]
    outcome = import_bars({KEY: series(asked["url"])}, partitions, around)
    if outcome.refused:
        sys.exit("; ".join(one.sentence for one in outcome.refused.values()))
    print("\n".join(points.passed))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
