"""What the tests of ad-hoc backtests share: asking, and what a store looks like."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from trade_pipeline.backtest.adhoc.request import parse_request
from trade_pipeline.backtest.adhoc.resolution import resolve
from trade_pipeline.backtest.adhoc.run import AdhocBacktest, run
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.features.registry import resolve as resolve_features
from trade_pipeline.settings.project import Project, read_project
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA

LOOKBACK = 9  # of the small project's features
FIRST_TEST = {"from": "2021-04-25", "to": "2021-08-23"}  # of fold 0: 480 days after 2020-01-01
POLICY = "alone/policy/base.f0.s0"
HOLD = {"baseline": {"kind": "buy_and_hold"}, "series": [ALPHA]}


def settings_of(deployment: Deployment) -> tuple[Project, dict[str, FeatureSet]]:
    project = read_project(deployment.places.configs)
    sets = {name: resolve_features(one, name) for name, one in project.feature_sets.items()}
    return project, sets


def ask(deployment: Deployment, **content: Any) -> AdhocBacktest:
    """What a request gives; `start` and `end` stand for `from` and `to`."""
    renamed = {{"start": "from", "end": "to"}.get(key, key): one for key, one in content.items()}
    project, sets = settings_of(deployment)
    store = deployment.places.store
    return run(resolve(parse_request(renamed), store, project, sets), store, project)


def tree(store: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(store.rglob("*"))}


def dates(dataset: Any, part: Any) -> dict[str, str]:
    """The range that holds exactly the rows of one part."""
    first, last = (
        datetime.fromtimestamp(int(dataset.ts[row]) / 1000, UTC).date()
        for row in (part[0, 0], part[-1, 1] - 1)
    )
    return {"from": str(first), "to": str(last + timedelta(days=1))}
