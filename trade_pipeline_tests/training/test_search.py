"""A search for settings: repeatable, resumable, and better than its first guesses."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.settings.search import SearchSettings
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.search import NoScoreError, Searched, SearchError, search

SPACE = {
    "algorithm.learning_rate": {"kind": "log_float", "low": 1e-5, "high": 1e-1},
    "algorithm.epochs": {"kind": "int", "low": 1, "high": 8},
    "algorithm.network.hidden": {"kind": "choice", "values": [[64, 64], [256]]},
}
SETUP = {"dataset": "d" * 32, "seeds": [0, 1]}
TRIALS = 13
KILLED_AT = 12  # after the ten that TPE draws at random, so that the history matters


def settings(**changes: Any) -> SearchSettings:
    return SearchSettings.model_validate({"space": SPACE, "trials": TRIALS, **changes})


def score(chosen: dict[str, Any]) -> float:
    """Best with few epochs and the wide network."""
    wide = chosen["algorithm.network.hidden"] == [256]
    return 10.0 * wide - float(chosen["algorithm.epochs"] + chosen["algorithm.learning_rate"])


class Recorded:
    """Scores settings and keeps what was asked and said."""

    def __init__(self, rule: Callable[[dict[str, Any]], float] = score) -> None:
        self.asked: list[dict[str, Any]] = []
        self.said: list[str] = []
        self._rule = rule

    def __call__(self, chosen: dict[str, Any]) -> float:
        self.asked.append(chosen)
        return self._rule(chosen)

    def run(self, folder: Path, setup: dict[str, Any] = SETUP, **changes: Any) -> Searched:
        study = ArtifactLocation(folder, "alone/search/study.db")
        return search(settings(**changes), setup, study, self, self.said.append)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorded, Searched]:
    """A search that nothing disturbed."""
    recorded = Recorded()
    return recorded, recorded.run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_setup_suggests_the_same_settings_in_the_same_order(
    tmp_path: Path, sampler: str
) -> None:
    first, second, other = Recorded(), Recorded(), Recorded()
    found = first.run(tmp_path / "a", sampler=sampler, trials=12)
    assert second.run(tmp_path / "b", sampler=sampler, trials=12) == found
    assert second.asked == first.asked
    assert len({str(one) for one in first.asked}) == 12
    other.run(tmp_path / "c", sampler=sampler, seed=100, trials=1)
    assert other.asked[0] != first.asked[0]


def test_the_best_is_what_scored_most_with_its_own_types(whole: tuple[Recorded, Searched]) -> None:
    recorded, found = whole
    assert found.best == max(recorded.asked, key=score)
    assert found.score == score(found.best)
    assert (found.scored, found.failed) == (TRIALS, 0)
    assert isinstance(found.best["algorithm.network.hidden"], list)
    assert isinstance(found.best["algorithm.epochs"], int)
    assert found.picture.startswith(b"\x89PNG")


def test_scores_guide_what_is_suggested(tmp_path: Path) -> None:
    guided = Recorded()
    guided.run(tmp_path, trials=30)
    late = [one["algorithm.network.hidden"] == [256] for one in guided.asked[-15:]]
    assert sum(late) > 11


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    whole: tuple[Recorded, Searched], tmp_path: Path
) -> None:
    undisturbed, found = whole
    killed = (
        "import os, signal, sys; from pathlib import Path\n"
        "from trade_pipeline_tests.training.test_search import KILLED_AT, Recorded, score\n"
        "def rule(chosen):\n"
        "    if len(recorded.asked) == KILLED_AT: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return score(chosen)\n"
        "recorded = Recorded(rule)\n"
        "recorded.run(Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    rest = Recorded()
    assert rest.run(tmp_path) == found
    assert rest.asked == undisturbed.asked[KILLED_AT - 1 :]
    assert "interrupted" in rest.said[0]


def test_a_search_that_is_done_asks_for_nothing_and_more_trials_go_on(
    whole: tuple[Recorded, Searched], tmp_path: Path
) -> None:
    undisturbed, _ = whole
    found = Recorded().run(tmp_path, trials=2)
    again, more = Recorded(), Recorded()
    assert again.run(tmp_path, trials=2) == found
    assert again.asked == []
    more.run(tmp_path, trials=4)
    assert more.asked == undisturbed.asked[2:4]


@pytest.mark.parametrize(
    ("setup", "changes"),
    [({**SETUP, "dataset": "e" * 32}, {}), (SETUP, {"seed": 5}), (SETUP, {"sampler": "random"})],
    ids=["dataset", "seed", "sampler"],
)
def test_another_setup_begins_anew_and_leaves_the_old_study(
    tmp_path: Path, setup: dict[str, Any], changes: dict[str, Any]
) -> None:
    found = Recorded().run(tmp_path, trials=2)
    other = Recorded()
    other.run(tmp_path, setup, trials=2, **changes)
    assert len(other.asked) == 2
    again = Recorded()
    assert again.run(tmp_path, trials=2) == found
    assert again.asked == []


def test_settings_that_give_no_score_are_counted_and_the_search_goes_on(tmp_path: Path) -> None:
    def rule(chosen: dict[str, Any]) -> float:
        if chosen["algorithm.epochs"] % 2:
            raise NoScoreError("The weights are not finite.")
        return score(chosen)

    recorded = Recorded(rule)
    found = recorded.run(tmp_path)
    odd = sum(one["algorithm.epochs"] % 2 for one in recorded.asked)
    assert (found.scored, found.failed) == (TRIALS - odd, odd)
    assert odd > 0
    assert found.best["algorithm.epochs"] % 2 == 0
    assert sum("The weights are not finite." in line for line in recorded.said) == odd


def test_a_search_in_which_everything_fails_stops_and_says_why(tmp_path: Path) -> None:
    def rule(chosen: dict[str, Any]) -> float:
        raise NoScoreError("The disk is full.")

    recorded = Recorded(rule)
    with pytest.raises(SearchError, match=r"last 5 suggestions.*The disk is full\."):
        recorded.run(tmp_path)
    assert len(recorded.asked) == 5
    with pytest.raises(SearchError, match=r"none of 5 suggestions.*The disk is full\."):
        recorded.run(tmp_path, trials=5)


def test_settings_suggested_before_are_not_trained_again(tmp_path: Path) -> None:
    two = {"algorithm.epochs": {"kind": "int", "low": 1, "high": 2}}
    recorded = Recorded(lambda chosen: float(chosen["algorithm.epochs"]))
    found = recorded.run(tmp_path, space=two, trials=6)
    assert len(recorded.asked) == 2
    assert (found.best, found.scored) == ({"algorithm.epochs": 2}, 6)
