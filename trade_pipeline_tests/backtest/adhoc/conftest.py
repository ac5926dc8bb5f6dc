"""The small project that ad-hoc backtests read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from trade_pipeline_tests.deployment import Deployment, built_once, copied


@pytest.fixture(scope="module")
def project(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Everything materialized; tests only read it."""
    root = tmp_path_factory.mktemp("adhoc") / "project"
    with copied(built_once(templates, "trained"), root) as deployment:
        yield deployment
