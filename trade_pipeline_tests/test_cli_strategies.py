"""`trade-pipeline strategies list`: what `baselines` may name, one line each."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from trade_pipeline.cli import app
from trade_pipeline.settings.baselines import BaselineKind
from trade_pipeline_tests.backtest.plugins.distributions import HEAD, SMA, Install, installing

MORE = """
class Plain:
    def __init__(self, period, fast=2, **others):
        pass


print("hello")
"""
ENDS = "import os\n\n\nos._exit(3)\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    with installing(tmp_path, monkeypatch) as install:
        yield install


def lines() -> list[str]:
    done = CliRunner().invoke(app, ["strategies", "list"])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_every_rule_that_ships_has_a_line_with_its_defaults() -> None:
    ours = f"(trade_pipeline {version('trade_pipeline')})"
    found = lines()
    assert f"sma_cross {ours}: fast=20, slow=50" in found
    assert f"flat {ours}: no parameters" in found
    names = {line.split(" ")[0] for line in found if ours in line}
    assert names == set(get_args(BaselineKind)) - {"plugin"}


def test_installed_strategies_are_listed_and_what_is_broken_says_why(install: Install) -> None:
    points = {"average": "Average", "plain": "Plain", "gone": "Missing"}
    install(HEAD + SMA + MORE, points)
    install(ENDS, {"ends": "Any", "twice": "Any"}, name="made-worse", module="made_up_worse")
    install(HEAD, {"twice": "Any"}, name="made-again", module="made_up_again")
    found = lines()
    assert "average (made-up 1.2.3): period=9" in found
    assert "plain (made-up 1.2.3): period=required, fast=2, **others" in found
    broken = [line for line in found if line.startswith("broken: ")]
    assert len(broken) == 4
    assert any("'gone' of made-up 1.2.3" in line and "AttributeError" in line for line in broken)
    assert any("'ends' of made-worse" in line and "exit code 3" in line for line in broken)
    assert sum("'twice' is given by made-again" in line for line in broken) == 2
    assert "hello" not in "".join(found)
